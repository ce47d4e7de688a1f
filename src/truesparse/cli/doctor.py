"""`truesparse doctor`: what does this machine have, and what of it is in use?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

EXTRAS = (
    "matplotlib",
    "triton",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "fastapi",
    "uvicorn",
    "lightning",
    "transformers",
    "tensorboard",
    "mlflow",
    "wandb",
)


def doctor(
    check: Annotated[
        bool, typer.Option("--check", help="Compute with every kernel on every instruction set, and compare; takes seconds.")
    ] = False,
) -> None:
    """Show kernels, instruction sets, GPUs, threads, extras and folders of this machine."""
    import os
    from importlib.util import find_spec

    import torch
    from rich.table import Table
    from rich.text import Text

    from .. import __version__, _core
    from ..common.processor import processor
    from ..data import cache_folder
    from ..ops import family
    from ..ops.table import describe
    from .doctor_gpu import facts as gpu_facts
    from .results import wide_console

    console = wide_console()
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("truesparse", __version__),
        ("torch", torch.__version__),
        ("processor", f"{processor()}, {os.cpu_count()} logical cores"),
        ("instruction sets", f"in force {_or_fault(_core.isa)}, supported {', '.join(_core.supported_isas())}"),
        ("TRUESPARSE_ISA", os.environ.get("TRUESPARSE_ISA") or "not set (the best supported is used)"),
        ("kernels in force", f"{_or_fault(family)} (TRUESPARSE_KERNELS {os.environ.get('TRUESPARSE_KERNELS') or 'not set'})"),
        *gpu_facts(),
        ("threads", f"{torch.get_num_threads()}, kernels through {_core.threading()}, torch through {_openmp()}"),
        ("extras installed", ", ".join(name for name in EXTRAS if find_spec(name)) or "none"),
        ("data folder", f"{cache_folder()} (TRUESPARSE_DATA {os.environ.get('TRUESPARSE_DATA') or 'not set'})"),
    ):
        facts.add_row(name, Text(value))  # not markup, which would take [gpu] for a style
    console.print(facts, highlight=False)
    kernels = Table("family", "operation", "devices", "dtypes", title="kernels")
    for row in describe():
        kernels.add_row(*row)
    console.print(kernels)
    if check and not _all_right():
        raise typer.Exit(1)


def _all_right() -> bool:
    """Shows what each kernel computed; whether all was right."""
    from rich.table import Table

    from .doctor_check import Check, checks
    from .results import wide_console

    found: dict[str, list[Check]] = {}
    for one in checks():
        found.setdefault(one.kernel, []).append(one)
    table = Table("kernel", "dtypes", "results compared", "with dense float64", title="check")
    for kernel, own in found.items():
        wrong = dict.fromkeys(f"{one.dtype} {what}" for one in own for what in one.wrong)
        dtypes = "/".join(dict.fromkeys(one.dtype for one in own))
        table.add_row(kernel, dtypes, str(sum(one.compared for one in own)), f"WRONG: {', '.join(wrong)}" if wrong else "right")
    wide_console().print(table, markup=False)
    right = not any(one.wrong for own in found.values() for one in own)
    print("every kernel is right" if right else "truesparse computes wrongly here: please report this table, and the one above it")
    return right


def _or_fault(ask: Callable[[], str]) -> str:
    """The answer, or why there is none: a doctor speaks of faults and has none."""
    try:
        return ask()
    except ValueError as error:
        return f"NONE: {error}"


def _openmp() -> str:
    """Which OpenMP runtime torch has loaded, by its file."""
    from pathlib import Path

    try:
        loaded = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return "an unknown runtime"
    names = {Path(line.split()[-1]).name for line in loaded if line.endswith(".so") or ".so." in line}
    return ", ".join(sorted(name for name in names if "omp" in name)) or "no OpenMP runtime"
