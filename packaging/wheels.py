"""`make wheels`: which packages does a release have, and how are they built and tried on one Linux machine?

A wheel for CPython 3.11 and one for all from 3.12 (the stable ABI), for each kind of processor; those of another kind than this machine's
are cross-compiled, and installed nowhere here. And the source package.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILT, PACKAGES = ROOT / "build" / "wheels", ROOT / "dist"
PYTHON = sys.executable
PROCESSORS = ("x86_64", "aarch64")
VERSION = "import sys; print('%d%d' % sys.version_info[:2])"
HEADERS = "import sysconfig; print(sysconfig.get_path('include'))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pythons", nargs="+", default=["python3.11", "python3.12"], help="one before 3.12 and one from 3.12")
    parser.add_argument("--test-pythons", nargs="*", default=[], help="what each wheel is installed for and tried with, where it fits")
    parser.add_argument("--processors", nargs="+", default=PROCESSORS, choices=PROCESSORS)
    asked = parser.parse_args()
    run(PYTHON, "-m", "build", "--sdist", "--outdir", PACKAGES, ROOT)
    for processor in asked.processors:
        for python in asked.pythons:
            print(f"== {processor}, {python}", flush=True)
            wheel = repaired(build(found(python), processor))
            if "abi3" in wheel.name:
                run(PYTHON, "-m", "abi3audit", "--strict", "--verbose", wheel)
    run(PYTHON, "-m", "twine", "check", "--strict", *PACKAGES.glob("truesparse-*"))
    for python in asked.test_pythons:
        print(f"== tried with {python}", flush=True)
        try_out(found(python))


def found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise SystemExit(f"make wheels needs {program}, which is not on the path; name others with WHEEL_PYTHONS='...'")
    return path


def build(python: str, processor: str) -> Path:
    """The wheel as the compiler leaves it, in a folder of its own."""
    version = said_by(python, VERSION)
    into = BUILT / f"cp{version}-{processor}"
    shutil.rmtree(into, ignore_errors=True)
    settings, environment = [], dict(os.environ)
    if shutil.which("ccache"):
        environment.setdefault("CMAKE_CXX_COMPILER_LAUNCHER", "ccache")  # the kernels are the same for each Python
    if processor != os.uname().machine:
        compiler = found(f"{processor}-linux-gnu-g++")
        settings += [
            "-DCMAKE_SYSTEM_NAME=Linux",
            f"-DCMAKE_SYSTEM_PROCESSOR={processor}",
            f"-DCMAKE_CXX_COMPILER={compiler}",
            f"-DSKBUILD_SOABI=cpython-{version}-{processor}-linux-gnu",
        ]
        environment["_PYTHON_HOST_PLATFORM"] = f"linux-{processor}"
        environment["CPLUS_INCLUDE_PATH"] = str(foreign_headers(python, processor))
    environment |= {"CMAKE_ARGS": shlex.join(settings), "SKBUILD_BUILD_DIR": str(into / "build")}
    run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", into, ROOT, environment=environment)
    return next(into.glob("*.whl"))


def foreign_headers(python: str, processor: str) -> Path:
    """Debian keeps pyconfig.h apart for each processor. This machine's does for another one that is 64 bits and little-endian too."""
    headers = Path(said_by(python, HEADERS))
    own = headers.parent / f"{os.uname().machine}-linux-gnu" / headers.name / "pyconfig.h"
    into = BUILT / f"headers-{processor}"
    if own.exists():
        copy = into / f"{processor}-linux-gnu" / headers.name / "pyconfig.h"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(own, copy)
    return into


def repaired(wheel: Path) -> Path:
    """The same with the name of the oldest system it runs on, where packages are."""
    into = wheel.parent / "repaired"
    run(PYTHON, "-m", "auditwheel", "repair", "--plat", "auto", "--wheel-dir", into, wheel)
    return Path(shutil.copy(next(into.glob("*.whl")), PACKAGES))


def try_out(python: str) -> None:
    """Installs the wheel that fits into a new environment, where nothing else is, and computes with every kernel."""
    environment = BUILT / f"tried-{said_by(python, VERSION)}"
    shutil.rmtree(environment, ignore_errors=True)
    run(python, "-m", "venv", environment)
    installed = environment / "bin" / "python"
    run(
        installed,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--find-links",
        PACKAGES,
        "--only-binary=:all:",
        "truesparse",
    )
    run(installed, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", "truesparse")  # what it needs
    run(installed, "-m", "truesparse", "doctor", "--check", within=environment)


def run(*command: str | Path, within: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
    finished = subprocess.run([str(part) for part in command], cwd=within, env=environment)
    if finished.returncode:
        raise SystemExit(f"make wheels: {shlex.join(map(str, command))} ended with {finished.returncode}")


def said_by(python: str, program: str) -> str:
    return subprocess.run([python, "-c", program], check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
