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


ARDUINO = """
#include <stdio.h>
struct Port {
  void begin(long) {}
  void print(const char *text) { printf("%s", text); }
  void print(int number) { printf("%d", number); }
  void println(int number) { printf("%d\\n", number); }
} Serial;
static void delay(unsigned long) {}
"""  # what the sketch needs of Arduino.h, with a terminal as its port


def test_as_an_arduino_sketch(build):
    """What Arduino makes of a sketch, C++ with prototypes before it, on a Cortex-M4F under qemu: the same predictions."""
    for tool in ("gcc", "arm-none-eabi-g++", "qemu-system-arm"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    (build / "Arduino.h").write_text(ARDUINO)
    sketch = EXAMPLE / "arduino" / "digits" / "digits.ino"
    loops = "int main() { setup(); for (int i = 0; i < 5; ++i) loop(); return 0; }"
    (build / "sketch.cpp").write_text(f'#include <Arduino.h>\nvoid setup();\nvoid loop();\n#include "{sketch}"\n{loops}\n')
    processor = ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16")
    memory = ("flash=0", "flash_size=0x400000", "ram=0x20000000", "ram_size=0x10000")
    places = [f"-Wl,--defsym=__{one}" for one in memory]
    picolibc = ("--specs=picolibc.specs", "--oslib=semihost", "--crt0=hosted", *places)
    language = ("-std=gnu++17", "-fno-exceptions", "-fno-rtti", "-Os", "-Wall", "-Wextra", "-Werror")
    folders = (f"-I{build}", f"-I{build / 'sparse'}")
    command = ("arm-none-eabi-g++", *language, *processor, *picolibc, *folders, "-o", build / "sketch.elf", build / "sketch.cpp")
    subprocess.run(command, check=True)
    board = ("qemu-system-arm", "-M", "mps2-an386", "-nographic", "-semihosting-config", "enable=on,target=native")
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    given = subprocess.run([*board, "-kernel", build / "sketch.elf"], **pipes, text=True, check=True, timeout=60).stdout
    subprocess.run(["gcc", "-std=c99", *folders, "-o", build / "sketch-here", EXAMPLE / "src" / "main.c"], check=True)
    here = subprocess.run([build / "sketch-here"], capture_output=True, text=True, check=True).stdout
    wanted = re.findall(r"image \d: (predicted \d, is \d)", here)
    assert len(wanted) == 5
    assert re.findall(r"predicted \d, is \d", given) == wanted


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
