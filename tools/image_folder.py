"""Images in a folder for each class, read with Pillow, in the size and with the channels that a model takes."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from microcnn.data import Dataset, Parts
from microcnn.errors import DataError, FileError, MicroCNNError
from microcnn.normalize import Normalization

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
TEST_NAMES = ("test", "val", "validation")


def is_image_folder(folder: Path) -> bool:
    """Whether there are images in the folder, in folders of it, or in folders of those."""
    return any(path.suffix.lower() in SUFFIXES for depth in ("*", "*/*", "*/*/*") for path in folder.glob(depth))


def load_images(folder: Any, shape: tuple[int, ...], normalization: Normalization | None = None, targets: bool = True
                ) -> tuple[Parts, list[str], dict[str, list[str]]]:
    """(data, class names, file names by part) of a folder of class folders; with folders train and test (or val) both parts.

    shape    of one sample, (C, H, W) or (H, W, C) with one or three channels: images are resized to it (bilinear), grey or
             RGB, kept as uint8
    targets  without them images may also lie in the folder itself

    Raises FileError for what cannot be read, DataError where there are no classes, or others in test than in train.
    """
    folder = Path(folder)
    first, height, width = _layout(shape)
    parts = {path.name.lower(): path for path in _folders(folder)}
    train, test = parts.get("train"), next((parts[name] for name in TEST_NAMES if name in parts), None)
    roots = {"train": train or (None if test else folder), "test": test}
    names: list[str] = []
    made: dict[str, Dataset] = {}
    paths: dict[str, list[str]] = {}
    for part, root in roots.items():
        if root is None:
            continue
        files, labels, found = _listed(root, targets)
        if names and found != names:
            raise DataError(f"{root} has the classes {found}, but training has {names}; they must be the same")
        names = found
        x = np.stack([_image(file, (height, width), shape[0 if first else 2]) for file in files])
        x = x.transpose(0, 3, 1, 2) if first else x
        y = np.array(labels, np.int64) if labels else None
        paths[part] = [file.relative_to(folder).as_posix() for file in files]
        made[part] = Dataset(np.ascontiguousarray(x), y, normalization, f"{folder.name} ({part})")
    return Parts(made.get("train"), made.get("test")), names, paths


def _layout(shape: tuple[int, ...]) -> tuple[bool, int, int]:
    """(channels first, height, width) of a model's input."""
    if len(shape) == 3 and shape[0] in (1, 3):
        return True, shape[1], shape[2]
    if len(shape) == 3 and shape[2] in (1, 3):
        return False, shape[0], shape[1]
    raise DataError(f"the model takes samples of shape {shape}; images need (channels, height, width) or (height, width, "
                    "channels) with 1 or 3 channels; give --shape, or an .npz file")


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise FileError(f"{folder} cannot be read: {error.strerror}; expected a folder of class folders of images") from error


def _listed(root: Path, targets: bool) -> tuple[list[Path], list[int], list[str]]:
    """(files, labels, class names), in the order of the names."""
    classes = _folders(root)
    if not classes and not targets:
        files = sorted(path for path in root.iterdir() if path.suffix.lower() in SUFFIXES)
        if not files:
            raise DataError(f"{root} holds no images; expected files such as .png or .jpg")
        return files, [], []
    if len(classes) < 2 and targets:
        raise DataError(f"{root} has {len(classes)} class folders; expected at least 2, each with the images of a class")
    files, labels = [], []
    for label, one in enumerate(classes):
        images = sorted(path for path in one.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not images:
            raise DataError(f"{one} holds no images; expected files such as .png or .jpg, or remove the folder")
        files += images
        labels += [label] * len(images)
    return files, labels, [one.name for one in classes]


def _image(path: Path, size: tuple[int, int], channels: int) -> np.ndarray:
    """(H, W, C) uint8. Raises FileError."""
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise MicroCNNError("reading images needs the package Pillow, which is not installed; install it: python -m pip "
                            "install pillow") from None
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
            resized = upright.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise FileError(f"{path} cannot be read as an image ({error}); remove it or repair it") from error
    return np.asarray(resized, np.uint8).reshape(*size, channels)
