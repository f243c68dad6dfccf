"""Data as the command takes it: an .npz file, a folder of IDX files, or a folder of class folders of images."""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microcnn.data import Parts, load_npz
from microcnn.errors import CompileError, FileError
from microcnn.graph import Graph
from microcnn.idx import find_idx, load_idx
from microcnn.normalize import Normalization

from .image_folder import is_image_folder, load_images


@dataclass
class Source:
    """Data, and the names of its classes and, by part, of its files where it tells them."""

    parts: Parts
    labels: list[str] = field(default_factory=list)
    files: dict[str, list[str]] = field(default_factory=dict)

    @property
    def files_to_evaluate(self) -> list[str]:
        """The files of the samples in parts.to_evaluate, in their order; empty where samples are no files."""
        return self.files.get("test" if self.parts.test is not None else "train", [])


def load_data(path: Any, graph: Graph, normalization: Normalization | None = None, targets: bool = True,
              shapes: dict[str, tuple[int, ...]] | None = None) -> Source:
    """The data at a path, for a graph. shapes: of one sample, for inputs whose sizes the model leaves open.

    Raises FileError, DataError.
    """
    path = Path(path)
    if not path.is_dir():
        return Source(load_npz(path, normalization, targets))
    if find_idx(path):
        return Source(load_idx(path, normalization))
    if not is_image_folder(path):
        raise FileError(f"{path} is a folder with neither IDX files (train-images-idx3-ubyte) nor class folders of images; "
                        "give one of these, or an .npz file")
    entry = graph.inputs[0]
    shape = (shapes or {}).get(entry.name, entry.shape)
    if None in shape:
        raise CompileError(f'input "{entry.name}" has open sizes; say which size images get: --shape {entry.name}=3,224,224')
    return Source(*load_images(path, tuple(int(n) for n in shape if n is not None), normalization, targets))
