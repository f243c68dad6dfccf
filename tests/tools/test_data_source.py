"""Data from .npz files, IDX files and folders of images, for the command."""
import gzip

import numpy as np
import pytest
from PIL import Image

import microcnn as mc
from microcnn.errors import CompileError, DataError, FileError
from microcnn.graph import Graph, Input, Node
from microcnn.normalize import Normalization
from microcnn.tools.data_source import load_data
from microcnn.tools.image_folder import load_images
from tests.test_idx import idx

from .command_line import run, small_graph, stripes


def picture(path, colour, size=(9, 6), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def coloured(tmp_path):
    """Two classes of images, of several sizes, kinds and modes."""
    root = tmp_path / "pictures"
    picture(root / "red" / "a.png", (255, 0, 0))
    picture(root / "red" / "deeper" / "b.jpg", (255, 0, 0), (40, 30))
    picture(root / "green" / "c.bmp", (0, 255, 0))
    picture(root / "green" / "d.png", (0, 255, 0, 255), mode="RGBA")
    picture(root / "green" / "e.GIF".lower(), 5, mode="P")
    (root / "green" / "notes.txt").write_text("no image")
    (root / ".hidden").mkdir()
    return root


def test_class_folders(coloured):
    parts, labels, files = load_images(coloured, (3, 8, 10))
    assert labels == ["green", "red"] and parts.test is None
    assert parts.train.x.shape == (5, 3, 8, 10) and parts.train.x.dtype == np.uint8
    np.testing.assert_array_equal(parts.train.targets, [0, 0, 0, 1, 1])
    assert (parts.train.x[0, 1] == 255).all() and (parts.train.x[0, 0] == 0).all()
    assert (parts.train.x[3, 0] > 250).all()
    assert files["train"][:3] == ["green/c.bmp", "green/d.png", "green/e.gif"] and len(files["train"]) == 5
    last, *_ = load_images(coloured, (8, 10, 3))
    np.testing.assert_array_equal(last.train.x, parts.train.x.transpose(0, 2, 3, 1))
    grey, *_ = load_images(coloured, (1, 8, 8))
    assert grey.train.x.shape == (5, 1, 8, 8) and 60 < grey.train.x[3].mean() < 90


def test_train_and_test_folders(tmp_path):
    for part in ("train", "val"):
        for name, grey in (("dark", 10), ("light", 200)):
            picture(tmp_path / part / name / "one.png", grey, mode="L")
    parts, labels, files = load_images(tmp_path, (1, 4, 4))
    assert labels == ["dark", "light"] and len(parts.train) == len(parts.test) == 2
    assert files == {"train": ["train/dark/one.png", "train/light/one.png"], "test": ["val/dark/one.png", "val/light/one.png"]}
    picture(tmp_path / "val" / "other" / "one.png", 7, mode="L")
    with pytest.raises(DataError, match="they must be the same"):
        load_images(tmp_path, (1, 4, 4))


def test_images_without_classes_to_predict(tmp_path):
    picture(tmp_path / "a.png", 3, mode="L")
    parts, labels, files = load_images(tmp_path, (1, 4, 4), targets=False)
    assert files == {"train": ["a.png"]}
    assert len(parts.train) == 1 and parts.train.targets is None and not labels
    with pytest.raises(DataError, match="0 class folders; expected at least 2"):
        load_images(tmp_path, (1, 4, 4))


def test_what_cannot_be_used(tmp_path, coloured):
    (coloured / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    with pytest.raises(FileError, match="broken.png cannot be read as an image"):
        load_images(coloured, (3, 8, 8))
    (coloured / "red" / "broken.png").unlink()
    (coloured / "blue").mkdir()
    with pytest.raises(DataError, match="blue holds no images"):
        load_images(coloured, (3, 8, 8))
    with pytest.raises(DataError, match="with 1 or 3 channels"):
        load_images(coloured, (4, 8, 8))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileError, match="neither IDX files .* nor class folders"):
        load_data(empty, small_graph())
    picture(tmp_path / "open" / "a" / "one.png", 3, mode="L")
    graph = Graph([Input("x", (1, None, None))], ["y"], [Node("Relu", "relu", ("x",), ("y",))], {})
    with pytest.raises(CompileError, match="--shape x=3,224,224"):
        load_data(tmp_path / "open", graph)


def striped_images(folder):
    """40 images in the folders kind0, kind1, kind2; their classes."""
    x, y = stripes(40)
    for number, (image, label) in enumerate(zip(x, y, strict=True)):
        path = folder / f"kind{label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(image, np.uint8).reshape(image.shape[-2:]), "L").save(path)
    return y


def test_predict_names_files_and_classes(tmp_path, capsys):
    small_graph().save(tmp_path / "small.mcnn")
    striped_images(tmp_path / "stripes")
    code, out, _ = run(capsys, "predict", tmp_path / "small.mcnn", "--data", tmp_path / "stripes", "--out", tmp_path / "y.npz")
    assert code == 0 and "file" in out and "kind0/" in out and "classes: kind" in out
    with np.load(tmp_path / "y.npz") as stored:
        assert list(stored["classes"]) == ["kind0", "kind1", "kind2"]
        files = list(stored["files"])
        assert len(files) == len(stored["y"]) == 40
        one = files.index(next(name for name in files if name.startswith("kind1/")))
        y = stored["y"][one]
    image = np.asarray(Image.open(tmp_path / "stripes" / files[one]), np.float32)
    np.testing.assert_allclose(y, mc.load(tmp_path / "small.mcnn").compile().predict(image[None, None])[0], rtol=1e-4)


def test_predict_names_classes_as_the_model_does(tmp_path, capsys):
    """Where folders hold other classes than the model's, each column says its own."""
    graph = small_graph()
    graph.meta["labels"] = ["lying", "standing", "none"]
    graph.save(tmp_path / "small.mcnn")
    for kind in ("standing", "none"):
        picture(tmp_path / "images" / kind / "one.png", 9, mode="L")
    code, out, _ = run(capsys, "predict", tmp_path / "small.mcnn", "--data", tmp_path / "images", "--out", tmp_path / "y.npz")
    rows = [line.split() for line in out.splitlines() if "one.png" in line]
    assert code == 0 and [(row[0], row[-1]) for row in rows] == [("none/one.png", "none"), ("standing/one.png", "standing")]
    with np.load(tmp_path / "y.npz") as stored:
        assert list(stored["classes"]) == graph.meta["labels"]


def test_finetune_on_images_keeps_the_class_names(tmp_path, capsys):
    small_graph().save(tmp_path / "small.mcnn")
    y = striped_images(tmp_path / "stripes")
    made = tmp_path / "new.mcnn"
    code, _, err = run(capsys, "finetune", tmp_path / "small.mcnn", "--data", tmp_path / "stripes", "--out", made,
                       "--scale", "1/255", "--epochs", 1, "--batch", 8)
    assert code == 0, err
    assert mc.load(made).meta["labels"] == [f"kind{label}" for label in sorted(set(y))]
    code, out, err = run(capsys, "evaluate", tmp_path / "new.mcnn", "--data", tmp_path / "stripes")
    assert code == 0 and "40 samples" in out, err


def test_idx_files(tmp_path):
    x, y = stripes(20)
    for name, array in (("t10k-images-idx3-ubyte.gz", np.asarray(x, np.uint8).reshape(len(x), *x.shape[-2:])),
                        ("t10k-labels-idx1-ubyte.gz", np.asarray(y, np.uint8))):
        (tmp_path / name).write_bytes(gzip.compress(idx(array)))
    parts = load_data(tmp_path, small_graph(), Normalization(scale=1 / 255)).parts
    assert parts.train is None and len(parts.to_evaluate) == 20
