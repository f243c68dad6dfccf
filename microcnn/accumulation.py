"""A batch in parts: what each part's samples count in the mean over all, so that gradients of parts add up to the batch's."""
from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .losses import CrossEntropyLoss, Loss

Arrays = dict[str, np.ndarray]


def target_share(loss: Loss, target: np.ndarray) -> float:
    """What the mean over these targets divides by, in samples or in weights of classes."""
    return loss.target_weight(target) if isinstance(loss, CrossEntropyLoss) else float(len(target))


def spans(samples: int, size: int) -> Iterator[tuple[int, int]]:
    """(first sample, how many) of each part."""
    for begin in range(0, samples, size):
        yield begin, min(size, samples - begin)


class Parts:
    """The parts of a batch. size: the samples of one; outputs: those that have a loss.

    A loss multiplies each sample's part of the mean by a weight; here that is the sample's own, times the part's share.
    """

    def __init__(self, size: int, losses: dict[str, tuple[Loss, str]]):
        self.size, self._losses = size, losses
        self.weights: Arrays = {output: np.zeros(size, np.float64) for output in losses}

    def of(self, held: Arrays, samples: int) -> Iterator[tuple[int, int]]:
        """(first sample, how many) of each part; self.weights hold meanwhile what its samples count. held: as Net feeds it."""
        totals = {output: target_share(loss, held[f"target:{output}"]) for output, (loss, _) in self._losses.items()}
        own = held.get("sample_weight")
        for begin, count in spans(samples, self.size):
            for output, (loss, _) in self._losses.items():
                share = target_share(loss, held[f"target:{output}"][begin:begin + count])
                self.weights[output][:count] = (share / totals[output] if totals[output] else 0.0) \
                    * (1.0 if own is None else own[begin:begin + count])
            yield begin, count
