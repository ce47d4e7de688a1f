"""Microcontrollers that qemu has: how a program is built for each, what it prints, how many instructions it executes."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOSTED = ("--specs=picolibc.specs", "--oslib=semihost", "--crt0=hosted", "-DPICOLIBC_DOUBLE_PRINTF_SCANF")
SEMIHOSTING = ("-nographic", "-semihosting-config", "enable=on,target=native")
EACH_INSTRUCTION = ("-singlestep", "-d", "exec,nochain")  # a line of the log for each
SECONDS = 300

BEGIN, END = "begin_counting", "end_counting"
MARKERS = "".join(f'__attribute__((noinline)) void {name}(void);\nvoid {name}(void) {{ __asm__ volatile(""); }}\n' for name in (BEGIN, END))


def has_picolibc(compiler: str) -> bool:
    """Whether a cross-compiler that is installed has this C library."""
    asked = (compiler, "-print-file-name=picolibc.specs")
    return Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()).is_absolute()


@dataclass(frozen=True)
class Machine:
    """One of them.

    Args:
        name: for people.
        compiler: cross-compiler.
        flags: of the processor.
        memory: where flash and RAM begin, and how large they are here; real ones have less.
        emulator: command that runs an ELF file, which comes last.
    """

    name: str
    compiler: str
    flags: tuple[str, ...]
    memory: tuple[int, int, int]
    emulator: tuple[str, ...]

    @property
    def missing(self) -> str:
        """A tool that is not installed, or nothing."""
        tool = next((tool for tool in (self.compiler, self.emulator[0]) if shutil.which(tool) is None), "")
        return tool or ("" if has_picolibc(self.compiler) else f"picolibc for {self.compiler}")

    def build(self, source: Path, elf: Path, optimise: str = "-O2", flags: Sequence[str] = ()) -> None:
        """Compiles and links one file with picolibc.

        Raises:
            RuntimeError: with what the compiler says, if it refuses.
        """
        flash, ram, size = self.memory
        places = ",".join(
            f"--defsym=__{name}={hex(at)}" for name, at in (("flash", flash), ("ram", ram), ("flash_size", size), ("ram_size", size))
        )
        command = (self.compiler, "-std=c99", optimise, *self.flags, *HOSTED, *flags, f"-Wl,{places}", "-o", str(elf), str(source), "-lm")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)

    def run(self, elf: Path, *options: str) -> str:
        """What a program prints.

        Raises:
            RuntimeError: if it ends with another code than 0.
        """
        command = (*self.emulator, *SEMIHOSTING, *options, "-kernel", str(elf))
        # Some versions of qemu print what a program prints to stdout, others to stderr.
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(command, **pipes, text=True, check=False, timeout=SECONDS)
        if done.returncode:
            raise RuntimeError(f"{self.name}: ends with {done.returncode}: {done.stdout}")
        return done.stdout

    def instructions(self, elf: Path) -> int:
        """Instructions executed between the first `BEGIN` and the first `END` of a program that has `MARKERS`: counted, not estimated."""
        nm = subprocess.run((self.compiler, "-print-prog-name=nm"), capture_output=True, text=True, check=True).stdout.strip()
        listing = subprocess.run((nm, str(elf)), capture_output=True, text=True, check=True).stdout
        at = {line.split()[2]: int(line.split()[0], 16) & ~1 for line in listing.splitlines() if line.split()[-1] in (BEGIN, END)}
        count, counting = 0, False
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            self.run(elf, *EACH_INSTRUCTION, "-D", str(log))
            with log.open() as lines:
                for line in lines:
                    match = re.search(r"\[[0-9a-f]+/([0-9a-f]+)/", line)
                    if match is None:
                        continue
                    place = int(match[1], 16)
                    if place == at[END] and counting:
                        return count
                    counting = counting or place == at[BEGIN]
                    count += counting
        raise RuntimeError(f"{self.name}: the program never came to {END}")


def _arm(name: str, board: str, *flags: str) -> Machine:
    return Machine(name, "arm-none-eabi-gcc", ("-mthumb", *flags), (0, 0x20000000, 0x400000), ("qemu-system-arm", "-M", board))


MACHINES = {
    "m3": _arm("Cortex-M3", "mps2-an385", "-mcpu=cortex-m3"),
    "m4": _arm("Cortex-M4F", "mps2-an386", "-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"),
    "m7": _arm("Cortex-M7F", "mps2-an500", "-mcpu=cortex-m7", "-mfloat-abi=hard", "-mfpu=fpv5-sp-d16"),
    "riscv": Machine(
        "RV32IMAC",
        "riscv64-unknown-elf-gcc",
        ("-march=rv32imac", "-mabi=ilp32", "-mcmodel=medany"),
        (0x80000000, 0x80400000, 0x400000),
        ("qemu-system-riscv32", "-M", "virt", "-bios", "none"),
    ),
}
