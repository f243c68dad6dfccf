"""A network's plan without the network: what memory it would take, before anything is compiled or allocated."""
from __future__ import annotations

from typing import Any

from microcnn.net import Net


class PlannedNet(Net):
    """A Net that knows its memory and its layers' costs, and cannot run."""

    def __init__(self, graph: Any, batch: int = 1, train: Any = None, loss: Any = None, optimizer: Any = None,
                 bn: str = "frozen", dtype: str = "float32",
                 input_shapes: dict[str, tuple[int, ...]] | None = None):
        super().__init__(graph, batch=batch, train=train, loss=loss, optimizer=optimizer, bn=bn, dtype=dtype,
                         budget=None, input_shapes=input_shapes)

    def _allocate(self, size: int) -> Any:
        return self._cache.aligned_bytes(self._control_bytes)

    def _load_parameters(self) -> None:
        pass

    def _build_programs(self, *_: Any) -> None:
        pass
