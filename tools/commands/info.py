"""microcnn info: what a model is, and what it takes to run and to train it."""
from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microcnn.errors import CompileError, FileError, MicroCNNError, UnsupportedError
from microcnn.files import atomic_write
from microcnn.integers import INTEGERS
from microcnn.memory import short
from microcnn.partial import trainable_weights

from ..loading import check_writable, file_name, input_shapes, load_model
from ..memory_plan import Picture, plan_of
from ..memory_svg import svg_of
from ..memory_table import PROGRAMS, memory_dict, plan_dict, show_layers, show_memory, show_peak
from ..report_memory import memory_page
from ..samples import default_loss
from ..terminal import Terminal, bytes_text, count_text
from . import options

if TYPE_CHECKING:
    from microcnn.planned import Planned

# How a plan is drawn, by the suffix of the file.
PICTURES: dict[str, Callable[[Picture], str]] = {".svg": svg_of, ".html": memory_page}
NORMS = {"frozen": "frozen batch norm", "batch": "batch norm on batch statistics", "fold": "folded batch norm"}


def add_info(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    options.add_model(parser)
    parser.add_argument("--batch", metavar="N", type=options.whole(), default=1, help="samples at a time (1)")
    parser.add_argument("--train", metavar="WHAT", type=options.parts_or_none, default="all",
                        help=f"what would train: none, {options.TRAIN} (all)")
    options.add_optimizer(parser)
    options.add_less_memory(parser)
    options.add_bn(parser)
    options.add_shape(parser)
    options.add_dtype(parser)
    parser.add_argument("--memory", action="store_true",
                        help="the whole plan of the memory: what lives at its peak, and what each layer takes")
    parser.add_argument("--picture", metavar="FILE", help="draw that plan over time: FILE ends in .svg or .html")
    options.add_json(parser)


def run_info(args: argparse.Namespace, terminal: Terminal) -> int:
    """Describe the model; what cannot be said is said to be so, and an error where it was asked for by name."""
    if args.picture is not None:
        check_picture(args.picture, args.model)
    if args.train is None and (args.micro_batch or args.recompute):
        raise CompileError("--micro-batch and --recompute are for training; with --train none nothing trains")
    wants_plan = args.memory or args.picture is not None
    try:
        graph = load_model(args.model, args.shape)
    except UnsupportedError as error:
        if wants_plan:
            raise
        return _refused(args, terminal, error)
    shapes = input_shapes(graph, args.shape)
    facts = describe(graph, args, shapes)
    plans: dict[str, Planned] = facts.pop("plans")
    if wants_plan and not plans:
        raise CompileError(f"{args.model}: there is no plan of its memory: {facts['problems'][0]}")
    if args.picture is not None:
        draw_plan(args.picture, *list(plans.items())[-1], args, facts["budget"])
        facts["picture"] = str(args.picture)
    if args.json:
        terminal.say(json.dumps(facts, indent=1))
        return 0
    _show(facts, plans, terminal, args)
    if args.picture is not None:
        terminal.say(f"\nsaved {args.picture}")
    return 0


def describe(graph: Any, args: argparse.Namespace, shapes: dict[str, tuple[int, ...]] | None) -> dict[str, Any]:
    """All that info knows, as plain data but for `plans`: Planned by title."""
    problems: list[str] = []
    try:
        sizes = graph.shapes(shapes)
    except CompileError as error:
        if shapes:
            raise
        problems.append(options.as_options(str(error)))
        sizes = {}
    types = graph.types()
    facts: dict[str, Any] = {
        "file": str(args.model), "bytes": Path(args.model).stat().st_size,
        "inputs": [{"name": i.name, "shape": list(sizes.get(i.name, i.shape)), "dtype": i.dtype} for i in graph.inputs],
        "outputs": [{"name": name, "shape": list(sizes[name]) if name in sizes else None, "dtype": types[name]}
                    for name in graph.outputs],
        "parameters": graph.parameter_count(),
        "trainable": sum(graph.weights[name].size for name in trainable_weights(graph)),
        "normalisation": {k: graph.meta[k] for k in ("scale", "mean", "std") if k in graph.meta},
        "trains": None, "budget": None, "layers": [], "macs": None, "memory": {}, "refused": [], "problems": problems,
        "plans": {}}
    layer_facts: dict[str, Any] = {}
    if sizes:
        from microcnn.planned import Planned
        try:
            how: dict[str, Any] = {"batch": args.batch, "bn": args.bn, "dtype": args.dtype, "input_shapes": shapes}
            if args.train is None:
                run, facts["budget"] = plan_within(graph, args.budget, {**how, "train": None})
            else:
                run = Planned(graph, **how)
            layer_facts = run.layer_facts()
            facts["plans"]["to run"] = run
        except MicroCNNError as error:
            if args.train is None and args.budget:
                raise
            problems.append(f"cannot run: {error}")
    if layer_facts and args.train is not None:
        try:
            if not facts["trainable"]:
                raise CompileError("it has no weight that can be trained")
            steps, choice = plan_to_train(graph, args, shapes, default_loss(sizes, graph.outputs))
            facts["plans"]["to train"], facts["trains"], facts["budget"] = steps, steps.trained_numbers, choice
        except MicroCNNError as error:
            if args.train != "all" or args.budget or args.micro_batch:
                raise
            problems.append(f"cannot be trained as a whole: {error}")
    facts["memory"] = {key.replace(" ", "_"): plan_dict(planned) if args.memory else memory_dict(planned.memory)
                       for key, planned in facts["plans"].items()}
    for node in graph.nodes:
        known = layer_facts.get(node.name, {})
        facts["layers"].append({
            "name": node.name, "op": node.op, "outputs": [list(sizes[name]) if name in sizes else None
                                                          for name in node.outputs],
            "parameters": sum(graph.weights[ref.name].size for ref in node.weights.values()),
            "weights": {role: ref.name for role, ref in node.weights.items()},
            "macs": int(known["macs"]) if "macs" in known else None})
    if layer_facts:
        facts["macs"] = sum(int(known.get("macs", 0)) for known in layer_facts.values())
    return facts


def plan_to_train(graph: Any, args: argparse.Namespace, shapes: dict[str, tuple[int, ...]] | None, loss: Any
                  ) -> tuple[Planned, dict[str, Any] | None]:
    """The plan of what the options ask for, and what a budget has chosen. Raises CompileError.

    What memory it takes does not depend on the loss, nor on an optimizer's numbers.
    """
    import microcnn as mc
    optimizer = {"sgd": mc.SGD(lr=0.01, momentum=0.9), "adam": mc.Adam(lr=0.01), "adamw": mc.AdamW(lr=0.01)}[args.optimizer]
    how: dict[str, Any] = {"batch": args.batch, "train": args.train, "loss": loss, "optimizer": optimizer, "bn": args.bn,
                           "dtype": args.dtype, "input_shapes": shapes, "micro_batch": args.micro_batch,
                           "recompute": args.recompute or None}
    return plan_within(graph, args.budget, how)


def plan_within(graph: Any, budget: str | None, how: dict[str, Any]) -> tuple[Planned, dict[str, Any] | None]:
    """Planned(graph, **how), within a budget where there is one, and what that has chosen. Raises CompileError."""
    from microcnn.budget import choose
    from microcnn.choices import parse_budget
    from microcnn.planned import Planned
    limit = parse_budget(budget)
    if limit is None:
        return Planned(graph, **how), None
    how, choice = choose(graph, limit, how)
    return Planned(graph, **how), {**asdict(choice), "text": str(choice)}


def shape_text(shape: Any) -> str:
    """A shape for people, with ? for what is open."""
    return "?" if shape is None else " x ".join("?" if n is None else str(n) for n in shape) or "1 number"


def _show(facts: dict[str, Any], plans: dict[str, Planned], terminal: Terminal, args: argparse.Namespace) -> None:
    terminal.say(f"{facts['file']} ({bytes_text(facts['bytes'])})")
    rows = [[kind[:-1], one["name"], shape_text(one["shape"]) + (f" {one['dtype']}" if one["dtype"] in INTEGERS else "")]
            for kind in ("inputs", "outputs") for one in facts[kind]]
    terminal.table(["", "name", "one sample"], rows)
    macs = f", {count_text(facts['macs'])} multiply-adds a sample" if facts["macs"] is not None else ""
    trainable = "" if facts["trainable"] == facts["parameters"] else f" ({facts['trainable']:,} can be trained)"
    terminal.say(f"{len(facts['layers'])} layers, {facts['parameters']:,} parameters{trainable}{macs}")
    if facts["normalisation"]:
        terminal.say("normalisation: " + ", ".join(f"{key} {value}" for key, value in facts["normalisation"].items()))
    if not args.memory:
        terminal.say()
        _show_layers(facts, terminal)
    if plans:
        terminal.say()
        if facts["trains"] is not None:
            budget = f" --budget {args.budget}" if args.budget else ""
            terminal.say(f"--train {options.parts_text(args.train)} --optimizer {args.optimizer}{budget}: "
                         f"{facts['trains']:,} of {facts['trainable']:,} parameters train")
        if facts["budget"] is not None:
            terminal.say(facts["budget"]["text"])
        titles = {title: plan_title(title, args, facts["budget"]) for title in plans}
        show_memory(terminal, {titles[title]: planned.memory for title, planned in plans.items()}, args.memory)
    for title, planned in plans.items() if args.memory else ():
        terminal.heading(titles[title])
        show_peak(terminal, planned)
        terminal.say()
        show_layers(terminal, planned.memory)
    for problem in facts["problems"]:
        terminal.say(f"\nnote: {problem}")


def _show_layers(facts: dict[str, Any], terminal: Terminal) -> None:
    terminal.table(["layer", "op", "output", ">parameters", ">multiply-adds", "weights"], [
        [short(layer["name"]), layer["op"], "; ".join(map(shape_text, layer["outputs"])),
         f"{layer['parameters']:,}" if layer["parameters"] else "-",
         count_text(layer["macs"]) if layer["macs"] else "-",
         ", ".join(map(short, layer["weights"].values()))]
        for layer in facts["layers"]])


def plan_title(title: str, args: argparse.Namespace, choice: dict[str, Any] | None = None) -> str:
    """"to run, batch 8" or "to train fc.*, batch 8"; choice: what a budget has chosen."""
    what = "what fits the budget" if choice and choice["measured"] else options.parts_text(args.train)
    return f"{title}{' ' + what if title == 'to train' else ''}, batch {args.batch}"


def check_picture(path: Any, model: Any) -> None:
    """Raises FileError unless the picture can be written there, and is no model."""
    if Path(path).suffix.lower() not in PICTURES:
        raise FileError(f"--picture {path}: expected a file that ends in {' or '.join(PICTURES)}")
    check_writable(path)
    if os.path.realpath(path) == os.path.realpath(model):
        raise FileError(f"--picture {path} is the model itself; give the picture a file of its own")


def draw_plan(path: Any, title: str, planned: Planned, args: argparse.Namespace, choice: dict[str, Any] | None = None
              ) -> None:
    """Write the picture of a plan; choice as in plan_title. Raises FileError."""
    program = planned.memory.fullest.program
    told = f"{plan_title(title, args, choice)}, {planned.dtype.name}, {NORMS[planned.bn]}: {PROGRAMS[program]}"
    if title == "to train" and program != "train":
        told += ", which needs more than a training step"
    picture = Picture(file_name(args.model), told[0].upper() + told[1:], planned.memory, plan_of(planned, program),
                      planned.rows(program))
    atomic_write(path, [PICTURES[Path(path).suffix.lower()](picture).encode()])


def _refused(args: argparse.Namespace, terminal: Terminal, error: UnsupportedError) -> int:
    """A valid model that this library cannot run: what the file says, and what is not supported."""
    first, *refused = [line.strip() for line in options.as_options(str(error)).splitlines() if line.strip()]
    if not refused:
        first, refused = "this version cannot run it:", [first]
    facts: dict[str, Any] = {"file": str(args.model), "bytes": Path(args.model).stat().st_size, "refused": refused}
    if Path(args.model).suffix.lower() == ".onnx":
        import onnx
        model = onnx.load(args.model, load_external_data=False)
        held = {tensor.name for tensor in model.graph.initializer}
        facts.update(
            opset=max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=None),
            inputs=[{"name": i.name, "shape": _onnx_shape(i)} for i in model.graph.input if i.name not in held],
            outputs=[{"name": o.name, "shape": _onnx_shape(o)} for o in model.graph.output],
            nodes=len(model.graph.node),
            parameters=sum(math.prod(tensor.dims) for tensor in model.graph.initializer))
    if args.json:
        terminal.say(json.dumps(facts, indent=1))
        return 0
    terminal.say(f"{facts['file']} ({bytes_text(facts['bytes'])})")
    if "nodes" in facts:
        rows = [[kind[:-1], entry["name"], shape_text(entry["shape"])] for kind in ("inputs", "outputs")
                for entry in facts[kind]]
        terminal.table(["", "name", "shape"], rows)
        terminal.say(f"{facts['nodes']} nodes of opset {facts['opset']}, {facts['parameters']:,} parameters")
    terminal.say(f"\n{first}")
    for line in refused:
        terminal.say(f"  {line}")
    return 0


def _onnx_shape(value: Any) -> list[int | None]:
    return [d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim]
