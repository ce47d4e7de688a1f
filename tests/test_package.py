"""The package: what `import truesparse` brings along, what its metadata says, what building it without a compiler says."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import truesparse

ROOT = Path(__file__).parent.parent
SOURCE = Path(truesparse.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_importing_truesparse_imports_the_operators_and_no_library_but_torch():
    """So that it takes far less than 150 ms after torch, and a missing extra is missed only where it is used.

    Where Triton is installed, torch's counter of operations, which the operators tell of themselves, imports it: 0.15 s that are torch's.
    """
    no_triton = "sys.modules['triton'] = None"
    program = f"import sys, torch; {no_triton}; before = {{*sys.modules}}; import truesparse; print(*({{*sys.modules}} - before))"
    new = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120).stdout.split()
    assert {name.split(".")[0] for name in new} <= {"truesparse", "torch", *sys.stdlib_module_names}
    parts = {name.split(".")[1] for name in new if name.startswith("truesparse.")}
    assert parts == {"_core", "common", "ops", "topology"}, "others are imported when they are first used: see truesparse/__init__.py"
    assert len(new) < 50, "each module costs about a millisecond"


def test_every_name_is_there_when_it_is_asked_for():
    names = {*truesparse.__all__, "loggers", "plot", "rewiring", "topology"}
    assert all(getattr(truesparse, name) is not None for name in names)
    assert names <= {*dir(truesparse)}
    with pytest.raises(AttributeError, match="module 'truesparse' has no attribute 'forget'"):
        _ = truesparse.forget


def test_errors_name_extras_that_there_are():
    extras = {*PROJECT["optional-dependencies"]}
    named = set()
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        named |= set(re.findall(r"truesparse\[(\w+)\]", text))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "library":
                named |= {extra.value for extra in node.args[1:2] if isinstance(extra, ast.Constant)}
    assert {"onnx", "plot"} <= named
    assert named <= extras


def test_one_version():
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    changed = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert cited is not None
    assert changed is not None
    assert cited[1] == changed[1] == truesparse.__version__


def test_licences_of_all_that_is_compiled_are_in_the_package():
    files = {path.relative_to(ROOT).as_posix() for pattern in PROJECT["license-files"] for path in ROOT.glob(pattern)}
    assert files == {"LICENSE", "licenses/nanobind.txt", "licenses/robin_map.txt"}


@pytest.mark.skipif(not shutil.which("cmake"), reason="no cmake: pip brings one for the build alone")
def test_without_a_compiler_one_message_says_what_to_install(tmp_path):
    settings = {**os.environ, "CXX": str(tmp_path / "no-compiler")}
    finished = subprocess.run(["cmake", "-S", ROOT, "-B", tmp_path], capture_output=True, text=True, env=settings, timeout=120)
    assert finished.returncode != 0
    said = " ".join(finished.stderr.split())
    assert "there is no C++ compiler. Install one: apt-get install g++ (Debian, Ubuntu)" in said
    assert "pip install --only-binary truesparse truesparse" in said
    assert said.count("CMake Error") == 1
