"""Layers are called as a user calls them, checked against float64 before they are timed, and their rows add up."""

import pytest
import torch

from truesparse.bench import LayerCase, WrongResult, layers, measure_layers
from truesparse.bench.request import Conditions
from truesparse.ops.cpu import ConvolutionKernels, MatrixKernels
from truesparse.runs import ConfigError
from truesparse.topology.geometry import Convolution, Matrix
from truesparse.topology.patterns import NM, Block, FanIn, Unstructured

QUICK = Conditions((1,), seconds=0.02)
LINEAR = LayerCase(Matrix(8, 16), (5, 16), 0.5, Unstructured())
CONVOLUTION = LayerCase(Convolution(4, 8, (3, 3), padding=(1, 1)), (2, 4, 6, 6), 0.5, Unstructured())


def rows_of(case, peaks, conditions=QUICK):
    return list(measure_layers([case], conditions, [peaks], lambda name: None))


@pytest.mark.parametrize("case", [LINEAR, CONVOLUTION], ids=["linear", "conv"])
def test_rows(case, peaks):
    forward, both = rows_of(case, peaks)
    assert (forward.direction, both.direction) == ("forward", "forward + backward")
    for row in (forward, both):
        ways = {"dense", "masked", "sparse"} | ({"csr"} if case is LINEAR else set())
        assert row.seconds.keys() == ways
        assert row.left_out.keys() == ({"csr"} - ways)
        assert row.times_as_fast == {way: row.seconds["dense"] / row.seconds[way] for way in ways - {"dense"}}
        assert row.share_of_multiply_adds == pytest.approx(row.multiply_adds / row.seconds["sparse"] / peaks.multiply_adds)
        assert row.sparsity == pytest.approx(1 - row.connections / (case.geometry.shape[0] * case.geometry.shape[1]))
    assert both.multiply_adds == 3 * forward.multiply_adds


@pytest.mark.parametrize("pattern", [FanIn(), NM(2, 4), Block(4)], ids=str)
def test_patterns(pattern, peaks):
    row = rows_of(LayerCase(Matrix(8, 16), (5, 16), 0.5, pattern), peaks)[0]
    assert (row.pattern, row.connections) == (str(pattern), 64)


def test_a_pattern_that_does_not_fit_is_refused_first():
    with pytest.raises(ConfigError, match=r"16 -> 9: .*rows divisible by 4"):
        LayerCase(Matrix(9, 16), (5, 16), 0.5, Block(4))


@pytest.mark.parametrize(("case", "kernels"), [(LINEAR, MatrixKernels), (CONVOLUTION, ConvolutionKernels)], ids=["linear", "conv"])
@pytest.mark.parametrize("wrong", [lambda y: y * 1.001, lambda y: y.index_fill(0, torch.tensor([0]), float("nan"))], ids=["off", "nan"])
def test_a_wrong_product_is_not_timed(case, kernels, wrong, peaks, monkeypatch):
    spmm = kernels.spmm
    monkeypatch.setattr(kernels, "spmm", lambda *given, **named: wrong(spmm(*given, **named)))
    monkeypatch.setattr(layers, "interleaved", None)  # whoever times fails
    with pytest.raises(WrongResult, match=r"50.0% sparse: y of sparse is wrong: off by .*; nothing is timed"):
        rows_of(case, peaks)


@pytest.mark.parametrize(("which", "name"), [(0, "dW"), (1, "dx")])
def test_a_wrong_gradient_is_not_timed(which, name, peaks, monkeypatch):
    backward = MatrixKernels.backward

    def wrong(*given):
        gradients = list(backward(*given))
        gradients[which] = gradients[which].flip(0)
        return tuple(gradients)

    monkeypatch.setattr(MatrixKernels, "backward", wrong)
    with pytest.raises(WrongResult, match=f"{name} of sparse is wrong"):
        rows_of(LINEAR, peaks)


def test_gradients_are_asked_for_as_a_user_asks(peaks, monkeypatch):
    """Backward computes dW and dx and no bias, for values that require gradients; forward computes none."""
    asked = []
    backward = MatrixKernels.backward
    monkeypatch.setattr(MatrixKernels, "backward", lambda self, v, x, dy, need: asked.append(need) or backward(self, v, x, dy, need))
    rows_of(LINEAR, peaks)
    assert set(asked) == {(True, True, False)}


def test_a_slow_csr_is_left_out_and_said(peaks, monkeypatch):
    monkeypatch.setattr(layers, "elapsed", lambda call, device: 1.25)
    for row in rows_of(LINEAR, peaks):
        assert row.left_out == {"csr": "one call took 1.25 s"}
        assert "csr" not in row.seconds


def test_a_csr_that_torch_cannot_do_is_left_out_and_said(peaks, monkeypatch):
    def cannot(self, x):
        raise NotImplementedError("no such kernel\nmore of it")

    real = layers.csr_linear

    def broken(dense):
        layer = real(dense)
        layer.__class__ = type("Broken", (torch.nn.Linear,), {"forward": cannot})
        return layer

    monkeypatch.setattr(layers, "csr_linear", broken)
    assert rows_of(LINEAR, peaks)[0].left_out == {"csr": "torch: no such kernel"}
