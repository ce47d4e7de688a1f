"""How fast are the kernels for GPUs, and are they right? Checks all of them first, then measures what the minutes allow.

    make bench-gpu                                                     on a GPU: nine minutes, and the page docs/guide/gpu.md
    python benchmarks/gpu.py --out build/bench/gpu --minutes 9         the same without the page
    TRITON_INTERPRET=1 python benchmarks/gpu.py --out toy              without a GPU: toy sizes, and no figure means anything

Every kernel, in every form and dtype, is held against dense products in float64; one that is wrong ends the program with 1. So does a line
whose result is wrong, after the others. Then come the parts below, what matters most first: a document of `truesparse bench` for each, in a
file of its own, written after every line. When the time is up, the lines that are left are named and left out. How is measured:
docs/guide/bench.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from truesparse import Block, FanIn, Unstructured, ops
from truesparse.bench import (
    NETWORKS,
    Conditions,
    Document,
    LayerCase,
    MemoryCase,
    RewireCase,
    StepCase,
    measure_layers,
    measure_memory,
    measure_rewirings,
    measure_steps,
)
from truesparse.bench.document import Row
from truesparse.bench.networks import Density, Network
from truesparse.bench.request import BESIDE, CONVOLUTIONS, convolution_of, multiplied_in
from truesparse.bench.work import Peaks, measure_peaks
from truesparse.cli.doctor_check import Check, checks_of_triton
from truesparse.ops.triton.loading import interpreted, state, usable_devices
from truesparse.runs.devices import device_here
from truesparse.runs.machine import hardware, machine
from truesparse.topology.geometry import Matrix
from truesparse.topology.patterns import PATTERNS, Pattern

SHARED = "shared-fan-in"
SRIGL = Matrix(rows=768, columns=3072)  # the layer of SRigL's table: Lasby et al. 2024, https://arxiv.org/abs/2305.02299
SPARSITIES = (0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Part:
    """Lines that go into one document.

    Args:
        name: of its file.
        command: as `truesparse bench` names the kind of its rows.
        cases: one at a time: when the time is up, those that are left are left out.
        dtype: "float32", "bfloat16": as `truesparse bench --dtype` takes it.
        seconds: of a case, guessed before there is one to go by: compiling its kernels, too.
    """

    name: str
    command: str
    cases: Sequence[Any]
    dtype: str = "float32"
    seconds: float = 5.0


@dataclass(frozen=True)
class Plan:
    """What is measured, in which order, and for how long a line is timed."""

    parts: tuple[Part, ...]
    missing: Mapping[str, str]  # parts that there would be, and why not
    seconds: float
    beside: tuple[str, ...] = BESIDE


def on_a_gpu(device: torch.device) -> Plan:
    """Nine minutes of a GPU."""
    forms = (Unstructured(), Block(16), Block(32), Block(64))
    convolutions = [convolution_of(name) for name in CONVOLUTIONS]
    million, ten_millions = Matrix(4096, 4096), Matrix(16384, 16384)

    def layers(pattern: Pattern, matrix: Matrix, batches: Sequence[int], sparsities: Sequence[float] = SPARSITIES) -> list[LayerCase]:
        return [LayerCase(matrix, (batch, matrix.columns), share, pattern) for batch in batches for share in sparsities]

    def steps(*names: str) -> list[StepCase]:
        return [StepCase(NETWORKS[name], NETWORKS[name].densities[-1]) for name in names]

    bfloat16 = partial(Part, dtype="bfloat16")
    shared = [layers(rule, SRIGL, (256, 2048)) + layers(rule, million, (2048,)) for rule in _shared()]
    return Plan(
        (
            Part("srigl", "linear", layers(FanIn(), SRIGL, (256, 1, 64, 2048))),
            Part("rewire", "rewire", [RewireCase(million, 0.94, 128, ("rigl", "set"))]),
            *(bfloat16("shared-bfloat16", "linear", cases) for cases in shared),
            *(Part("shared", "linear", cases) for cases in shared),
            bfloat16("blocks", "linear", [case for form in forms[1:] for case in layers(form, million, (2048,), (0.8, 0.9, 0.95))]),
            bfloat16("bitmap", "linear", layers(forms[0], million, (16, 2048), (0.5, 0.8, 0.9, 0.95))),
            Part("rows", "linear", layers(forms[0], million, (2048,), (0.9, 0.95, 0.99))),
            Part("memory", "memory", [MemoryCase(1, 16384, 0.99, 256, 1, str(device))], seconds=30),
            Part("large", "linear", layers(forms[0], ten_millions, (256,), (0.99,)), seconds=15),
            bfloat16("step-bfloat16", "step", steps("cifar-mlp", "resnet20", "gpt2-small", "resnet50"), seconds=30),
            Part("step", "step", steps("cifar-mlp", "resnet20", "gpt2-small", "resnet50"), seconds=30),
            Part("conv", "conv", [LayerCase(g, (64, g.in_channels, size, size), 0.9, forms[0]) for g, size, _ in convolutions]),
            Part("rewire-large", "rewire", [RewireCase(ten_millions, 0.96275, 128, ("rigl", "set"))], seconds=40),
        ),
        _missing(),
        seconds=0.1,
    )


def in_the_interpreter(device: torch.device) -> Plan:
    """A toy's worth of each, in float32: the interpreter rounds bfloat16 wrongly, and autocast leaves float16 alone."""
    matrix, larger = Matrix(16, 24), Matrix(32, 32)

    def layer(pattern: Pattern, of: Matrix, batch: int, sparsity: float) -> LayerCase:
        return LayerCase(of, (batch, of.columns), sparsity, pattern)

    def example(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(batch, 8), torch.randint(3, (batch,))

    toy = Network("toy", lambda: nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3)), example, 4, (Density(0.5),))
    geometry, size, _ = convolution_of("4,6,3,1,5")
    return Plan(
        (
            Part("srigl", "linear", [layer(FanIn(), matrix, batch, 0.75) for batch in (1, 4)]),
            Part("rewire", "rewire", [RewireCase(matrix, 0.75, 4, ("rigl", "set"))]),
            *(Part("shared", "linear", [layer(rule, larger, 4, 0.75)]) for rule in _shared()),
            Part("blocks", "linear", [layer(Block(16), larger, 4, 0.5)]),
            Part("rows", "linear", [layer(Unstructured(), larger, 4, 0.9)]),
            Part("memory", "memory", [MemoryCase(1, 32, 0.9, 2, 1, str(device))]),
            Part("step", "step", [StepCase(toy, toy.densities[0])]),
            Part("conv", "conv", [LayerCase(geometry, (2, geometry.in_channels, size, size), 0.75, Unstructured())]),
        ),
        _missing() | {"bitmap": "the interpreter rounds bfloat16 wrongly; the check above runs its kernels in float16"},
        seconds=0.001,
        beside=("dense_bfloat16", "sparse_float16", "two_four"),
    )


def _shared() -> list[Pattern]:
    return [PATTERNS[SHARED]()] if SHARED in PATTERNS else []


def _missing() -> dict[str, str]:
    found = {"packed": "`truesparse bench inference` measures the CPU only"}
    if SHARED not in PATTERNS:
        found["shared"] = f"there is no pattern {SHARED!r}"
    return found


@dataclass
class Budget:
    """The time there is."""

    seconds: float
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.began + self.seconds - time.monotonic()

    def say(self, text: str) -> None:
        minutes, seconds = divmod(max(int(self.left), 0), 60)
        print(f"[{minutes}:{seconds:02d} left] {text}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="Folder of the documents, one for each part.")
    parser.add_argument("--minutes", type=float, default=9.0, help="After which what is left is left out.")
    given = parser.parse_args(arguments)
    budget = Budget(60 * given.minutes)
    devices = usable_devices()
    if not devices:
        print(f"no GPU that the kernels run on, and TRITON_INTERPRET is not set: Triton {state()}", file=sys.stderr)
        return 1
    if devices[0] == "cpu":
        os.environ[ops.table.ENVIRONMENT_VARIABLE] = "triton"  # for processes of their own
    with ops.use("triton") if devices[0] == "cpu" else nullcontext():
        device = device_here(devices[0])
        wrong = check(budget, (1, 5) if device.type == "cpu" else None)
        if wrong:
            print("\n".join(wrong), "a kernel is wrong: nothing is measured", sep="\n", file=sys.stderr)
            return 1
        plan = in_the_interpreter(device) if device.type == "cpu" else on_a_gpu(device)
        left_out = measure(plan, device, given.out, budget)
    for name, why in left_out.items():
        print(f"left out: {name}: {why}")
    budget.say(
        f"{hardware(machine(device)) if device.type != 'cpu' else 'interpreter: no figure means anything'}; documents are in {given.out}"
    )
    return 1 if any(why.startswith("WrongResult") for why in left_out.values()) else 0


def check(budget: Budget, batches: Sequence[int] | None) -> list[str]:
    """What is wrong, a line for each kernel."""
    budget.say("every kernel against dense float64")
    found: list[Check] = list(checks_of_triton(batches))
    budget.say(f"{sum(one.compared for one in found)} results of {len({one.kernel for one in found})} kernels compared with dense float64")
    return [f"{one.kernel} in {one.dtype} is wrong: {', '.join(one.wrong)}" for one in found if one.wrong]


def measure(plan: Plan, device: torch.device, out: Path, budget: Budget) -> dict[str, str]:
    """Writes a document for each part; what was left out, and why."""
    out.mkdir(parents=True, exist_ok=True)
    peaks = measure_peaks(torch.get_num_threads(), device)
    left_out = dict(plan.missing)
    for part in plan.parts:
        rows: list[Row] = []
        conditions = Conditions((peaks.threads,), plan.seconds, getattr(torch, part.dtype), device, beside=beside(plan, part))
        guess = part.seconds if device.type != "cpu" else 0.0
        for number, case in enumerate(part.cases):
            if budget.left < guess:
                left_out[part.name] = f"no time for {len(part.cases) - number} of {len(part.cases)} lines, {guess:.0f} s each"
                break
            began = time.monotonic()
            try:
                with multiplied_in(tf32=False):
                    rows += taken(part.command, case, conditions, peaks, partial(tell, budget, part))
            except Exception as error:  # whatever a compiler, a driver or torch may say: no reason to lose the other lines
                left_out[f"{part.name}, line {number + 1}"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                continue
            guess = time.monotonic() - began
            write(part, rows, peaks, device, out)
    return left_out


def beside(plan: Plan, part: Part) -> tuple[str, ...]:
    """Ways in other dtypes: of forward passes in float32."""
    return plan.beside if part.dtype == "float32" and part.command == "linear" else ()


def taken(command: str, case: Any, conditions: Conditions, peaks: Peaks, say: Callable[[str], None]) -> Iterator[Row]:
    """The rows of one case. A new kind of line needs a branch here, and a `Part` in the plans above."""
    if isinstance(case, LayerCase):
        yield from measure_layers([case], conditions, [peaks], say)
    elif isinstance(case, StepCase):
        yield from measure_steps([case], conditions, [peaks], say)
    elif isinstance(case, RewireCase):
        yield from measure_rewirings([case], conditions, say)
    elif isinstance(case, MemoryCase):
        yield measure_memory(case, machine()["instruction_set"], say)
    else:
        raise TypeError(f"no {command} of {case}")


def tell(budget: Budget, part: Part, text: str) -> None:
    budget.say(f"{part.name}: {text}{'' if part.dtype == 'float32' else f', {part.dtype}'}")


def write(part: Part, rows: Sequence[Row], peaks: Peaks, device: torch.device, out: Path) -> None:
    """What there is of a part: a program that is ended early has written what it measured."""
    with_peaks = (peaks,) if part.command in ("linear", "conv", "step") else ()
    (out / f"{part.name}.json").write_text(Document(part.command, machine(device), part.dtype, with_peaks, tuple(rows)).to_json())


if __name__ == "__main__":
    if usable_devices() == ("cpu",):
        assert interpreted()
    sys.exit(main())
