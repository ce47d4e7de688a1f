"""The network of examples/microcontroller beside dense ones: flash, RAM, instructions of one image, and the whole test set on the machine.

    python benchmarks/microcontroller/digits.py            # pip install emlearn scikit-learn, for the row of emlearn

Everything is compiled with -Os for a Cortex-M4F and run under qemu. The network of emlearn holds the very weights of the dense one.
apt-get install gcc-arm-none-eabi picolibc-arm-none-eabi qemu-system-arm
"""

from __future__ import annotations

import copy
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from machines import BEGIN, END, MACHINES, MARKERS, Machine
from torch import nn

import truesparse as ts
from truesparse.tasks import digits_mlp

EXAMPLE = Path(__file__).parents[2] / "examples" / "microcontroller" / "train.py"
ALONE = "int network(const float *x, float *y);\nint network(const float *x, float *y) {{ {call} }}\n"
COUNTED = "int main(void) {{ static float x[64], y[10]; {begin}(); (void)network(x, y); {end}(); return 0; }}\n"
ALL = """
#include <stdio.h>
#include "images.h"
int main(void)
{{
    int right = 0;
    for (int image = 0; image < IMAGES; ++image) {{
        float x[64], y[10] = {{0}};
        int most = 0;
        for (int i = 0; i < 64; ++i)
            x[i] = ((float)images[image][i] - {mean}f) / {deviation}f;
        {answer}
        right += most == labels[image];
    }}
    printf("%d of %d", right, IMAGES);
    return 0;
}}
"""
LARGEST = "network(x, y); for (int i = 1; i < 10; ++i) most = y[i] > y[most] ? i : most;"


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def emlearn_header(model: nn.Module, x: torch.Tensor, y: torch.Tensor, path: Path) -> str:
    """The dense network as emlearn writes it; where its own headers are."""
    import emlearn
    from sklearn.neural_network import MLPClassifier

    layers: list[Any] = [module for module in model if isinstance(module, nn.Linear)]  # type: ignore[attr-defined]
    classifier = MLPClassifier([layer.out_features for layer in layers[:-1]], max_iter=1).fit(x.numpy(), y.numpy())
    classifier.coefs_ = [layer.weight.detach().numpy().T.copy() for layer in layers]
    classifier.intercepts_ = [layer.bias.detach().numpy() for layer in layers]
    emlearn.convert(classifier, method="inline", dtype="float").save(name="network_of", file=str(path))
    return emlearn.includedir


def measured(machine: Machine, folder: Path, header: Path, call: str, answer: str, flags: tuple[str, ...]) -> str:
    """flash | RAM | instructions | right"""
    head = f'#define NET_STORAGE static\n#include "{header}"\n{ALONE.format(call=call)}'
    source, elf = folder / "main.c", folder / "main.elf"
    source.write_text(head)
    command = (machine.compiler, "-Os", *machine.flags, "--specs=picolibc.specs", *flags, "-c", "-o", str(elf), str(source))
    subprocess.run(command, check=True)
    text, data, bss = subprocess.run(("arm-none-eabi-size", str(elf)), capture_output=True, text=True, check=True).stdout.split()[6:9]
    source.write_text(head + MARKERS + COUNTED.format(begin=BEGIN, end=END))
    machine.build(source, elf, "-Os", flags)
    count = machine.instructions(elf)
    source.write_text(head + ALL.format(mean=digits_mlp.MEAN, deviation=digits_mlp.DEVIATION, answer=answer))
    machine.build(source, elf, "-Os", (*flags, f"-I{folder}"))
    return f"{int(text) + int(data):,} | {int(data) + int(bss):,} | {count:,} | {machine.run(elf).strip()}"


def main() -> None:
    machine, train = MACHINES["m4"], example()
    if machine.missing:
        sys.exit(f"{machine.missing} is not installed")
    torch.manual_seed(0)
    (x, y), (test, answers) = (data.tensors for data in digits_mlp.data())
    start = digits_mlp.model()
    dense = train.trained(copy.deepcopy(start), x, y, train.EPOCHS, sparse=False)
    sparse = train.trained(ts.sparsify(copy.deepcopy(start), train.SPARSITY, budget="erk"), x, y, train.EPOCHS, sparse=True)
    print("| network | flash, bytes | RAM, bytes | instructions an image | right |\n|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images.h").write_text(train.images_header((test.flatten(1) * digits_mlp.DEVIATION + digits_mlp.MEAN).round(), answers))
        try:
            flags = (f"-I{emlearn_header(dense, x.flatten(1), y, folder / 'emlearn.h')}", "-std=gnu99")
        except ImportError as error:
            print(f"no row of emlearn: {error}", file=sys.stderr)
        else:
            call, answer = "y[0] = (float)network_of_predict(x, 64); return 0;", "network(x, y); most = (int)y[0];"
            print(f"| dense, float32, emlearn | {measured(machine, folder, folder / 'emlearn.h', call, answer, flags)} |", flush=True)
        for what, model in (("dense", dense), (f"{train.SPARSITY:.0%} sparse", sparse)):
            for values in ("float32", "int8"):
                ts.export_c(model, x[:1], folder / "net.h", values=values, calibration=[x] if values == "int8" else None)
                row = measured(machine, folder, folder / "net.h", "return net_predict(x, y);", LARGEST, ())
                print(f"| {what}, {values} | {row} |", flush=True)


if __name__ == "__main__":
    main()
