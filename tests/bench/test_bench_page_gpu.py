"""The page of a GPU, by hand-made documents: a table in each dtype, and nothing of an interpreter."""

import dataclasses

import pytest

from truesparse.bench import Document, LayerRow, MemoryRow, RewireRow, StepRow
from truesparse.bench.page import as_markdown
from truesparse.bench.work import Peaks
from truesparse.cli.bench_tables import print_document
from truesparse.runs import ConfigError

MACHINE = {
    "device": "cuda",
    "gpu": "NVIDIA H200",
    "cuda": "12.8",
    "kernels": "triton",
    "processor": "AMD EPYC",
    "instruction_set": "avx512",
    "threads": 8,
    "torch": "2.13.0",
}
LAYER = LayerRow(
    layer="3072 -> 768",
    pattern="FanIn()",
    sparsity=0.9,
    connections=1,
    batch=256,
    threads=8,
    direction="forward",
    seconds={"dense": 40e-6, "sparse": 80e-6, "dense_tf32": 20e-6},
    times_as_fast={"sparse": 0.5, "dense_tf32": 2.0},
    left_out={"two_four": "torch: not here"},
    multiply_adds=1,
    least_bytes=1,
    share_of_multiply_adds=0.1,
    share_of_bandwidth=0.2,
    kernel="triton.matrix[rows]",
    device_seconds={"dense": 30e-6, "sparse": 20e-6, "dense_tf32": 10e-6},
)
STEP = StepRow(
    network="ResNet-20",
    density="90 %",
    budget="erk",
    sparsity=0.9,
    connections=1,
    batch=128,
    threads=8,
    every=100,
    seconds={"dense": 2e-3, "masked": 4e-3, "sparse": 1e-3},
    plain_seconds={"dense": 2e-3, "masked": 4e-3, "sparse": 1e-3},
    rewiring_seconds={"masked": 5e-3, "sparse": 2e-3},
    times_as_fast={"masked": 0.5, "sparse": 2.0},
    phases={way: dict.fromkeys(("forward", "backward", "optimizer", "rewiring"), 1e-4) for way in ("dense", "masked", "sparse")},
    share_of_multiply_adds=0.1,
)
MEMORY = MemoryRow(1, 16384, 0.99, 2684354, 256, 8, {"weights": 10}, 36.0, 0, 10**9, 4 * 10**9, 1e-3, 2e-3)
REWIRE = RewireRow("4096 -> 4096", 0.94, 10**6, 128, 8, {"drop": 1e-3}, 2e-3, 3e-3, 1e-3, 3.0, {"rigl": 4.5e-3, "set": 2.25e-3})


def document(command="linear", rows=(LAYER,), dtype="float32", **machine):
    return Document(command, {**MACHINE, **machine}, dtype, (Peaks(8, 1e12, 1e12),), tuple(rows))


def test_the_tables():
    documents = [
        document(rows=(LAYER, dataclasses.replace(LAYER, direction="forward + backward", device_seconds={}))),
        document("step", (STEP,), "bfloat16"),
        document("memory", (MEMORY,)),
        document("rewire", (REWIRE,)),
    ]
    text = as_markdown(documents, None)
    assert text.startswith("NVIDIA H200, CUDA 12.8, torch 2.13.0. Medians of interleaved turns;")
    assert "AMD" not in text
    assert text.index("**float32**") < text.index("**bfloat16**")
    assert "| forward | batch | sparsity | kernel | dense | dense, TF32 | truesparse | times as fast |" in text
    line = "| 3072 -> 768, FanIn() | 256 | 0.9 | triton.matrix[rows] | "
    assert line + "30 us (40 us) | 10 us (20 us) | 20 us (80 us) | **1.50** (0.50) |" in text
    assert line + "40 us | 20 us | 80 us | **0.50** |" in text
    assert "Left out: 2:4, bfloat16: torch: not here" in text
    assert "| ResNet-20, 90 % | 128 | 8 | 2.0 ms | 4.0 ms | 1.0 ms | **2.0** |" in text
    assert "| 1 layers of 16384 x 16384 at 99% | 2,684,354 | 36.0 | 1.00 GB (0.00 before) | 4.0 GB |" in text
    assert "| whole, rigl, ms | whole, set, ms |" in text
    assert "| 4096 -> 4096 at 94%, batch 128 | 1,000,000 | 8 | 2 | 3.0 | 4.5 | 2.25 |" in text


def test_the_same_on_a_terminal(capsys):
    print_document(document(rows=(LAYER,)))
    print_document(document("rewire", (REWIRE,)))
    shown = " ".join(capsys.readouterr().out.split())
    assert "dense, TF32" in shown
    assert "NVIDIA H200, CUDA 12.8, float32, torch 2.13.0" in shown
    assert "peaks measured on the GPU: 1000 G multiply-adds/s" in shown
    assert "all of rigl" in shown


def test_what_no_page_is_made_of():
    with pytest.raises(ConfigError, match=r"one machine, got NVIDIA H200, CUDA 12.8, torch 2.13.0; NVIDIA A100, CUDA 12.8, torch 2.13.0$"):
        as_markdown([document(), document(gpu="NVIDIA A100")], None)
    with pytest.raises(ConfigError, match="the kernels ran in Triton's interpreter, no time of which means anything: a page is of what"):
        as_markdown([document(device="cpu")], None)
    with pytest.raises(ConfigError, match="the kernels ran in Triton's interpreter"):
        as_markdown([document(), document(device="cpu")], None)
