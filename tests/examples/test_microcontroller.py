"""The example for microcontrollers: what it trains and writes answers as in PyTorch, compiled here, and under qemu where that is."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "microcontroller"


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("microcontroller_train", EXAMPLE / "train.py")
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)
    folder = tmp_path_factory.mktemp("build")
    train.main(folder, epochs=6)
    return folder


def right(printed):
    return int(re.search(r"^(\d+) of 364 test images are right: \d\d\.\d\d %$", printed, re.MULTILINE)[1])


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_at_home(build, kind):
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    folders = (f"-I{build}", f"-I{build / kind}")
    flags = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror", *folders)
    subprocess.run(["gcc", *flags, "-o", build / f"{kind}-here", EXAMPLE / "src" / "main.c"], check=True)
    done = subprocess.run([build / f"{kind}-here"], capture_output=True, text=True, check=True)
    assert right(done.stdout) > 0.8 * 364
    if kind == "sparse":
        assert len(re.findall(r"\d+", (build / kind / "network.h").read_text())) < 0.5 * len(
            re.findall(r"\d+", (build / "dense" / "network.h").read_text())
        )


def test_the_makefile(build):
    for tool in ("make", "arm-none-eabi-gcc", "qemu-system-arm"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    subprocess.run(["touch", build / "images.h"], check=True)  # trained already
    done = subprocess.run(
        ["make", "-C", EXAMPLE, f"BUILD={build}", "run", "size"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    answers = re.findall(r"^(\d+) of 364", done.stdout, re.MULTILINE)
    assert len(answers) == 2
    assert "warning" not in done.stderr
    if (build / "sparse-here").exists():
        here = subprocess.run([build / "sparse-here"], capture_output=True, text=True, check=True)
        assert right(here.stdout) == int(answers[1])
