"""Compiles the headers of tests and calls them; and the networks that they are made of."""

import ctypes
import itertools
import shutil
import subprocess

import numpy as np
import pytest
import torch
from torch import nn

import truesparse as ts

WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Wdouble-promotion", "-Werror")
COMPILERS = {
    "gcc": ("gcc", "-std=c99"),
    "clang": ("clang", "-std=c99"),
    "g++": ("g++", "-x", "c++", "-std=c++11"),
    "arm": ("arm-none-eabi-gcc", "-std=c99", "-mcpu=cortex-m0", "-mthumb", "--specs=picolibc.specs"),
    "arm++": (
        *("arm-none-eabi-g++", "-x", "c++", "-std=gnu++17", "-fno-exceptions", "-fno-rtti", "-mcpu=cortex-m4", "-mthumb"),
        "--specs=picolibc.specs",
    ),
    "riscv": ("riscv64-unknown-elf-gcc", "-std=c99", "-march=rv32imac", "-mabi=ilp32", "--specs=picolibc.specs"),
}
_numbers = itertools.count()  # a library of a name that is loaded already would not be loaded again


def needs(*tools):
    """Skips a test where one is missing."""
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
        if "-elf-" in tool or "-none-" in tool:
            asked = subprocess.run((tool, "-print-file-name=picolibc.specs"), capture_output=True, text=True, check=True)
            if not asked.stdout.startswith("/"):
                pytest.skip(f"picolibc for {tool} is not installed")


def compiled(command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run_of(name, kind, inputs, outputs, suffix=""):
    """C of a function that predicts several samples; without a return code of 0 it stops."""
    return f"""
int run{suffix}(const {kind} *x, {kind} *y, int n);
int run{suffix}(const {kind} *x, {kind} *y, int n)
{{
    for (int i = 0; i < n; ++i, x += {inputs}, y += {outputs}) {{
        const int wrong = {name}_predict{suffix}(x, y);
        if (wrong)
            return wrong;
    }}
    return 0;
}}
"""


def called(exported, x, output, suffix="", flags=("-O1",)):
    """What the C gives for a batch, [batch, *output]."""
    needs("gcc")
    number = next(_numbers)
    source, library = (exported.path.with_name(f"run{number}.{end}") for end in ("c", "so"))
    kind, dtype = ("int8_t", np.int8) if suffix else ("float", np.float32)
    text = run_of(exported.name, kind, x[0].size, int(np.prod(output)), suffix)
    source.write_text(f'#include "{exported.path}"\n{text}')
    compiled(("gcc", "-std=c99", *flags, *WARNINGS, "-shared", "-fPIC", "-o", library, source, "-lm"))
    y = np.full((len(x), *output), 99, dtype)
    x = np.ascontiguousarray(x, dtype)
    pointers = (one.ctypes.data_as(ctypes.c_void_p) for one in (x, y))
    assert getattr(ctypes.CDLL(str(library)), f"run{suffix}")(*pointers, len(x)) == 0
    return y


def sparse(model, sparsity):
    """In eval mode, every layer as sparse."""
    return ts.sparsify(model, sparsity, budget=ts.Uniform(dense_first=False)).eval() if sparsity else model.eval()


def settled(model, *shape):
    """With running statistics that are not those of a new BatchNorm."""
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, *shape) * 2 + 0.5)
    return model


class Residual(nn.Module):
    """Strides, dilation, groups, depthwise, 'same', a BatchNorm that nothing takes in, cat, both pools, softmax."""

    shape = (3, 16, 13)

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.wide, self.late = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4), nn.BatchNorm2d(8)
        self.pool, self.mean = nn.MaxPool2d(3, 2, 1), nn.AvgPool2d((3, 2), 1, (1, 0), count_include_pad=False)
        self.depth, self.head = nn.Conv2d(8, 8, (3, 1), groups=8, padding="same"), nn.Linear(8 * 4 * 3, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = self.pool(self.late(x + self.wide(x)))
        x = self.mean(torch.cat([x[:, :3], torch.tanh(self.depth(x))[:, 3:]], 1) * 1.5)
        return self.head(x.flatten(1)).softmax(-1)


class Wrist(nn.Module):
    """Steps first, as sensors give them: transposed, convolved along time, a mean over what is left."""

    shape = (21, 6)

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv1d(6, 8, 5, stride=2, padding=2), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2)),
            *(nn.Conv1d(8, 4, 1), nn.ReLU6(), nn.Conv1d(4, 4, 3, padding=1, groups=4), nn.Hardswish()),
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.body(x.transpose(1, 2)).mean(-1))


class Gates(nn.Module):
    """Two recurrent layers, of which only the last state is read; a linear layer at every step of another."""

    shape = (9, 6)

    def __init__(self, kind=nn.GRU):
        super().__init__()
        self.first, self.each, self.second = kind(6, 11, 2, batch_first=True), nn.Linear(11, 7), kind(7, 5, batch_first=True)
        self.head, self.has_cells = nn.Linear(10, 4), kind is nn.LSTM

    def forward(self, x):
        states, _ = self.first(x)
        last, ends = self.second(torch.sigmoid(self.each(states)))
        ends = ends[0] if self.has_cells else ends
        return self.head(torch.cat([last[:, -1], ends[-1]], 1))


class Perceptron(nn.Sequential):
    """Inputs so many that a sparse row has ways of more than 255 columns, twice 255 and exactly 255."""

    shape = (1, 30, 31)

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(930, 17), nn.LeakyReLU(0.1), nn.Linear(17, 33), nn.SiLU(), nn.Linear(33, 5, bias=False))


NETWORKS = {
    "residual": Residual,
    "wrist": Wrist,
    "gru": Gates,
    "lstm": lambda: Gates(nn.LSTM),
    "rnn": lambda: Gates(nn.RNN),
    "perceptron": Perceptron,
}
