"""Colours, style sheet and script of the report."""
from __future__ import annotations

import base64
import hashlib
import html

# Colours that are text, or stand behind it, keep WCAG AA's contrast; parts and kinds differ in lightness too, for people
# who do not tell their hues apart.
LIGHT = {
    "page": "#fbfbf9", "panel": "#ffffff", "ink": "#1d2329", "soft": "#56606a", "line": "#dcdfe2", "grid": "#e9ebed",
    "accent": "#0b5cad", "edge": "#7c8791", "peak": "#b3261e", "link": "#0b5cad",
    "p-forward": "#2468a8", "p-dx": "#e0a21b", "p-dw": "#c2501a", "p-update": "#5d6b78", "p-around": "#9aa4ad",
    "p-rest": "#d3d8dc", "p-loss": "#7a3e9d",
    "h0": "#f1f2f3", "h1": "#fdf3e3", "h2": "#fcdfb3", "h3": "#f8c280", "h4": "#f0a055", "h5": "#dc772f",
    "h0-ink": "#1d2329", "h1-ink": "#1d2329", "h2-ink": "#1d2329", "h3-ink": "#1d2329", "h4-ink": "#1d2329",
    "h5-ink": "#14181c", "box": "#a9b1b8",
    "k-activation": "#9cc3e8", "k-gradient": "#f2bd62", "k-scratch": "#d3d7da", "k-state": "#8f83c9", "k-parameter": "#6fae84",
    "k-other": "#eef0f1", "k-ink": "#14191e", "k-line": "#ffffff",
    "bandwidth": "#b8520f", "compute": "#2468a8",
}
DARK = {
    "page": "#14181c", "panel": "#1b2025", "ink": "#e6e9ec", "soft": "#a3adb7", "line": "#343c44", "grid": "#282f36",
    "accent": "#7db7f0", "edge": "#7f8b96", "peak": "#ff8f85", "link": "#8cc0f5",
    "p-forward": "#5fa4e6", "p-dx": "#f3c65a", "p-dw": "#dd6b33", "p-update": "#8b99a6", "p-around": "#5e6a75",
    "p-rest": "#434c55", "p-loss": "#b98be0",
    "h0": "#252b31", "h1": "#33291f", "h2": "#4e361a", "h3": "#704714", "h4": "#985a10", "h5": "#d5822a",
    "h0-ink": "#e6e9ec", "h1-ink": "#f3eee8", "h2-ink": "#fbf3ea", "h3-ink": "#ffffff", "h4-ink": "#ffffff",
    "h5-ink": "#14181c", "box": "#4d5862",
    "k-activation": "#2f5f8f", "k-gradient": "#8a5c10", "k-scratch": "#4a535b", "k-state": "#7668b6", "k-parameter": "#1c4a31",
    "k-other": "#353c43", "k-ink": "#ffffff", "k-line": "#14181c",
    "bandwidth": "#ee9350", "compute": "#6fb0ee",
}

RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
:root{--mono:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono","DejaVu Sans Mono",monospace;
--sans:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 var(--sans);font-variant-numeric:tabular-nums}
header,main,nav{max-width:76rem;margin:0 auto;padding:0 1rem}
header{padding-top:1.75rem}
h1,h2,h3{line-height:1.25;margin:0;font-weight:650;overflow-wrap:anywhere;text-wrap:balance}
h1{font-size:1.8rem}
h2{font-size:1.3rem;margin-top:2.75rem}
h3{font-size:1.1rem;margin-top:2.25rem}
.run>h2{font-size:1.5rem;padding-top:1.75rem;border-top:2px solid var(--line)}
p{margin:.5rem 0;max-width:46rem}
a{color:var(--link);text-underline-offset:.15em}
code,.name{font-family:var(--mono);font-size:.88em}
.name{overflow-wrap:anywhere;unicode-bidi:isolate}
.kicker,.note,.op,figcaption,.unit,caption{color:var(--soft)}
.kicker{margin:0;font-size:.85rem;letter-spacing:.04em}
.under{color:var(--soft);margin:.35rem 0 0;max-width:none;overflow-wrap:anywhere}
.note,figcaption,.unit{font-size:.88rem}
main nav{padding:0}
nav ul{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;list-style:none;margin:1rem 0 0;padding:.6rem 0;border:solid var(--line);
border-width:1px 0;font-size:.92rem}
.hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}

.answers{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,17rem),1fr));gap:1rem;margin:1.25rem 0 0}
.answers>div{background:var(--panel);border:1px solid var(--line);border-top:3px solid var(--accent);border-radius:6px;
padding:.9rem 1rem 1rem}
.answers .question{font-size:.85rem;font-weight:500;color:var(--soft);margin:0}
.answers p{margin:.35rem 0 0;font-size:.92rem}
.answers .big{font-size:1.2rem;font-weight:650;line-height:1.3}
.entries{list-style:none;margin:.3rem 0 0;padding:0;font-size:.92rem}
.entries li{display:flex;justify-content:space-between;align-items:baseline;gap:.75rem;padding:.15rem 0}
.entries li+li{border-top:1px solid var(--grid)}
.entries span:last-child{flex:none;color:var(--soft)}
.warning{border:2px solid var(--peak);border-radius:6px;background:var(--panel);padding:.6rem .9rem;margin:1.25rem 0 0;
max-width:none}
.numbers{display:grid;grid-template-columns:repeat(auto-fit,minmax(7rem,1fr));gap:.75rem 1.5rem;margin:1.25rem 0 0}
.numbers dt{font-size:.82rem;color:var(--soft)}
.numbers dd{margin:0;font-size:1.15rem;font-weight:600;overflow-wrap:anywhere}
.numbers small{display:block;font-size:.8rem;font-weight:400;color:var(--soft)}

.legend{display:flex;flex-wrap:wrap;gap:.25rem 1.1rem;list-style:none;padding:0;margin:.6rem 0;
font-size:.85rem;color:var(--soft)}
.legend li{display:flex;align-items:center;gap:.4rem;white-space:nowrap}
.legend b{color:var(--ink);font-weight:600}
.swatch{width:14px;height:14px;flex:none;overflow:hidden;border-radius:3px}
.whole{margin-top:1.5rem}
.whole .bar{height:20px;border-radius:4px}
.bar{display:block;width:100%;height:14px}
.bars .bar{border-left:1px solid var(--edge)}

.bars{list-style:none;margin:.75rem 0 0;padding:0;display:flex;flex-direction:column}
.bars li{display:grid;grid-template-columns:minmax(0,20rem) minmax(0,1fr) 5.5rem 3.75rem 5.5rem;gap:0 .9rem;align-items:center;
padding:.28rem 0;border-bottom:1px solid var(--grid);break-inside:avoid}
.bars .time,.bars .part{text-align:right;white-space:nowrap;font-size:.92rem}
.bars .part{color:var(--soft)}
.bars .who{display:contents}
.bars .who>:first-child{line-height:1.35}
.bars .bound{grid-area:1/5;justify-self:start}
.bars .rest{color:var(--soft)}
.op{font-size:.82rem;overflow-wrap:anywhere}
.bound{font-size:.75rem;white-space:nowrap;border:1px solid;border-radius:99px;padding:0 .45em;display:inline-block}
.bound.bandwidth{color:var(--bandwidth)}
.bound.compute{color:var(--compute)}
.pick{position:absolute;opacity:0;width:1px;height:1px}
.pick+label{display:inline-block;font-size:.88rem;padding:.3rem .75rem;border:1px solid var(--line);border-radius:99px;
margin:.35rem .4rem 0 0;cursor:pointer;color:var(--soft)}
.pick:checked+label{color:var(--ink);border-color:var(--accent);box-shadow:inset 0 0 0 1px var(--accent)}
.pick:focus-visible+label{outline:2px solid var(--accent);outline-offset:2px}
.by-cost:checked~.bars li{order:var(--rank)}

.graph{columns:21rem;column-gap:2rem;margin-top:.75rem}
.band{display:block;width:100%;max-width:26rem;margin:0 auto;break-inside:avoid;overflow:visible}
.band text{font-size:10px}
.band .title{font-size:11px;font-weight:600}
.band .share,.band text:not(.share){font-family:var(--mono)}
.band .onward,.band .back{display:none;font-size:9px;fill:var(--soft)}
.goes-on .onward,.comes-from .back{display:inline}
.share{text-anchor:end;font-weight:600}
.edge{fill:none;stroke:var(--edge);stroke-width:1.4}
.box rect{stroke:var(--box);stroke-width:1}
.input rect{fill:var(--page);rx:12px}
.input text,.off text{fill:var(--soft)}
.off rect,rect.off{fill:var(--page);stroke:var(--box);stroke-dasharray:4 3}

figure{margin:.75rem 0 0}
figcaption{margin-top:.4rem;max-width:46rem}
.unit{margin:0}
.plot{display:flex}
.axis{flex:none}
.area{flex:1;min-width:0;width:100%}
.plot text{font-size:11px;fill:var(--soft)}
.plot .strong{font-weight:650;fill:var(--peak)}
.end{text-anchor:end}
.middle{text-anchor:middle}
.plot .inside,.plot .halo{font:10px var(--mono)}
.plot .inside,.plot .halo{paint-order:stroke;stroke-width:3px;stroke-linejoin:round}
.plot .inside{fill:var(--k-ink)}
.plot .halo{fill:var(--ink);stroke:var(--page)}
.grid{stroke:var(--grid)}
.base,.roof{stroke:var(--ink)}
.roof{stroke-width:1.75}
.ridge,.split{stroke:var(--edge);stroke-dasharray:2 4}
.phase,.lot{stroke-width:5}
.peak{stroke:var(--peak);stroke-width:1.5}
.area rect{stroke:var(--k-line);stroke-width:.6}
.area rect:hover,.box:hover rect,circle:hover{stroke:var(--ink);stroke-width:1.75}
circle.bandwidth{fill:var(--bandwidth)}
circle.compute{fill:var(--compute)}
circle.neither{fill:var(--edge)}
.area circle{stroke:var(--page);stroke-width:1}
.facts,.ranks{padding-left:1.1rem;max-width:52rem;font-size:.95rem}
.ranks{columns:22rem;column-gap:2rem;padding-left:1.6rem;font-size:.88rem;max-width:none}
.ranks li{break-inside:avoid}
.wide{display:none}
@media (min-width:46rem){.wide{display:inline}.narrow{display:none}}

.scroll{overflow-x:auto;max-width:100%;margin-top:.9rem;position:relative}
.scroll:focus-visible{outline:2px solid var(--accent)}
table{border-collapse:collapse;font-size:.85rem;line-height:1.35}
caption{text-align:left;padding-bottom:.35rem}
th,td{text-align:left;padding:.32rem .75rem;border-bottom:1px solid var(--grid);vertical-align:baseline;white-space:nowrap}
thead th{border-bottom:1px solid var(--edge);vertical-align:bottom;font-weight:600;background:var(--page)}
th:first-child{position:sticky;left:0;background:var(--page);padding-left:0;min-width:17rem;max-width:26rem;white-space:normal}
tbody th,tfoot th{font-weight:500}
tfoot tr:last-child>*{font-weight:600}
tfoot tr:first-child>*{border-top:1px solid var(--edge)}
.sortable{font-size:.8rem}
.sortable th,.sortable td{padding-left:.4rem;padding-right:.4rem}
.sortable thead th{white-space:normal}
.sortable th:first-child{padding-left:0}
@media screen and (min-width:46rem){.sortable th:first-child{min-width:0;max-width:none;white-space:nowrap}
.sortable wbr{display:none}}
@media screen and (min-width:76rem){
section[id$=-table]{display:grid;grid-template-columns:minmax(0,1fr)}
section[id$=-table] .scroll{justify-self:center;width:max-content;min-width:100%;max-width:calc(100vw - 2rem)}
}
.number{text-align:right}

th button{all:unset;cursor:pointer}
th button:hover,th button:focus-visible{text-decoration:underline}
th[aria-sort=ascending] button::after{content:" \\2191"}
th[aria-sort=descending] button::after{content:" \\2193"}
.conditions{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,10.5rem),1fr));gap:.6rem 1.5rem;
margin:.75rem 0 0}
.conditions dt{font-size:.82rem;color:var(--soft)}
.conditions dd{margin:0;overflow-wrap:anywhere}
summary{cursor:pointer}
footer{max-width:76rem;margin:0 auto;padding:2.5rem 1rem 2rem;color:var(--soft);font-size:.85rem}
#tip{position:fixed;z-index:9;max-width:min(22rem,calc(100vw - 16px));padding:.4rem .6rem;border-radius:5px;
background:var(--ink);color:var(--page);font-size:.82rem;line-height:1.35;overflow-wrap:anywhere;pointer-events:none}

@media (max-width:46rem){
h1{font-size:1.5rem}
.bars li{grid-template-columns:minmax(0,1fr) auto auto;grid-template-areas:"who time part" "bar bar bar";gap:.15rem .75rem;
padding:.4rem 0}
.bars .who{display:block;grid-area:who;line-height:1.35}
.bars .compute{display:none}
.bars .bar{grid-area:bar}.bars .time{grid-area:time}.bars .part{grid-area:part;min-width:3.2rem}
th:first-child{min-width:9.5rem;max-width:9.5rem}
}
@media print{
@page{size:A4;margin:14mm}
@page across{size:A4 landscape;margin:10mm}
body{font-size:10pt}
header,main,nav,footer{max-width:none;padding-left:0;padding-right:0}
.pick+label,nav,#tip{display:none}
h2,h3,h2+p,h3+p,.legend,.unit{break-after:avoid}
section[id$=-table]{page:across}
.answers{grid-template-columns:repeat(3,1fr)}
figure,.plot,.answers>div,tr,p{break-inside:avoid}
.graph{columns:2}
.goes-on .onward,.comes-from .back{display:none}
.scroll{overflow:visible}
table,.sortable{font-size:6.5pt}
tfoot{display:table-row-group}
th,td,.sortable th,.sortable td{padding:.15rem .25rem}
thead th{white-space:normal}
th:first-child,.sortable th:first-child{position:static;min-width:34mm;padding-left:0}
}
"""

# The figures are all there without it: it shows titles at once, for fingers too, sorts the table, and says where the graph
# goes on in the next column.
SCRIPT = """
"use strict";
(() => {
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  tip.setAttribute("aria-hidden", "true");
  document.body.append(tip);
  const texts = new WeakMap();
  for (const title of document.querySelectorAll("svg title")) {
    texts.set(title.parentElement, title.textContent);
    title.parentElement.setAttribute("aria-label", title.textContent);
    title.remove();
  }
  const show = event => {
    let element = event.target;
    while (element instanceof Element && !texts.has(element)) element = element.parentElement;
    tip.hidden = !(element instanceof Element);
    if (tip.hidden) return;
    tip.textContent = texts.get(element);
    const right = document.documentElement.clientWidth - tip.offsetWidth - 8;
    const above = event.clientY - tip.offsetHeight - 12;
    tip.style.left = Math.max(8, Math.min(event.clientX + 12, right)) + "px";
    tip.style.top = (above < 8 ? event.clientY + 16 : above) + "px";
  };
  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);
  document.addEventListener("scroll", () => { tip.hidden = true; }, {passive: true});

  const place = () => {
    for (const graph of document.querySelectorAll(".graph")) {
      const bands = [...graph.children], lefts = bands.map(band => band.getBoundingClientRect().left);
      bands.forEach((band, i) => {
        band.classList.toggle("goes-on", i + 1 < bands.length && lefts[i + 1] > lefts[i] + 1);
        band.classList.toggle("comes-from", i > 0 && lefts[i] > lefts[i - 1] + 1);
      });
    }
  };
  place();
  addEventListener("resize", place);

  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return "v" in cell.dataset ? Number(cell.dataset.v) : cell.textContent;
  };
  const sort = (table, heading) => {
    const down = heading.getAttribute("aria-sort") !== "descending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const column = heading.cellIndex, body = table.tBodies[0];
    const order = (one, two) => typeof one === "number" ? one - two : two.localeCompare(one);
    body.append(...[...body.rows].sort((one, two) => (down ? -1 : 1) * order(valueOf(one, column), valueOf(two, column))));
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    for (const heading of table.tHead.rows[0].cells) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = heading.textContent;
      heading.replaceChildren(button);
      button.addEventListener("click", () => sort(table, heading));
    }
  }
})();
"""


def style_sheet() -> str:
    """All rules, with both themes; paper is light."""
    def tokens(colours: dict[str, str]) -> str:
        return ";".join(f"--{name}:{value}" for name, value in colours.items())
    fills = [name for name in LIGHT if name.startswith(("p-", "k-")) and name not in ("k-ink", "k-line")]
    painted = [f"rect.{name}{{fill:var(--{name})}}text.{name},line.{name}{{stroke:var(--{name})}}" for name in fills]
    painted += [f".{name} rect,rect.{name}{{fill:var(--{name})}}.{name} text{{fill:var(--{name}-ink)}}"
                for name in (f"h{step}" for step in range(6))]
    return (f":root{{color-scheme:light dark;{tokens(LIGHT)}}}\n"
            f"@media screen and (prefers-color-scheme:dark){{:root{{{tokens(DARK)}}}}}\n"
            f"@media print{{:root{{color-scheme:light}}}}{RULES}{''.join(painted)}\n")


def policy() -> str:
    """The content security policy: nothing from outside, and no script but the report's own."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"


def page(title: str, body: str) -> str:
    """A whole page that needs nothing from outside. title: text; body: HTML."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy()}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{style_sheet()}</style>
</head>
<body>
{body}
<script>{SCRIPT}</script>
</body>
</html>
"""
