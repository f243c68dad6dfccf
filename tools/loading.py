"""Reading and writing models by the suffix of their file."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import microcnn as mc
from microcnn.errors import CompileError, FileError, UnsupportedError

SUFFIXES = (".onnx", ".mcnn")


Shapes = list[tuple[str | None, tuple[int, ...]]]


def load_model(path: Any, shapes: Shapes | None = None) -> Any:
    """The Graph in an .onnx or .mcnn file. Raises FileError and ModelError.

    shapes: as --shape gives them, for models that can only be understood with their open sizes filled in; a graph of a
    model that needs no such help keeps them open.
    """
    path = Path(path)
    check_suffix(path)
    if not path.exists():
        raise FileError(f"{path}: no such file")
    if path.is_dir():
        raise FileError(f"{path}: is a folder; expected an .onnx or .mcnn file")
    if path.suffix.lower() == ".mcnn":
        return mc.load(path)
    try:
        return mc.load_onnx(path)
    except UnsupportedError:
        if not shapes:
            raise
    from .onnx_read import input_names, read_model
    return mc.load_onnx(path, input_shapes=_by_name(input_names(read_model(path)[0]), shapes))


def file_name(path: Any) -> str:
    """What to call the model in a file: its name without the ending, or its folder's where that is just "model"."""
    path = Path(path).resolve()
    return path.parent.name if path.stem == "model" and path.parent.name else path.stem


def save_model(model: Any, path: Any) -> None:
    """Write a Net or Graph as its suffix says, atomically. Raises FileError."""
    path = Path(path)
    check_suffix(path)
    if path.suffix.lower() == ".mcnn":
        model.save(path)
    else:
        mc.save_onnx(model, path)


def check_suffix(path: Any) -> None:
    """Raises FileError unless the path ends in .onnx or .mcnn."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise FileError(f"{path}: expected a file that ends in .onnx or .mcnn")


def check_writable(path: Any) -> None:
    """Raises FileError unless a file can be made beside this path, so that a long run does not end in vain."""
    path = Path(path)
    if path.is_dir():
        raise FileError(f"{path}: is a folder; expected the name of a file")
    if path.exists() and not path.is_file():
        raise FileError(f"{path}: is not a regular file; expected the name of a file")
    folder = path.parent
    if not folder.is_dir():
        raise FileError(f"{path}: the folder {folder} does not exist; make it first")
    probe = folder / f".{path.name}.{os.getpid()}.probe"
    try:
        with open(probe, "xb"):
            pass
        probe.unlink()
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({error.strerror or error})") from error


def input_shapes(graph: Any, given: Shapes) -> dict[str, tuple[int, ...]] | None:
    """--shape as Graph.compile takes it; a shape without a name is that of the only input. Raises CompileError."""
    return _by_name([entry.name for entry in graph.inputs], given) if given else None


def _by_name(names: list[str], given: Shapes) -> dict[str, tuple[int, ...]]:
    """Shapes by input name. Raises CompileError for one without a name where there are several inputs."""
    shapes = {}
    for name, sizes in given:
        if name is None:
            if len(names) > 1:
                raise CompileError(f"--shape {','.join(map(str, sizes))} names no input, and the model has "
                                   f"{len(names)}: {', '.join(names)}; give it as NAME=3,32,32")
            name = names[0]
        shapes[name] = sizes
    return shapes


def shapes_for_data(graph: Any, given: dict[str, tuple[int, ...]] | None, sample: tuple[int, ...]
                    ) -> dict[str, tuple[int, ...]] | None:
    """input_shapes of a model with one input: where its sizes are open and none are given, those of the data.

    Raises CompileError where the model has several inputs: a data file holds one array of samples.
    """
    if len(graph.inputs) != 1:
        raise CompileError(f"the model has {len(graph.inputs)} inputs, {', '.join(entry.name for entry in graph.inputs)}; a "
                           "data file holds samples for one; use the Python interface")
    wanted = graph.inputs[0]
    if given or None not in wanted.shape:
        return given
    for candidate in (sample, *((*sample[:axis], 1, *sample[axis:]) for axis in range(len(sample) + 1))):
        if len(candidate) == len(wanted.shape) and all(size in (None, found) for size, found in
                                                       zip(wanted.shape, candidate, strict=True)):
            return {wanted.name: candidate}
    return None
