"""The C of integers gives the bits of the Python model, which does what its page says, and is near the floats."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from c_build import NETWORKS, called, settled, sparse
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import truesparse as ts
from truesparse.embedded import Quantised, Scale, integer, quantised, run_integers
from truesparse.embedded.export import written_integers
from truesparse.embedded.gates import LOGISTIC, ONE, logistic, tanh, times
from truesparse.embedded.quantised import ranges
from truesparse.embedded.read import read

SAMPLES = 1000


class Mixed(nn.Module):
    """A product of tensors, a softmax in the middle, means with zeros around, clamps and copies."""

    shape = (4, 7, 6)

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(4, 5, 1)
        self.pool, self.norm = nn.AvgPool2d(2, 2, 1), nn.BatchNorm2d(5)
        self.head = nn.Linear(5 * 4 * 4, 6)

    def forward(self, x):
        x = nn.functional.leaky_relu(self.one(x), 0.2) * torch.sigmoid(self.two(x)) + 0.25
        x = self.pool(torch.clamp(x, -1, 1) if False else nn.functional.hardtanh(x, -0.75, 0.75))
        return self.head(torch.cat([self.norm(x), x], 1)[:, :5].softmax(-1).flatten(1))


KINDS = {**NETWORKS, "mixed": Mixed}


def exported_of(model, x, path):
    network = read(model, x[:2])
    integers = quantised(network, ranges(network, [x[:300]]))
    made = written_integers(integers, path, "net")
    path.write_text(made.text)
    return integers, made.exported


@pytest.mark.parametrize("sparsity", [0, 0.8, 0.98])
@pytest.mark.parametrize("kind", KINDS)
def test_bit_equal_to_the_model(kind, sparsity, tmp_path):
    model = sparse(settled(KINDS[kind](), *KINDS[kind]().shape), sparsity)
    x = torch.randn(SAMPLES, *model.shape)
    integers, exported = exported_of(model, x, tmp_path / "net.h")
    q = np.concatenate([integers.input_scale.quantised(x.numpy()), np.full((1, *model.shape), -128, np.int8)])
    q[0] = 127
    want = run_integers(integers, q)
    assert np.array_equal(called(exported, q, want.shape[1:], "_int8"), want)
    floats = integers.output_scale.real(run_integers(integers, integers.input_scale.quantised(x.numpy())))
    assert np.array_equal(called(exported, x.numpy(), want.shape[1:]), floats)


@pytest.mark.parametrize("kind", KINDS)
def test_near_the_floats(kind):
    model = sparse(settled(KINDS[kind](), *KINDS[kind]().shape), 0.5)
    x = torch.randn(300, *model.shape)
    network = read(model, x[:2])
    integers = quantised(network, ranges(network, [x]))
    with torch.no_grad():
        want = ts.densify(model)(x).numpy()
    given = integers.output_scale.real(run_integers(integers, integers.input_scale.quantised(x.numpy())))
    assert np.abs(given - want).mean() < 0.03 * np.ptp(want)


def test_the_call_does_what_its_parts_do(tmp_path):
    model = sparse(settled(NETWORKS["wrist"](), 21, 6), 0.8)
    x = torch.randn(100, 21, 6)
    exported = ts.export_c(model, x, tmp_path / "net.h", values="int8", calibration=[x[:50], x[50:]])
    integers, _ = exported_of(model, x, tmp_path / "other.h")
    want = integers.output_scale.real(run_integers(integers, integers.input_scale.quantised(x.numpy())))
    assert np.array_equal(called(exported, x.numpy(), (3,)), want)
    assert exported.values == "int8"


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_two_bytes_a_connection(sparsity, tmp_path):
    model = sparse(nn.Sequential(nn.Linear(400, 64), nn.ReLU(), nn.Linear(64, 10)), sparsity)
    x = torch.randn(100, 400)
    row = ts.export_c(model, x, tmp_path / "net.h", values="int8", calibration=[x]).rows[0]
    around = 64 * (1 + 4 + 4)  # counts, biases, mantissas
    assert row.flash <= 2 * model[0].topology.nnz + around
    assert row.flash <= 400 * 64 + 64 * 8  # dense int8


def half_away(x):
    """To the nearest whole number, halves away from zero; by fractions."""
    return int(abs(x) + Fraction(1, 2)) * (1 if x >= 0 else -1)


def test_a_layer_by_hand():
    """Every number of one linear layer by fractions, from the words at the top of `integer.py` alone."""
    torch.manual_seed(3)
    layer = nn.Linear(11, 6).requires_grad_(False)
    with torch.no_grad():
        layer.weight[2] = 0
        layer.weight[:, 4] = 0
    model = ts.sparsify(nn.Sequential(layer, nn.ReLU()), sparsity=None, from_weights=True).eval()
    x = torch.randn(40, 11)
    network = read(model, x)
    integers = quantised(network, ranges(network, [x]))
    [weights] = integers.matrices.values()
    q = integers.input_scale.quantised(x.numpy())
    source, target = integers.input_scale, integers.output_scale
    dense = np.zeros((6, 11), int)
    dense[weights.matrix.row_of_each, weights.matrix.indices] = weights.values
    largest = layer.weight.detach().abs().amax(1)
    for row in (0, 1, 3, 4, 5):
        scale = float(largest[row]) / 127
        assert np.array_equal(dense[row], [half_away(Fraction(float(w)) / Fraction(scale)) for w in layer.weight[row]])
        assert weights.bias[row] == half_away(Fraction(float(layer.bias[row])) / (Fraction(source.scale) * Fraction(scale)))
    for sample, answer in zip(q, run_integers(integers, q), strict=True):
        for row in range(6):
            total = int(weights.bias[row]) + sum(int(w) * (int(one) - source.zero) for w, one in zip(dense[row], sample, strict=True))
            factor = Fraction(int(weights.mantissas[row]), 2**weights.shift)
            assert answer[row] == min(max(half_away(total * factor) + target.zero, -128), 127)


@given(st.integers(-(2**31) + 1, 2**31 - 1), st.integers(2**30, 2**31 - 1), st.integers(1, 62), st.integers(-128, 127))
def test_narrowed_rounds_halves_away_from_zero(total, mantissa, shift, zero):
    given = int(integer.narrowed(np.array([total]), mantissa, shift, zero)[0])
    assert given == min(max(half_away(Fraction(total * mantissa, 2**shift)) + zero, -128), 127)


@given(st.integers(-(2**31), 2**31), st.integers(-(2**15), 2**15))
def test_fixed_point_products_round_halves_away_from_zero(one, other):
    assert int(times(np.array([one]), np.array([other]))[0]) == half_away(Fraction(one * other, 2**15))


def test_gates_are_near_those_of_floats():
    x = np.unique(np.concatenate([np.arange(-(2**20), 2**20, 97), [0, 1, -1, 2**19, -(2**19), 2**24, -(2**24)]]))
    real = x / ONE
    assert np.abs(logistic(x) / ONE - 1 / (1 + np.exp(-real))).max() < 8e-5
    assert np.abs(tanh(x) / ONE - np.tanh(real)).max() < 16e-5
    assert (logistic(np.array([0, 2**24, -(2**24)])) == [ONE // 2, ONE, 0]).all()
    assert (tanh(np.array([0, 2**24, -(2**24)])) == [0, ONE, -ONE]).all()
    assert (np.diff(logistic(x)) >= 0).all()
    assert (len(LOGISTIC), int(LOGISTIC[0]), int(LOGISTIC[-1])) == (257, ONE // 2, ONE)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_a_state_of_many_steps_stays_near_the_floats(kind):
    """The state is kept in 16 bits: what changes by less than a step of int8 at a time still adds up."""
    torch.manual_seed(0)
    model = Last(kind).eval()
    x = torch.randn(50, 400, 3) * 0.3
    network = read(model, x[:2])
    integers = quantised(network, ranges(network, [x]))
    given = integers.output_scale.real(run_integers(integers, integers.input_scale.quantised(x.numpy())))
    with torch.no_grad():
        assert np.abs(given - model(x).numpy()).max() < 0.05


class Last(nn.Module):
    """The last state; update and forget gates that are nearly 1, so that it moves slowly."""

    def __init__(self, kind):
        super().__init__()
        self.layer = kind(3, 4, batch_first=True)
        if kind is not nn.RNN:
            with torch.no_grad():
                self.layer.bias_ih_l0[4:8] = 4.0

    def forward(self, x):
        return self.layer(x)[0][:, -1]


@given(st.integers(-100_000, 100_000), st.integers(1, 5000))
def test_divided_rounds_halves_away_from_zero(total, count):
    assert int(integer.divided(np.array([total]), count)[0]) == half_away(Fraction(total, count))


@given(st.floats(1e-9, 1e6))
def test_factors_are_near_what_they_stand_for(real):
    factor = integer.Factor.of(real)
    assert 2**30 <= factor.mantissa < 2**31
    assert abs(Fraction(factor.mantissa, 2**factor.shift) / Fraction(real) - 1) < Fraction(1, 2**30)


@given(st.floats(-100, 100), st.floats(-100, 100))
def test_zero_is_met_exactly(low, high):
    scale = Scale.of_range(min(low, high), max(low, high))
    assert scale.real(scale.quantised(np.zeros(1, np.float32)))[0] == 0
    assert abs(scale.real(scale.quantised(np.float32([high])))[0] - np.float32(high)) <= scale.scale or high < low


def test_what_is_no_number_becomes_a_number():
    scale = Scale.of_range(-1.0, 3.0)
    given = scale.quantised(np.float32([np.nan, np.inf, -np.inf, 1e30, -1e30]))
    assert given.tolist() == [scale.zero, 127, -128, 127, -128]


def test_sums_that_could_leave_32_bits_are_refused():
    network = read(nn.Sequential(nn.Linear(70_000, 1)).eval(), torch.randn(1, 70_000))
    with torch.no_grad():
        network.steps[0].matrix.values[:] = 1.0
    with pytest.raises(ValueError, match=r"layer '0': the sum of row 0 could leave 32 bits: it has 70,000 connections"):
        quantised(network, {0: (-1.0, 1.0), 1: (-9.0, 9.0)})


def test_connections_whose_weight_rounds_to_zero_are_gone():
    model = nn.Sequential(nn.Linear(3, 1, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1e-5, -0.5]]))
    network = read(model, torch.randn(1, 3))
    integers: Quantised = quantised(network, {0: (-1.0, 1.0), 1: (-2.0, 2.0)})
    assert integers.network.steps[0].matrix.indices.tolist() == [0, 2]
