"""Runs onnx's own backend test cases against this library: python -m microcnn.tools.onnx_conformance

Prints how many cases pass, fail and are refused, by operator, with the reasons of what is refused; --readme FILE writes the
operators' table into a README, between its two markers.
"""
from __future__ import annotations

import argparse
import collections
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto
from onnx.backend.test.runner import BackendIsNotSupposedToImplementIt

import microcnn as mc
from microcnn.files import atomic_write

from .onnx_backend import MicroCNNBackend, as_array
from .terminal import Terminal

# Between these lines a README holds the table.
MARKERS = "<!-- operators -->", "<!-- end of operators -->"


@dataclass(frozen=True)
class TestCase:
    """A model with inputs and the outputs that it has to give, within the tolerances."""

    __test__ = False

    name: str
    model: ModelProto
    data_sets: list[tuple[list[Any], list[Any]]]
    rtol: float
    atol: float

    @property
    def operators(self) -> list[str]:
        """The operators in the model, sorted."""
        return sorted({node.op_type for node in self.model.graph.node})


@dataclass
class Outcome:
    """What became of a case. verdict: "passed", "failed" or "refused"; reason: why, if it did not pass."""

    case: TestCase
    verdict: str
    reason: str = ""


@dataclass
class Tally:
    """Outcomes of the cases of one operator."""

    passed: int = 0
    failed: int = 0
    refused: int = 0
    reasons: collections.Counter[str] = field(default_factory=collections.Counter)


def node_cases() -> Iterator[TestCase]:
    """The cases of single operators in the installed onnx package."""
    from onnx.backend.test.loader import load_model_tests
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load_model_tests(kind="node")
    for case in loaded:
        if case.model is not None:
            yield TestCase(case.name, case.model, case.data_sets, case.rtol, case.atol)


def stored_cases(folder: Path) -> Iterator[TestCase]:
    """Cases from a folder of folders, each with model.onnx and io.npz: in<k>__<name> and out<k>__<name> for the k-th run."""
    for path in sorted(folder.glob("*/model.onnx")):
        model, sets = onnx.load(path), []
        held = {tensor.name for tensor in model.graph.initializer}
        with np.load(path.parent / "io.npz") as stored:
            for number in range(len({name.partition("__")[0] for name in stored.files if name.startswith("out")})):
                inputs = [stored[f"in{number}__{entry.name}"] for entry in model.graph.input if entry.name not in held]
                sets.append((inputs, [stored[f"out{number}__{entry.name}"] for entry in model.graph.output]))
        yield TestCase(path.parent.name, model, sets, 1e-3, 1e-7)


def judge(case: TestCase) -> Outcome:
    """Run one case."""
    if not any(expected for _, expected in case.data_sets):
        return Outcome(case, "failed", "it holds no outputs to compare with")
    try:
        for inputs, expected in case.data_sets:
            found = MicroCNNBackend.prepare(case.model).run(inputs)
            for one, want in zip(found, expected, strict=True):
                _compare(one, np.asarray(as_array(want)), case)
    except BackendIsNotSupposedToImplementIt as refusal:
        return Outcome(case, "refused", str(refusal))
    except AssertionError as wrong:
        return Outcome(case, "failed", " ".join(str(wrong).split())[:300])
    except mc.MicroCNNError as error:
        return Outcome(case, "refused", str(error))
    except Exception as crash:                 # a defect of ours: it is counted, and the run goes on
        return Outcome(case, "failed", f"{type(crash).__name__}: {crash}")
    return Outcome(case, "passed")


def _compare(found: np.ndarray, want: np.ndarray, case: TestCase) -> None:
    """As onnx's own runner compares."""
    assert found.dtype == want.dtype, f"dtype {found.dtype}, expected {want.dtype}"
    assert found.shape == want.shape, f"shape {found.shape}, expected {want.shape}"
    if want.dtype.kind == "V" or want.dtype.name == "bfloat16":      # numpy cannot compare these
        found, want = found.astype(np.float32), want.astype(np.float32)
    np.testing.assert_allclose(found, want, rtol=case.rtol, atol=case.atol)


def tally(outcomes: list[Outcome]) -> dict[str, Tally]:
    """Outcomes by operator. A refusal that names nodes counts for their operators alone, not for those around them."""
    found: dict[str, Tally] = collections.defaultdict(Tally)
    for outcome in outcomes:
        named = set(re.findall(r'(\w+) "[^"]*" \(opset', outcome.reason)) if outcome.verdict == "refused" else set()
        for operator in outcome.case.operators:
            if named and operator not in named:
                continue
            one = found[operator]
            setattr(one, outcome.verdict, getattr(one, outcome.verdict) + 1)
            if outcome.verdict != "passed":
                one.reasons[outcome.reason] += 1
    return dict(sorted(found.items()))


def table(found: dict[str, Tally]) -> str:
    """The operators that run, and how many of onnx's cases each passes, as Markdown."""
    lines = ["| ONNX | cases that pass | refused, mostly because |", "|-|-|-|"]
    for operator, one in found.items():
        if not one.passed:
            continue
        reason = one.reasons.most_common(1)[0][0] if one.refused else ""
        lines.append(f"| {operator} | {one.passed} of {one.passed + one.failed + one.refused} | {_short(reason)} |")
    return "\n".join(lines)


def _short(reason: str) -> str:
    """A refusal without the names of one case."""
    text = reason.partition("; ")[0]
    text = text.partition("): ")[2] or text
    for name in re.findall(r'"[^"]*"', text):
        text = text.replace(name, "...")
    return text.replace("|", "/")[:110]


def write_table(path: Path, text: str) -> None:
    """Put the table between the markers of a README. Raises DataError where they are missing."""
    old = path.read_text()
    before, first, rest = old.partition(MARKERS[0])
    _, second, after = rest.partition(MARKERS[1])
    if not first or not second:
        raise mc.DataError(f"{path} has no place for the table; expected the lines {MARKERS[0]} and {MARKERS[1]}")
    atomic_write(path, [f"{before}{first}\n{text}\n{second}{after}".encode()])


def main(arguments: list[str] | None = None) -> int:
    """Run the cases and print the result. Returns 1 if one failed, crashed or gave a wrong answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=Path, metavar="FOLDER", help="stored cases instead of the onnx package's own")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains this")
    parser.add_argument("--operators", default="", metavar="A,B", help="cases of these operators only")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="write the table of operators into this file")
    parser.add_argument("--reasons", action="store_true", help="say of each case that did not pass why")
    args = parser.parse_args(arguments)
    terminal, outcomes = Terminal(), []
    wanted = set(filter(None, args.operators.split(",")))
    for case in stored_cases(args.cases) if args.cases else node_cases():
        if args.only in case.name and (not wanted or wanted & set(case.operators)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outcomes.append(judge(case))
            if args.reasons and outcomes[-1].verdict != "passed":
                terminal.say(f"{outcomes[-1].verdict} {case.name}: {outcomes[-1].reason}")
    for operator, one in tally(outcomes).items():
        terminal.say(f"{operator:24} {one.passed:4} passed {one.failed:4} failed {one.refused:4} refused")
    if args.readme:
        write_table(args.readme, table(tally(outcomes)))
    total = collections.Counter(outcome.verdict for outcome in outcomes)
    terminal.say(f"{len(outcomes)} cases: {total['passed']} passed, {total['failed']} failed, {total['refused']} refused")
    return 1 if total["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
