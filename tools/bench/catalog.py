"""Which peers there are, what each can do, and which Python runs it."""
from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from microcnn.errors import FileError, MicroCNNError

JOBS = {"infer": "inference", "train": "a whole training step", "last": "a step that trains the last layer"}


@dataclass(frozen=True)
class Peer:
    """A library as it is measured.

    module     its runner, in runners/
    title      what readers know it as
    jobs       what it can do
    sibling    the peer whose interpreter it shares
    converter  the peer that writes the model in its form
    """

    name: str
    module: str
    title: str
    jobs: tuple[str, ...] = tuple(JOBS)
    sibling: str | None = None
    converter: str | None = None


PEERS = {peer.name: peer for peer in (
    Peer("microcnn", "peer_microcnn", "microcnn"),
    Peer("torch", "peer_torch", "PyTorch, eager"),
    Peer("torch-cl", "peer_torch", "PyTorch, eager, channels last", sibling="torch"),
    Peer("torch-compile", "peer_torch", "PyTorch, compiled", sibling="torch"),
    Peer("tf", "peer_tf", "TensorFlow"),
    Peer("ort", "peer_ort", "ONNX Runtime", ("infer",)),
    Peer("ort-training", "peer_ort_training", "ONNX Runtime Training", ("train", "last")),
    Peer("litert", "peer_litert", "LiteRT", ("infer",), converter="tf"),
    Peer("openvino", "peer_openvino", "OpenVINO", ("infer",)),
    Peer("jax", "peer_jax", "JAX"),
)}


def chosen(names: Sequence[str]) -> list[Peer]:
    """Peers by name. Raises MicroCNNError for one that is not there."""
    for name in names:
        if name not in PEERS:
            raise MicroCNNError(f"there is no peer {name!r}; expected one of {', '.join(PEERS)}")
    return [PEERS[name] for name in dict.fromkeys(names)]


def interpreters(given: Sequence[str]) -> dict[str, str]:
    """{peer: interpreter} from options NAME=PATH. Raises MicroCNNError for unknown peers, FileError for what cannot run."""
    found: dict[str, str] = {}
    for option in given:
        name, equals, path = option.partition("=")
        if not equals or name not in PEERS:
            raise MicroCNNError(f"--python {option}: expected PEER=PATH with PEER one of {', '.join(PEERS)}")
        if not (Path(path).is_file() and os.access(path, os.X_OK)):
            raise FileError(f"--python {option}: {path} is no program that can be run")
        found[name] = os.path.abspath(path)     # not resolved: a link in a virtual environment is what makes it one
    return found


def interpreter_of(peer: Peer, given: dict[str, str]) -> str:
    """The Python that runs a peer: the one given for it or for its sibling, else this one."""
    return given.get(peer.name) or given.get(peer.sibling or "") or sys.executable
