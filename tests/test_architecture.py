"""The tree is as docs/architecture.md says: who imports whom, what is registered, what can be imported."""

import ast
import importlib
import pkgutil
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from torch.utils._device import _device_constructors

import truesparse
from truesparse.algorithms import ALGORITHMS

SOURCE = Path(truesparse.__file__).parent
PAGE = Path(__file__).parent.parent / "docs" / "architecture.md"
FILES = sorted(path for path in SOURCE.rglob("*.py"))

# The compiled kernels have no place in the order: these units call them or say which instruction set they use.
CALLS_KERNELS = {"topology", "ops", "runs", "inference", "bench", "cli"}
# Imported where they are used, because they are slow to load (rich) or extras (PIL, matplotlib, onnx). The command line starts faster
# if each command imports what it needs. Nothing else is imported inside a function.
LATE_PACKAGES = {"rich", "PIL", "matplotlib", "onnx", "onnxscript"}
ALGORITHMS_SEE = {"topology"}
# Modules that need an extra to be imported; nothing imports them but when they are used.
WITHOUT_EXTRA = set() if find_spec("triton") else {"truesparse.ops.triton.kernels"}
# Functions of torch that make a tensor on the default device where none is said.
MAKERS = {f"torch.{function.__name__}" for function in _device_constructors()}
PROCESSES_OF_THEIR_OWN = {"bench", "cli"}  # nobody else sets a default device there
DOORS = {"__init__", "__main__"}  # `import truesparse` and `python -m truesparse`: no units, and nothing else imports them


def levels():
    """Units of the package from the bottom up, a set for each line of the page."""
    block = PAGE.read_text().split("## Who imports whom")[1].split("```")[1]
    lines = [re.sub(r"\(.*", "", line) for line in block.strip().splitlines()]
    return [set(re.findall(r"[a-z]+", line)) for line in lines]


def unit_of(path):
    """The part of the package a file belongs to: its folder, or its own name."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path):
    """(module inside the package as a path of names, top-level package otherwise, whether inside a function) of each import."""
    package = ("truesparse", *path.relative_to(SOURCE).parent.parts)
    tree = ast.parse(path.read_text())
    inner = {id(node) for outer in ast.walk(tree) if isinstance(outer, ast.FunctionDef | ast.Lambda) for node in ast.walk(outer)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            whole = base == ("truesparse",) or (SOURCE.parent.joinpath(*base)).is_dir()
            names = [(*base, alias.name) if whole else base for alias in node.names]
        else:
            continue
        for name in names:
            yield name, id(node) in inner


def inside(path):
    """Units that a file imports, other than its own."""
    units = {name[1] for name, _ in imports(path) if name[0] == "truesparse" and len(name) > 1}
    return units - {unit_of(path), "__version__"}


def test_the_page_names_every_unit_once():
    named = [unit for level in levels() for unit in level]
    assert len(named) == len(set(named))
    assert set(named) == {unit_of(path) for path in FILES} - DOORS
    tree = PAGE.read_text().split("## The tree")[1].split("```")[1]
    for unit in named:
        assert re.search(rf"^\s+{unit}(\.py|/) ", tree, re.MULTILINE), f"the tree on the page lacks {unit}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_imports_only_from_above_it(path):
    unit, order = unit_of(path), levels()
    if unit in DOORS:
        return
    below = next(number for number, level in enumerate(order) if unit in level)
    allowed = set().union(*order[:below]) | ({"_core"} if unit in CALLS_KERNELS else set())
    assert inside(path) <= allowed, f"{unit} may not import {sorted(inside(path) - allowed)}"


@pytest.mark.parametrize("path", sorted((SOURCE / "algorithms").glob("*.py")), ids=lambda path: path.name)
def test_algorithms_see_topologies_only(path):
    assert inside(path) <= ALGORITHMS_SEE
    own = {name[2] for name, _ in imports(path) if name[:2] == ("truesparse", "algorithms") and len(name) > 2}
    assert own <= {"base"}
    text = {name for name, _ in imports(path)}
    assert not any(name[:2] in {("torch", "nn"), ("torch", "optim")} for name in text), "an algorithm knows no layer and no optimizer"


@pytest.mark.parametrize("path", [path for path in FILES if unit_of(path) != "cli"], ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_stand_at_the_top(path):
    late = {name[0] for name, is_inside in imports(path) if is_inside}
    assert late <= LATE_PACKAGES


@pytest.mark.parametrize(
    "path", [path for path in FILES if unit_of(path) not in PROCESSES_OF_THEIR_OWN], ids=lambda path: str(path.relative_to(SOURCE))
)
def test_tensors_are_made_on_a_device_that_is_said(path):
    """`device=None` says torch's default one, which a script may set to a GPU: kernels of the CPU would write where they cannot."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    makers = [call for call in calls if ast.unparse(call.func) in MAKERS]
    assert [f"{call.lineno}: {ast.unparse(call)}" for call in makers if not {"device", None} & {one.arg for one in call.keywords}] == []


def test_this_test_sees_imports():
    found = {unit for path in FILES if unit_of(path) == "rewiring" for unit in inside(path)}
    assert {"nn", "algorithms", "topology"} <= found
    assert "ops" in inside(SOURCE / "nn" / "sparse.py"), "'from .. import ops' counts"
    assert any(is_inside for _, is_inside in imports(SOURCE / "common" / "shown.py"))


def test_every_algorithm_file_registers_one_algorithm_under_its_name():
    files = {path.stem for path in (SOURCE / "algorithms").glob("*.py")} - {"__init__", "base"}
    assert set(ALGORITHMS) == files
    for name, algorithm in ALGORITHMS.items():
        assert algorithm.__module__ == f"truesparse.algorithms.{name}"
        assert getattr(truesparse.algorithms, algorithm.__name__) is algorithm
        page = importlib.import_module(algorithm.__module__).__doc__ or ""
        assert "https://" in page, f"{name} names no paper"


def test_every_module_says_which_question_it_answers_and_can_be_imported():
    for module in pkgutil.walk_packages(truesparse.__path__, "truesparse."):
        if module.name.endswith("__main__") or module.name in WITHOUT_EXTRA:
            continue
        imported = importlib.import_module(module.name)
        for name in getattr(imported, "__all__", ()):
            assert hasattr(imported, name), f"{module.name} promises {name}"
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path.name} has no docstring"


def test_types_are_shipped():
    assert (SOURCE / "py.typed").exists()
    assert (SOURCE / "_core.pyi").exists()
