"""What can be asked for, and what is refused before any work."""

import pytest
import torch

from truesparse import _core, nn
from truesparse.bench import request
from truesparse.bench.request import (
    Conditions,
    convolution_of,
    counts_of,
    instruction_set,
    make_conditions,
    matrix_of,
    pattern_of,
    sparsities_for,
    sparsities_of,
)
from truesparse.common.processor import cores
from truesparse.runs import ConfigError
from truesparse.topology.geometry import Convolution, Matrix
from truesparse.topology.patterns import NM, Block, FanIn, Unstructured


def test_lists():
    assert sparsities_of("0.8,0.9,0.8") == (0.8, 0.9)
    assert counts_of("--batch", "16,1") == (16, 1)
    assert matrix_of("3072x768") == Matrix(rows=768, columns=3072)


def test_convolutions():
    assert convolution_of("stride2") == (Convolution(64, 128, (3, 3), (2, 2), (1, 1)), 32, 16)
    assert convolution_of("64,64,1,1,8")[0] == Convolution(64, 64, (1, 1))


@pytest.mark.parametrize(
    ("text", "pattern"),
    [("unstructured", Unstructured()), ("fan-in", FanIn()), ("2:4", NM(2, 4)), ("block", Block(4)), ("block:8", Block(8))],
)
def test_patterns(text, pattern):
    assert pattern_of(text) == pattern


def test_a_pattern_may_fix_the_sparsity():
    assert sparsities_for(NM(1, 4), None) == (0.75,)
    assert sparsities_for(NM(1, 4), "0.75") == (0.75,)
    assert sparsities_for(FanIn(), None) == request.SPARSITIES
    with pytest.raises(ConfigError, match=r"--pattern 1:4 fixes the sparsity at 0\.75"):
        sparsities_for(NM(1, 4), "0.9")


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: sparsities_of("0.9,1"), r"--sparsity must be in \[0, 1\), got 1\.0"),
        (lambda: sparsities_of("nan"), r"--sparsity must be in \[0, 1\), got nan"),
        (lambda: sparsities_of("-0.1"), r"--sparsity must be in \[0, 1\), got -0\.1"),
        (lambda: sparsities_of("much"), "--sparsity must be numbers with commas between them, got 'much'"),
        (lambda: counts_of("--batch", "16,-1"), "--batch must be at least 1, got -1"),
        (lambda: counts_of("--batch", "1.5"), "--batch must be whole numbers"),
        (lambda: matrix_of("3072"), "--shape must be INxOUT, such as 3072x768, got '3072'"),
        (lambda: matrix_of("0x4"), "--shape must be INxOUT"),
        (lambda: convolution_of("conv65"), "--layer: unknown 'conv65'; known are conv64, "),
        (lambda: convolution_of("1,2,3"), "--layer must be a name or IN,OUT,KERNEL,STRIDE,SIZE"),
        (lambda: convolution_of("1,1,4,1,0"), "--layer must be at least 1, got 0"),
        (lambda: pattern_of("blocks"), "--pattern blocks: unknown pattern 'blocks'; known: unstructured, fan-in, shared-fan-in:ROWS"),
        (lambda: pattern_of("5:4"), "--pattern 5:4: NM needs 0 < n <= m"),
        (lambda: make_conditions("0", 1.0, "float32"), "--threads must be at least 1, got 0"),
        (lambda: Conditions((1, cores() + 1)), f"--threads must be from 1 to the {cores()} cores of this machine, got {cores() + 1}"),
        (lambda: Conditions((1,), seconds=0.0), r"--seconds must be greater than 0, got 0\.0"),
        (lambda: make_conditions(None, 1.0, "int8"), "--dtype: unknown 'int8'; known are float32, bfloat16"),
    ],
)
def test_refusals(ask, said):
    with pytest.raises(ConfigError, match=said):
        ask()


def test_an_instruction_set_is_in_force_within_only():
    before = _core.isa()
    with instruction_set("scalar"):
        assert _core.isa() == "scalar"
    assert _core.isa() == before
    with pytest.raises(ConfigError, match="--isa: asks for an unknown instruction set 'mmx'; known: scalar"), instruction_set("mmx"):
        pass


def test_bfloat16_needs_layers_that_compute_in_it(monkeypatch):
    """Whatever the layers of today do: refused where one answers in float32, taken where all answer in bfloat16."""
    forward = nn.SparseLinear.forward
    monkeypatch.setattr(nn.SparseLayer, "forward", lambda layer, x: forward(layer, x.float()).float())
    with pytest.raises(ConfigError, match="--dtype bfloat16: SparseLinear computes in float32 under autocast"):
        make_conditions("1", 1.0, "bfloat16")
    monkeypatch.setattr(nn.SparseLayer, "forward", lambda layer, x: forward(layer, x.float()).bfloat16())
    assert make_conditions("1", 1.0, "bfloat16").dtype == torch.bfloat16
