"""How fast are the kernels for GPUs, and are they right? Checks each first, then measures: minutes on a GPU.

    python benchmarks/gpu.py --json build/bench/gpu.json                    on a GPU
    TRITON_INTERPRET=1 python benchmarks/gpu.py --json toy.json             without: toy sizes, and no figure means anything

1. Every kernel, in every form and dtype, against dense products in float64. One that is wrong ends the program with 1.
2. SRigL's table: a layer 3072 -> 768 with constant fan-in, forward, beside dense float32, TF32, bfloat16 and cuSPARSE CSR.
3. Training of a layer: forward and backward, by form.
4. A layer of 16384 x 16384 at 99 %: time of forward and backward, and memory at the peak.

Times are medians of interleaved calls, between events on the device; ratios are "times as fast as dense" of the dtype that is named.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from truesparse import Block, FanIn, SharedFanIn, Topology, Unstructured, __version__, ops
from truesparse.cli.doctor_check import Check, checks
from truesparse.ops.triton.loading import interpreted, state, usable_devices
from truesparse.topology.geometry import Matrix
from truesparse.topology.patterns import Pattern

ROUNDS = 20


@dataclass(frozen=True)
class Sizes:
    """What is measured: all of it on a GPU, a toy's worth in the interpreter."""

    table: tuple[int, int] = (768, 3072)  # rows, columns
    batches: tuple[int, ...] = (1, 64, 256, 2048)
    sparsities: tuple[float, ...] = (0.8, 0.9, 0.95, 0.99)
    training: tuple[int, int] = (4096, 4096)
    training_batch: int = 2048
    large: tuple[int, int] = (16384, 16384)
    rounds: int = ROUNDS


TOY = Sizes((32, 48), (1, 8), (0.8, 0.95), (32, 32), 16, (64, 64), 1)


@dataclass(frozen=True)
class Row:
    """One line: milliseconds by way, how many times as fast as dense float32 each is, and bytes at the peak where they are measured."""

    table: str
    case: str
    kernel: str
    milliseconds: dict[str, float] = field(default_factory=dict)
    times_as_fast: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="Where all figures go.")
    given = parser.parse_args()
    devices = usable_devices()
    if not devices:
        print(f"no GPU that the kernels run on, and TRITON_INTERPRET is not set: Triton {state()}", file=sys.stderr)
        return 1
    device = torch.device(devices[0])
    wrong = check()
    if wrong:
        print("\n".join(wrong), "a kernel is wrong: nothing is measured", sep="\n", file=sys.stderr)
        return 1
    rows = []
    for row in measured(device, TOY if device.type == "cpu" else Sizes()):
        shown = ", ".join(f"{way} {own:.3f} ms ({row.times_as_fast[way]:.2f})" for way, own in row.milliseconds.items())
        print(f"{row.table}: {row.case}: {shown}", flush=True)
        rows.append(asdict(row))
    machine = {"device": "interpreter" if device.type == "cpu" else torch.cuda.get_device_name(device), "torch": torch.__version__}
    document = {"schema": 1, "command": "gpu", "machine": {**machine, "truesparse": __version__, "triton": state()}, "rows": rows}
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(document, indent=1))
    return 0


def check() -> list[str]:
    """What is wrong, a line for each kernel."""
    found: list[Check] = [one for one in checks() if one.kernel.startswith("triton.")]
    print(
        f"{sum(one.compared for one in found)} results of {len({one.kernel for one in found})} kernels compared with dense float64",
        flush=True,
    )
    return [f"{one.kernel} in {one.dtype} is wrong: {', '.join(one.wrong)}" for one in found if one.wrong]


def measured(device: torch.device, sizes: Sizes) -> Iterator[Row]:
    for batch in sizes.batches:
        for sparsity in sizes.sparsities:
            yield forward(device, sizes, batch, sparsity)
    for pattern, dtype in (
        (Unstructured(), torch.float32),
        (Unstructured(), torch.bfloat16),
        (SharedFanIn(32), torch.float32),
        (SharedFanIn(32), torch.bfloat16),
        (Block(16), torch.bfloat16),
    ):
        for sparsity in sizes.sparsities:
            yield training("training", device, sizes.training, sizes.training_batch, sparsity, pattern, dtype, sizes.rounds)
    yield training("large", device, sizes.large, 256 if sizes.rounds > 1 else 2, 0.99, Unstructured(), torch.float32, sizes.rounds)


def forward(device: torch.device, sizes: Sizes, batch: int, sparsity: float) -> Row:
    """SRigL's table, a line of it."""
    topology = drawn(sizes.table, sparsity, FanIn(), device)
    values, x = torch.randn(topology.nnz, device=device), torch.randn(batch, topology.shape[1], device=device)
    weight = topology.scatter(values)
    with warnings.catch_warnings(action="ignore"):  # CSR is in beta, and what is made of a topology needs no check
        csr = torch.sparse_csr_tensor(topology.indptr, topology.indices, values, topology.shape, check_invariants=False)
    ways = {
        "dense float32": lambda: x @ weight.T,
        "dense bfloat16": on(lambda x, weight: x @ weight.T, x.bfloat16(), weight.bfloat16()),
        "CSR": lambda: (csr @ x.T).T,
    }
    if device.type == "cuda":
        ways["dense TF32"] = tf32(ways["dense float32"])
    kernels = []
    for dtype in (torch.float32, torch.bfloat16):
        with ops.use("triton"):
            verbs = ops.verbs_for(topology, Matrix(*topology.shape), dtype)
        kernels.append(verbs.name)
        ways[f"truesparse {named(dtype)}"] = on(verbs.spmm, values, x.to(dtype))
    return row("SRigL", f"{topology.shape[1]} -> {topology.shape[0]}, batch {batch}, {sparsity:.0%}", kernels, ways, device, sizes.rounds)


def training(
    table: str, device: torch.device, shape: tuple[int, int], batch: int, sparsity: float, pattern: Pattern, dtype: torch.dtype, rounds: int
) -> Row:
    """y, dW and dx of one layer."""
    topology = drawn(shape, sparsity, pattern, device)
    values, x, dy = (torch.randn(extent, device=device) for extent in (topology.nnz, (batch, shape[1]), (batch, shape[0])))
    with ops.use("triton"):
        verbs = ops.verbs_for(topology, Matrix(*shape), dtype)
    x, dy = x.to(dtype), dy.to(dtype)
    weight = topology.scatter(values).to(dtype)
    ways = {
        f"dense {named(dtype)}": lambda: (x @ weight.T, dy.T @ x, dy @ weight),
        f"truesparse {named(dtype)}": lambda: (verbs.spmm(values, x), verbs.backward(values, x, dy, (True, True, False))),
    }
    what = f"{shape[1]} -> {shape[0]}, batch {batch}, {sparsity:.0%}, {pattern}"
    return row(table, what, [verbs.name], ways, device, rounds)


def row(table: str, case: str, kernels: list[str], ways: dict[str, Callable[[], object]], device: torch.device, rounds: int) -> Row:
    peaks = {}
    for name, way in ways.items():  # compiles, and fills caches
        if device.type == "cpu":
            way()
            continue
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        way()
        peaks[name] = torch.cuda.max_memory_allocated(device) - before
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(elapsed(way, device))
    medians = {name: median(own) for name, own in times.items()}
    dense = next(own for name, own in medians.items() if name.startswith("dense"))
    return Row(table, case, ", ".join(kernels), medians, {name: dense / own for name, own in medians.items()}, peaks)


def elapsed(way: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call."""
    if device.type == "cpu":
        start = time.perf_counter()
        way()
        return (time.perf_counter() - start) * 1e3
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    way()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def on(call: Callable[..., object], *arguments: Tensor) -> Callable[[], object]:
    return lambda: call(*arguments)


def tf32(call: Callable[[], object]) -> Callable[[], object]:
    def allowed() -> object:
        torch.set_float32_matmul_precision("high")
        try:
            return call()
        finally:
            torch.set_float32_matmul_precision("highest")

    return allowed


def drawn(shape: tuple[int, int], sparsity: float, pattern: Pattern, device: torch.device) -> Topology:
    count = pattern.round(shape, round(shape[0] * shape[1] * (1 - sparsity)))
    return pattern.random(shape, count, torch.Generator().manual_seed(0)).to(device)


def named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    if usable_devices() == ("cpu",):
        assert interpreted()
    sys.exit(main())
