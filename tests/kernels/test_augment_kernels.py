"""Random changes of images against plain loops, and what the numbers drawn look like."""
import numpy as np
import pytest

from ..rows import run

STILL = {"shift_h": 0, "shift_w": 0, "flips": 0, "crop": 1.0, "brightness": 0.0, "noise": 0.0, "layer": -1}


def changed(x, layout="first", threads=1, batch=None, **how):
    """x (N, C, H, W) or, for layout last, (N, H, W, C), changed."""
    N, *sizes = x.shape
    outer, inner = (sizes[0], 1) if layout == "first" else (1, sizes[2])
    H, W = sizes[1:] if layout == "first" else sizes[:2]
    y = np.full(x.shape, np.nan, x.dtype)
    run("augment.forward", N, threads, str(x.dtype), x=x, y=y, outer=outer, H=H, W=W, inner=inner, **{**STILL, **how})
    return y


def images(N=8, C=3, H=5, W=7, dtype="float32"):
    return np.random.default_rng(3).standard_normal((N, C, H, W)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nothing_to_do_changes_nothing(dtype):
    x = images(dtype=dtype)
    np.testing.assert_array_equal(changed(x), x)


def moved(image, down, right):
    """(C, H, W) read `down` lower and `right` further right, the edge repeated."""
    _, H, W = image.shape
    return image[:, np.clip(np.arange(H) + down, 0, H - 1)][:, :, np.clip(np.arange(W) + right, 0, W - 1)]


@pytest.mark.parametrize("C", [1, 3, 17])
def test_shifts_and_flips(C):
    """Every sample is one of the images that the options allow, and each of them comes up."""
    x = images(400, C, 4, 5)
    y = changed(x, shift_h=1, shift_w=2, flips=3)
    seen = set()
    for before, after in zip(x, y, strict=True):
        found = [(down, right, up, side) for down in (-1, 0, 1) for right in (-2, -1, 0, 1, 2) for up in (1, -1)
                 for side in (1, -1) if (moved(before, down, right)[:, ::up, ::side] == after).all()]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) == 3 * 5 * 4


def test_only_the_flip_that_was_asked_for():
    x = images(60)
    for flips, view in ((1, np.s_[:, :, :, ::-1]), (2, np.s_[:, :, ::-1])):
        y = changed(x, flips=flips)
        mirrored = (y == x[view]).all((1, 2, 3))
        assert ((y == x).all((1, 2, 3)) ^ mirrored).all() and 15 < mirrored.sum() < 45


def between(image, rows, columns):
    """(H, W) read bilinearly at these fractional rows and columns."""
    H, W = image.shape
    low_h, low_w = rows.astype(int), columns.astype(int)
    next_h, next_w = np.minimum(low_h + 1, H - 1), np.minimum(low_w + 1, W - 1)
    down, across = (rows - low_h)[:, None], columns - low_w
    top = image[low_h][:, low_w] * (1 - across) + image[low_h][:, next_w] * across
    return top * (1 - down) + (image[next_h][:, low_w] * (1 - across) + image[next_h][:, next_w] * across) * down


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-5), ("float64", 1e-12)])
def test_crops(dtype, tolerance):
    """Two channels hold the coordinates, so that the result says where it was read; the third is read there too."""
    x = images(200, 3, 6, 9, dtype)
    x[:, 0], x[:, 1] = np.arange(6)[:, None], np.arange(9)
    y = changed(x, crop=0.5, flips=3).astype(float)
    parts = {6: [], 9: []}
    for before, after in zip(x, y, strict=True):
        rows, columns = after[0, :, 0], after[1, 0]
        np.testing.assert_allclose(after[0], np.broadcast_to(rows[:, None], (6, 9)), atol=tolerance)
        np.testing.assert_allclose(after[1], np.broadcast_to(columns, (6, 9)), atol=tolerance)
        np.testing.assert_allclose(after[2], between(before[2].astype(float), rows, columns), atol=10 * tolerance)
        for size, places in ((6, rows), (9, columns)):
            steps = np.diff(places[(places > 0) & (places < size - 1)])
            np.testing.assert_allclose(steps, steps[0], atol=10 * tolerance)
            assert places.min() >= 0 and places.max() <= size - 1
            parts[size].append(steps[0])
    for steps in parts.values():
        sizes = np.abs(steps)
        assert 0.5 - tolerance <= sizes.min() < 0.52 and 0.98 < sizes.max() <= 1 + tolerance
        assert 70 < (np.array(steps) < 0).sum() < 130


def test_brightness_and_noise():
    x = images(300, 1, 16, 16, "float64")
    added = changed(x, brightness=0.5) - x
    spread = np.ptp(added, (1, 2, 3))
    assert spread.max() < 1e-12
    levels = added[:, 0, 0, 0]
    assert -0.5 <= levels.min() < -0.45 and 0.45 < levels.max() <= 0.5 and abs(levels.mean()) < 0.05
    noise = changed(x, noise=0.2) - x
    assert abs(noise.mean()) < 1e-3 and abs(noise.std() - 0.2) < 2e-3
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.2


def test_layouts_and_threads_give_the_same():
    x = images(9, 4, 8, 6)
    how = {"shift_h": 2, "shift_w": 1, "flips": 3, "crop": 0.7, "brightness": 0.3}
    first = changed(x, **how)
    last = changed(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), "last", **how)
    np.testing.assert_array_equal(last.transpose(0, 3, 1, 2), first)
    how["noise"] = 0.1
    one = changed(x, threads=1, **how)
    assert (one == changed(x, threads=2, **how)).all()
    assert (one[:4] == changed(x[:4], **how)).all()
    assert (one != changed(x, **{**how, "layer": -2})).any()
