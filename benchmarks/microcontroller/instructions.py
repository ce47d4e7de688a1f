"""From which sparsity on does a sparse layer execute fewer instructions than a dense one?

    python benchmarks/microcontroller/instructions.py [m3 m4 m7 riscv]

One linear layer and one convolution, as `ts.export_c` writes them, dense and at several sparsities, in floats and in int8, compiled with
-O2 and run under qemu. Instructions, not cycles: qemu knows no pipeline, no waiting for flash, no cache.

apt-get install gcc-arm-none-eabi picolibc-arm-none-eabi qemu-system-arm qemu-system-misc \
        gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from machines import BEGIN, END, MACHINES, MARKERS, Machine
from torch import nn

import truesparse as ts

SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear 256 -> 128": (lambda: nn.Linear(256, 128), (256,)),
    "convolution 3 x 3, 8 -> 8 channels of 12 x 12": (lambda: nn.Conv2d(8, 8, 3, padding=1), (8, 12, 12)),
}
MAIN = """
int main(void)
{{
    static {number} x[{inputs}] = {{1}}, y[{outputs}];
    {begin}();
    const int wrong = net_predict{suffix}(x, y);
    {end}();
    return wrong;
}}
"""


def measured(machine: Machine, layer: str, sparsity: float, values: str, folder: Path) -> tuple[int, int, int]:
    """(instructions, multiply-adds, bytes of flash) of one call."""
    make, shape = LAYERS[layer]
    torch.manual_seed(0)
    model, x = nn.Sequential(make()), torch.randn(16, *shape)
    if sparsity:
        ts.sparsify(model, sparsity, budget=ts.Uniform(dense_first=False))
    exported = ts.export_c(model.eval(), x, folder / "net.h", values=values, calibration=[x] if values == "int8" else None)
    item, number, suffix = (1, "int8_t", "_int8") if values == "int8" else (4, "float", "")
    sizes = {"inputs": exported.input_bytes // item, "outputs": exported.output_bytes // item}
    main = MAIN.format(number=number, suffix=suffix, begin=BEGIN, end=END, **sizes)
    (folder / "main.c").write_text(f'#include "net.h"\n{MARKERS}{main}')
    machine.build(folder / "main.c", folder / "main.elf")
    return machine.instructions(folder / "main.elf"), exported.multiply_adds, exported.flash


def main(names: list[str]) -> None:
    for machine in [MACHINES[name] for name in names or MACHINES]:
        if machine.missing:
            print(f"{machine.name}: {machine.missing} is not installed")
            continue
        print(f"\n{machine.name}\n")
        print("| layer | values | sparsity | instructions | of dense | a multiply-add | flash, bytes |\n|---|---|---:|---:|---:|---:|---:|")
        for layer in LAYERS:
            for values in ("float32", "int8"):
                dense = 0
                for sparsity in SPARSITIES:
                    with tempfile.TemporaryDirectory() as folder:
                        count, adds, flash = measured(machine, layer, sparsity, values, Path(folder))
                    dense = dense or count
                    row = f"{sparsity:.0%}", f"{count:,}", f"{count / dense:.2f}", f"{count / adds:.1f}", f"{flash:,}"
                    print(f"| {layer} | {values} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
