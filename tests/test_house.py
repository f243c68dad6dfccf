"""The house: the public face, what the README promises, packaging, and who may import what."""
import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import microcnn as mc

from .conftest import ROOT, shared

try:
    import tomllib
except ImportError:   # Python 3.10
    import tomli as tomllib

FACE = """load_onnx save_onnx load profile Profile Graph Net Sequential Conv2d Linear MaxPool2d AvgPool2d BatchNorm2d
ReLU SGD Adam AdamW CrossEntropyLoss MSELoss set_num_threads get_num_threads MicroCNNError __version__""".split()


def fresh(code):
    """Run code in a fresh process; returns what it prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def blocks(language):
    """The README's fenced blocks in a language."""
    text = (ROOT / "README.md").read_text()
    return [body for kind, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S) if kind == language]


def sources():
    """Every text file of the project."""
    for folder in ("microcnn", "tools", "models", "tests", ".ci"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".onnx", ".npz", ".mcnn"):
                yield path
    yield from (path for path in sorted(ROOT.iterdir()) if path.is_file() and path.name != ".git")


def test_dir_lists_every_public_name():
    assert set(FACE) <= set(dir(mc))
    for name in dir(mc):
        assert getattr(mc, name) is not None or name == "__doc__", name


def test_names_for_type_checkers_are_those_of_the_table():
    tree = ast.parse((ROOT / "microcnn" / "__init__.py").read_text())
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    told = {alias.asname: (node.module, alias.name) for node in checked.body for alias in node.names}
    assert told == mc._HOMES


def test_unknown_names_are_attribute_errors():
    assert not hasattr(mc, "load_tflite")
    with pytest.raises(AttributeError, match="module 'microcnn' has no attribute 'load_tflite'"):
        _ = mc.load_tflite


def test_a_bare_import_loads_nothing():
    loaded = fresh("import sys; import microcnn as mc; dir(mc); mc.__version__\n"
                   "print({name.partition('.')[0] for name in sys.modules}"
                   " & {'numpy', 'numba', 'llvmlite', 'onnx', 'rich'})")
    assert loaded == "set()"


def test_describing_a_network_loads_no_numba():
    loaded = fresh("import sys; import microcnn as mc\n"
                   "mc.SGD(), mc.CrossEntropyLoss(), mc.Dataset, mc.MicroCNNError, mc.set_num_threads, mc.load\n"
                   "print('numba' in sys.modules)")
    assert loaded == "False"


def test_without_onnx_the_remedy_is_named():
    told = fresh("import sys; sys.modules['onnx'] = None; import microcnn as mc\n"
                 "try: mc.load_onnx\n"
                 "except mc.MicroCNNError as error: print(error)")
    assert told == ("microcnn.load_onnx needs the package onnx, which is not installed; install it: "
                    "python -m pip install onnx")


def test_the_library_imports_numba_and_numpy_only():
    allowed = {"numba", "llvmlite", "numpy", *sys.stdlib_module_names}
    for path in (ROOT / "microcnn").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
                [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            outside = {name.partition(".")[0] for name in names} - allowed
            assert not outside, f"{path.relative_to(ROOT)} imports {outside}"


def test_every_package_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    homes = settings["package-dir"]
    found = set()
    for home, folder in homes.items():
        for path in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join([home, *path.parent.relative_to(ROOT / folder).parts]))
    assert set(settings["packages"]) == found, "list every package in pyproject.toml, [tool.setuptools] packages"


def test_data_of_the_package_is_there():
    from importlib.resources import files
    assert (files("microcnn.models") / "__init__.py").is_file()
    assert (files("microcnn") / "py.typed").is_file()


def test_readme_opens_with_the_two_commands():
    first, second = blocks("bash")[:2]
    assert first.rstrip().endswith("microcnn demo") and second.rstrip().endswith("-m pytest -n auto --dist loadfile")
    for block in (first, second):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_readme_examples_run(number, tmp_path):
    (tmp_path / "models").symlink_to(ROOT / "models")
    search = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run([sys.executable, "-W", "error", "-c", blocks("python")[number]], cwd=tmp_path, text=True,
                          capture_output=True, timeout=300, env={**os.environ, "PYTHONPATH": search})
    assert done.returncode == 0, done.stderr


def test_readme_on_adding_an_op_names_real_files():
    section = (ROOT / "README.md").read_text().partition("## Adding an op")[2].partition("\n## ")[0]
    named = re.findall(r"`([\w/]+\.py)`", section)
    assert len(named) >= 5
    assert [name for name in named if not (ROOT / name).is_file()] == []
    kernel, layer, test = (next(name for name in named if name.startswith(folder) and "activation" in name)
                           for folder in ("microcnn/kernels/", "microcnn/layers/", "tests/ops/"))
    assert f"test_{Path(kernel).name}" == f"test_{Path(layer).name}" == Path(test).name


def test_an_op_is_three_files():
    """As README says: what is there of Shrink stands in the files that it names, and its cases in onnx's suite pass."""
    files = [path for folder in ("microcnn", "tools", "tests", "models") for path in (ROOT / folder).rglob("*.py")
             if path != Path(__file__).resolve()]
    known = {str(path.relative_to(ROOT)) for path in files if re.search(r"\bShrink\b|\bshrink\.", path.read_text())}
    assert known == {"microcnn/kernels/shrink.py", "microcnn/layers/shrink.py", "tests/ops/test_shrink.py"}
    from microcnn.tools.onnx_conformance import judge, node_cases
    cases = [case for case in node_cases() if case.name in ("test_shrink_hard", "test_shrink_soft")]
    assert [judge(case).verdict for case in cases] == ["passed", "passed"]


def test_every_parallel_kernel_says_how_it_is_compiled():
    """Both decorators stand on the function itself: numba keeps the options of one that is shared."""
    njit = "numba.njit(parallel=True, cache=True, nogil=True, error_model='numpy')"
    parallel = []
    for path in sorted((ROOT / "microcnn" / "kernels").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and "numba.prange(" in ast.unparse(node):
                parallel.append(f"{path.stem}.{node.name}")
                assert [ast.unparse(one) for one in node.decorator_list] == ["kernel", njit], parallel[-1]
    assert len(parallel) > 50


def test_readme_names_every_subcommand():
    from microcnn.tools.cli import COMMANDS
    assert set(re.findall(r"^\| `microcnn (\w+)", (ROOT / "README.md").read_text(), re.M)) == set(COMMANDS)


def test_changelog_has_this_version():
    assert re.search(rf"^## {re.escape(mc.__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.M)


def test_nothing_depends_on_one_machine():
    places = ["/" + name + "/" for name in ("work", "root", "home", "opt")]
    beside = "../" + "shared"
    for path in sources():
        text = path.read_text()
        here = path.relative_to(ROOT)
        assert not any(place in text for place in places), here
        assert beside not in text or here.parts[0] in ("tests", ".ci"), here


def test_the_corpus_is_found_where_it_is_said_to_be(monkeypatch, tmp_path):
    monkeypatch.setenv("MICROCNN_SHARED", str(tmp_path))
    assert shared() == tmp_path
    monkeypatch.setenv("MICROCNN_SHARED", str(tmp_path / "missing"))
    with pytest.raises(AssertionError, match="which is no folder"):
        shared()
