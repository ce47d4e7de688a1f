"""The C runs on Cortex-M3, M4F and M7F, and on RISC-V, under qemu: floats near PyTorch, int8 to the same bits as here."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from c_build import NETWORKS, called, settled, sparse

import truesparse as ts

MACHINES_FILE = Path(__file__).parents[2] / "benchmarks" / "microcontroller" / "machines.py"
SAMPLES = 5


def _machines():
    spec = importlib.util.spec_from_file_location("machines", MACHINES_FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["machines"] = module
    spec.loader.exec_module(module)
    return module


machines = _machines()

MAIN = """
#include <stdio.h>
#include <string.h>
static const uint32_t inputs[] = { INPUTS };
int main(void)
{
    static float x[SIZE], y[OUTPUTS];
    for (int sample = 0; sample < SAMPLES; ++sample) {
        memcpy(x, inputs + sample * SIZE, sizeof x);
        if (net_predict(x, y) != 0)
            return 1;
        for (int i = 0; i < OUTPUTS; ++i) {
            uint32_t bits;
            memcpy(&bits, y + i, 4);
            printf("%08lx\\n", (unsigned long)bits);
        }
    }
    return 0;
}
"""


def printed(machine, exported, x, outputs, folder):
    bits = ", ".join(f"{one}u" for one in x.numpy().view(np.uint32).ravel())
    text = MAIN
    for name, value in (("INPUTS", bits), ("OUTPUTS", outputs), ("SIZE", x[0].numel()), ("SAMPLES", len(x))):
        text = text.replace(f"{{ {name} }}" if name == "INPUTS" else name, f"{{ {value} }}" if name == "INPUTS" else str(value))
    (folder / "main.c").write_text(f'#define NET_STORAGE static\n#include "{exported.path}"\n{text}')
    machine.build(folder / "main.c", folder / "main.elf", "-Os", ("-Wall", "-Wextra", "-Wconversion", "-Werror"))
    words = machine.run(folder / "main.elf").split()
    return np.array([int(one, 16) for one in words], np.uint32).view(np.float32).reshape(len(x), outputs)


@pytest.mark.parametrize("values", ["float32", "int8"])
@pytest.mark.parametrize("kind", ["residual", "wrist", "gru", "lstm", "perceptron"])
@pytest.mark.parametrize("name", machines.MACHINES)
def test_under_qemu(name, kind, values, tmp_path):
    machine = machines.MACHINES[name]
    if machine.missing:
        pytest.skip(f"{machine.missing} is not installed")
    model = sparse(settled(NETWORKS[kind](), *NETWORKS[kind]().shape), 0.8)
    x = torch.randn(SAMPLES, *model.shape)
    exported = ts.export_c(model, x, tmp_path / "net.h", values=values, calibration=[x] if values == "int8" else None)
    with torch.no_grad():
        want = model(x).numpy()
    given = printed(machine, exported, x, want.shape[1], tmp_path)
    if values == "int8":
        assert np.array_equal(given, called(exported, x.numpy(), want.shape[1:]))
    else:
        assert np.abs(given - want).max() < 1e-5


def test_instructions_are_counted(tmp_path):
    machine = machines.MACHINES["m3"]
    if machine.missing:
        pytest.skip(f"{machine.missing} is not installed")
    loop = 'for (int i = 0; i < {0}; ++i) __asm__ volatile("nop");'
    counts = []
    for turns in (100, 200):
        body = f"{machines.BEGIN}(); {loop.format(turns)} {machines.END}();"
        (tmp_path / "main.c").write_text(f"{machines.MARKERS}int main(void) {{ {body} return 0; }}\n")
        machine.build(tmp_path / "main.c", tmp_path / "main.elf", "-O1")
        counts.append(machine.instructions(tmp_path / "main.elf"))
    assert counts[1] - counts[0] == 300  # nop, subtract, branch
