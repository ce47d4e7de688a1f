"""Inputs that are no numbers leave the C inside its arrays, under AddressSanitizer and UndefinedBehaviorSanitizer."""

import subprocess

import numpy as np
import torch
from c_build import NETWORKS, compiled, needs, settled, sparse

import truesparse as ts

MAIN = """
int main(void)
{
    static float x[MOST], y[MOST];
    float sum = 0.0f;
    while (fread(x, sizeof *x, MOST, stdin) == MOST) {
        CALLS
        sum += y[0];
    }
    return sum < 0.0f ? 1 : 0; /* the compiler may not leave anything out */
}
"""


def test_nothing_outside_is_read_or_written(tmp_path):
    needs("gcc")
    lines, calls, most = ["#include <stdio.h>"], [], 0
    for number, (kind, values) in enumerate(
        [(kind, values) for kind in ("residual", "wrist", "gru", "lstm", "perceptron") for values in ("float32", "int8")]
    ):
        model = sparse(settled(NETWORKS[kind](), *NETWORKS[kind]().shape), 0.7)
        x = torch.randn(9, *model.shape)
        ts.export_c(model, x, tmp_path / f"n{number}.h", values=values, calibration=[x] if values == "int8" else None)
        lines.append(f'#include "n{number}.h"')
        calls.append(f"if (n{number}_predict(x, y) != 0) return 2;")
        most = max(most, x[0].numel())
    (tmp_path / "main.c").write_text("\n".join(lines) + MAIN.replace("CALLS", "\n        ".join(calls)).replace("MOST", str(most)))
    flags = ("-std=c99", "-g", "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all")
    compiled(("gcc", *flags, "-o", tmp_path / "main", tmp_path / "main.c", "-lm"))
    generator = np.random.default_rng(0)
    x = generator.choice(np.float32([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, 0.0, 1.0]), (50, most))
    x[0], x[1], x[2] = np.nan, np.inf, -np.inf
    done = subprocess.run([tmp_path / "main"], input=x.tobytes(), capture_output=True, check=False)
    assert done.returncode in (0, 1), done.stderr.decode()
    assert not done.stderr
