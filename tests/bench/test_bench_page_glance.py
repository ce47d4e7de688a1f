"""The short table has a line for each thing, a column for each instruction set, and only fair comparisons."""

from dataclasses import replace

import pytest

from truesparse.bench import Document, InferenceRow, MemoryRow, StepRow
from truesparse.bench.page_glance import glance_table
from truesparse.runs import ConfigError

STEP = StepRow("net", "90 %", "erk", 0.9, 5, 128, 1, 100, {}, {}, {}, {"sparse": 5.44}, {}, 0.1)
MEMORY = MemoryRow(3, 64, 0.9, 1_229, 32, 1, {"weights": 4_000, "topology": 4_000}, 6.5, 0, 0, 50_000, 0.1, 0.1)
PACKED = InferenceRow(
    kind="network",
    model="net, of two, 90 %",
    pattern="Unstructured()",
    sparsity=0.9,
    connections=5,
    ablated=0.0,
    values="float32",
    batch=100,
    threads=1,
    seconds={},
    times_as_fast={"packed": 8.04},
    csr="",
    layouts={},
    bytes=1,
    dense_bytes=1,
    file_bytes=100,
    dense_file_bytes=720,
    largest_error=0.0,
    rms_error=0.0,
    accuracy={},
)


def measured(*rows, isa="avx512", dense=None, processor="Abacus 9"):
    machine = {"processor": processor, "instruction_set": isa, "torch_instruction_set": dense or isa, "torch": "2.13.0"}
    return Document("step", machine, "float32", (), rows)


def test_a_column_for_each_instruction_set_and_sparsities_share_a_line(layer_row):
    very = replace(STEP, sparsity=0.981, times_as_fast={"sparse": 15.5})
    layer = layer_row(0.9, 3.2, "forward + backward")
    one = replace(PACKED, kind="layer", model="8 -> 4", batch=1)
    documents = [
        measured(PACKED, one),
        measured(MEMORY, layer, layer_row(0.9, 99.0, "forward")),
        measured(STEP, very),
        measured(replace(STEP, times_as_fast={"sparse": 4.0}), isa="avx2"),
    ]
    assert glance_table(documents).splitlines() == [
        "| times as fast as dense PyTorch | sparsity | AVX-512 | AVX2 |",
        "|---|---|---|---|",
        "| training step, net | 90 / 98.1 % | 5.4 / 15.5 | 4.0 / - |",
        "| layer 8 -> 4, batch 16, forward + backward | 90 % | 3.2 | - |",
        "| memory in training with AdamW, layers 64 -> 64: times less | 90 % | 6.2 | - |",
        "| packed for inference, net, of two, 100 samples | 90 % | 8.0 | - |",
        "| packed for inference, 8 -> 4, one sample | 90 % | 8.0 | - |",
        "| saved file, net, of two: times smaller | 90 % | 7.2 | - |",
        "",
        "Abacus 9, float32, torch 2.13.0, 1 thread. In each column dense PyTorch is held to the same instruction set. "
        "Medians of interleaved calls.",
    ]


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        (
            [measured(STEP, isa="avx2", dense="avx512")],
            r"`bench step` ran avx2 kernels beside dense PyTorch on avx512.*`make bench-readme`",
        ),
        ([measured(STEP), measured(STEP, processor="Slide rule")], r"one machine.*got Abacus 9, float32.*; Slide rule"),
        ([measured(STEP, replace(STEP, threads=2))], r"one number of threads, got .*1 thread; .*2 threads"),
        ([measured()], "nothing of this has a place in the short table"),
    ],
)
def test_what_would_be_unfair_or_empty_is_refused(documents, said):
    with pytest.raises(ConfigError, match=said):
        glance_table(documents)
