"""What the tests of the command share: a small model, data that it can learn, and ways to run the command."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import microcnn as mc
from microcnn.tools.cli import main


def small_graph(classes: int = 3) -> Any:
    """A convolutional network for images (1, 8, 8)."""
    return mc.Sequential([mc.Conv2d(4, 3, padding=1), mc.ReLU(), mc.MaxPool2d(2), mc.Flatten(), mc.Linear(classes)],
                         input_shape=(1, 8, 8)).graph()


def stripes(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images (N, 8, 8) uint8 of three kinds: lying stripes, standing stripes, none."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, count)
    wave = 200 * (np.arange(8) % 2)
    kinds = np.stack([np.repeat(wave[:, None], 8, 1), np.repeat(wave[None], 8, 0), np.full((8, 8), 100)])
    return np.clip(kinds[y] + rng.integers(0, 55, (count, 8, 8)), 0, 255).astype(np.uint8), y.astype(np.int64)


def write_data(path: Path, count: int = 60, **changed: Any) -> Path:
    """A data file with x and y."""
    x, y = stripes(count)
    np.savez(path, **{"x": x, "y": y, **changed})
    return path


def run(capsys: Any, *arguments: Any) -> tuple[int, str, str]:
    """The command in this process: exit code, standard output, standard error."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def start(*arguments: Any, before: str = "", **options: Any) -> subprocess.Popen[str]:
    """The command in a process of its own; `before` is Python code that runs first."""
    code = f"import sys\n{before}\nfrom microcnn.tools.cli import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}, **options)
