"""Linear layers of which most inputs are zero: packed beside dense PyTorch, for docs/guide/activation-sparsity.md

python benchmarks/zero_inputs.py               # 1 thread, about a minute; --threads 2, --values bfloat16, --batch 4

Every call has zeros in other places, and both ways are called with the same input, in turns. Packed with an example that has as many.
"""

import argparse
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

import truesparse as ts
from truesparse import _core
from truesparse.common.processor import processor
from truesparse.inference.choice import Memory

SHAPES = (4096, 4096), (3072, 768)
ZEROS = 0.0, 0.5, 0.8, 0.9, 0.95, 0.99
SPARSITIES = 0.0, 0.8, 0.9, 0.95


def inputs(batch: int, columns: int, zeros: float, count: int) -> list[Tensor]:
    return [torch.randn(batch, columns) * (torch.rand(batch, columns) >= zeros) for _ in range(count)]


def times_as_fast(dense: nn.Module, packed: nn.Module, given: list[Tensor], seconds: float, tolerance: float) -> float:
    """Ratio of the medians of calls in turns; nothing is timed whose result is wrong."""
    taken: dict[nn.Module, list[float]] = {dense: [], packed: []}
    expected = dense(given[0])
    off = float((packed(given[0]) - expected).abs().max() / expected.abs().max())
    if off > tolerance:
        raise SystemExit(f"the packed layer is off by {off:.1e} of the largest output: nothing is timed")
    end, place = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or place < 5:
        x = given[place % len(given)]
        for module, own in taken.items():
            start = time.perf_counter()
            module(x)
            own.append(time.perf_counter() - start)
        place += 1
    return median(taken[dense]) / median(taken[packed])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--values", default="float32", choices=("float32", "bfloat16", "int8"))
    parser.add_argument("--seconds", type=float, default=0.5, help="of timing for each cell")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    print(f"{processor()}, {_core.isa()}, {options.threads} thread(s), batch {options.batch}, {options.values}, torch {torch.__version__}")
    heads = [*(f"{zeros:.0%} zeros" for zeros in ZEROS), "packed for 90%, called with none"]
    print(f"\n| times as fast as dense | weights that are zero | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 2)}")
    with TemporaryDirectory() as folder:
        memory = Memory(Path(folder) / "layouts.json")
        for columns, rows in SHAPES:
            for sparsity in SPARSITIES:
                layer = nn.Linear(columns, rows)
                layer.weight *= torch.rand(rows, columns) >= sparsity
                dense, cells, packed = nn.Sequential(layer).eval(), [], {}
                for zeros in ZEROS:
                    given = inputs(options.batch, columns, zeros, 24)
                    packed[zeros] = ts.pack(dense, given[0], values=options.values, memory=memory)
                    ratio = times_as_fast(dense, packed[zeros], given, options.seconds, 1e-4 if options.values == "float32" else 3e-2)
                    (row,) = packed[zeros].explain().rows
                    cells.append(f"{ratio:.1f} {row.layout.split('(')[0].strip()}")
                ratio = times_as_fast(dense, packed[0.9], inputs(options.batch, columns, 0.0, 8), options.seconds, 3e-2)
                print(f"| {columns} -> {rows} | {sparsity:.0%} | {' | '.join(cells)} | {ratio:.1f} |", flush=True)


if __name__ == "__main__":
    main()
