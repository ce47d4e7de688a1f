"""`truesparse bench --device`: everything that is measured lies on the device, and is right there."""

import os

import pytest
import torch
from torch import nn

from truesparse.bench import (
    Conditions,
    LayerCase,
    MemoryCase,
    RewireCase,
    StepCase,
    measure_layers,
    measure_rewirings,
    measure_steps,
)
from truesparse.bench.memory import train_and_measure
from truesparse.bench.networks import Density, Network
from truesparse.bench.work import Peaks
from truesparse.runs.machine import machine
from truesparse.topology.geometry import Convolution, Matrix
from truesparse.topology.patterns import FanIn, Unstructured

pytest.importorskip("triton", reason="the extra gpu is not installed")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("make test runs these in a process of its own, with TRITON_INTERPRET=1", allow_module_level=True)

from pretended import NAME, PretendedDevice

PEAKS = [Peaks(1, 1e9, 1e9)]


@pytest.fixture
def conditions():
    with PretendedDevice():
        yield Conditions((1,), 0.001, device=torch.device(NAME, 0), beside=("dense_bfloat16", "sparse_float16", "two_four"))


def silent(_):
    pass


@pytest.mark.parametrize(
    "case",
    [
        LayerCase(Matrix(8, 12), (3, 12), 0.75, FanIn()),
        LayerCase(Convolution(4, 6, (3, 3), (1, 1), (1, 1)), (2, 4, 4, 4), 0.75, Unstructured()),
    ],
    ids=["linear", "conv"],
)
def test_layers(conditions, case):
    forward, both = measure_layers([case], conditions, PEAKS, silent)
    assert {"dense", "masked", "sparse"} <= forward.seconds.keys()
    assert {"dense", "masked", "sparse"} == both.seconds.keys() - {"csr"}
    assert forward.kernel.startswith("triton.")
    if isinstance(case.geometry, Matrix):
        assert {"dense_bfloat16", "sparse_float16"} <= forward.seconds.keys()
        assert "two_four" in forward.left_out
    assert forward.device_seconds == {}, "nothing is queued there"


def test_steps(conditions):
    def example(batch):
        return torch.randn(batch, 6), torch.randint(3, (batch,))

    network = Network("tiny", lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), example, 4, (Density(0.5),))
    (row,) = measure_steps([StepCase(network, Density(0.5))], conditions, PEAKS, silent)
    assert row.seconds.keys() == {"dense", "masked", "sparse"}
    assert set(row.phases["sparse"]) == {"forward", "backward", "optimizer", "rewiring"}


def test_rewirings(conditions):
    (row,) = measure_rewirings([RewireCase(Matrix(12, 16), 0.75, 4, ("set", "rigl"))], conditions, silent)
    assert set(row.parts) == {"drop", "grow", "follow", "move", "plans"}
    assert row.algorithms.keys() == {"set", "rigl"}


def test_memory(conditions):
    row = train_and_measure(MemoryCase(1, 16, 0.8, 2, 1, f"{NAME}:0"), "scalar")
    assert row.bytes["weights"] > 0
    assert (row.resident_before, row.resident_peak) == (0, 0), "this device counts no bytes"
    assert machine(conditions.device)["kernels"] == "triton"
