"""SparseLinear against F.linear with the dense weight, in float64."""

import pytest
import torch
import torch.nn.functional as F
from oracles import drawn
from torch import nn

from truesparse import NM, Block, FanIn, MaskedLinear, SparseLinear, Topology
from truesparse.rewiring.dense_gradient import DenseGradient

SIZES = [(7, 5, 0.6), (1, 1, 0.0), (33, 17, 0.9), (12, 9, 1.0), (6, 8, 0.0), (5, 0, 0.5), (0, 5, 0.5), (64, 3, 0.5)]
LEADS = [(), (1,), (6,), (0,), (2, 3), (2, 0, 3), (2, 1, 2, 2)]
KINDS = [SparseLinear, MaskedLinear]


def agree(layer, x):
    """Output and all gradients of `layer` are those of the dense operation."""
    x = x.clone().requires_grad_()
    dense_x = x.detach().clone().requires_grad_()
    weight = layer.to_dense().detach().clone().requires_grad_()
    bias = None if layer.bias is None else layer.bias.detach().clone().requires_grad_()
    y, expected = layer(x), F.linear(dense_x, weight, bias)
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected)
    dy = torch.randn_like(expected)
    y.backward(dy)
    expected.backward(dy)
    torch.testing.assert_close(x.grad, dense_x.grad)
    torch.testing.assert_close(layer.of_connections(layer.parameter.grad), weight.grad.flatten()[layer.topology.keys])
    if bias is not None:
        torch.testing.assert_close(layer.bias.grad, bias.grad)


@pytest.mark.parametrize("lead", LEADS, ids=str)
@pytest.mark.parametrize(("columns", "rows", "sparsity"), SIZES)
def test_as_dense(family, columns, rows, sparsity, lead):
    layer = SparseLinear(columns, rows, sparsity=sparsity, dtype=torch.float64)
    agree(layer, torch.randn(*lead, columns, dtype=torch.float64))


@pytest.mark.parametrize("lead", LEADS, ids=str)
def test_the_masked_twin_is_as_dense(lead):
    agree(MaskedLinear(7, 5, sparsity=0.6, dtype=torch.float64), torch.randn(*lead, 7, dtype=torch.float64))


@pytest.mark.parametrize("pattern", [FanIn(), NM(2, 4), Block(4)], ids=str)
def test_patterns_and_no_bias(family, pattern):
    layer = SparseLinear(16, 12, False, sparsity=0.5, pattern=pattern, dtype=torch.float64)
    pattern.check(layer.topology)
    assert layer.bias is None
    agree(layer, torch.randn(3, 16, dtype=torch.float64))


def test_empty_rows_and_columns(family):
    dense = nn.Linear(5, 4, dtype=torch.float64)
    topology = Topology.from_mask(drawn(".x..x ..... .x... ....."))
    agree(SparseLinear.from_dense(dense, topology), torch.randn(3, 5, dtype=torch.float64))


def test_inputs_that_are_not_contiguous(family):
    layer = SparseLinear(6, 4, sparsity=0.5, dtype=torch.float64)
    agree(layer, torch.randn(6, 3, dtype=torch.float64).T)
    layer.zero_grad()
    x = torch.randn(3, 6, dtype=torch.float64)
    expected = torch.autograd.grad(F.linear(x, layer.to_dense()).T.sum(), layer.values)[0]
    layer(x).T.contiguous().sum().backward()
    torch.testing.assert_close(layer.values.grad, expected)
    layer.values.grad = None
    layer(x).sum().backward()  # the gradient of a sum is one number, expanded
    torch.testing.assert_close(layer.values.grad, expected)


def test_float32(family):
    layer = SparseLinear(300, 40, sparsity=0.9)
    x = torch.randn(16, 300)
    torch.testing.assert_close(layer(x), F.linear(x, layer.to_dense(), layer.bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sparsity", [0.6, 1.0])
def test_first_and_second_derivatives(family, sparsity):
    layer = SparseLinear(5, 4, sparsity=sparsity, dtype=torch.float64)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    values, bias = (parameter.detach().clone().requires_grad_() for parameter in (layer.values, layer.bias))

    def run(values, x, bias):
        return torch.func.functional_call(layer, {"values": values, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(run, (values, x, bias))
    assert torch.autograd.gradgradcheck(run, (values, x, bias))


def test_third_derivative(family):
    layer = SparseLinear(3, 2, sparsity=0.3, dtype=torch.float64)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def third(run, values, x):
        out = run(values, x).pow(3).sum()
        for _ in range(2):
            gradients = torch.autograd.grad(out, (values, x), create_graph=True)
            out = sum(gradient.pow(2).sum() for gradient in gradients)
        return torch.autograd.grad(out, (values, x))

    sparse = third(lambda values, x: torch.func.functional_call(layer, {"values": values}, (x,)), layer.values, x)
    dense = third(lambda values, x: F.linear(x, layer.topology.scatter(values), layer.bias), layer.values, x)
    torch.testing.assert_close(sparse, dense)


def test_only_what_is_needed_is_computed(family):
    layer = SparseLinear(5, 4, sparsity=0.5)
    x = torch.randn(3, 5)
    layer.values.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.values.grad is None
    assert layer.bias.grad.tolist() == [3.0] * 4
    layer.bias.requires_grad_(False)
    assert not layer(x).requires_grad
    with torch.no_grad():
        assert not layer(x.requires_grad_()).requires_grad


def test_errors(family):
    layer = SparseLinear(5, 4, sparsity=0.5)
    for shape in ((3, 4), (5, 1), (0,), ()):
        with pytest.raises(ValueError, match=r"expected an input of shape \(\.\.\., 5\), got"):
            layer(torch.zeros(shape))
    with pytest.raises(
        TypeError, match=r"expected an input of torch\.float32, the dtype of the values, got torch\.float64; convert the input"
    ):
        layer(torch.zeros(3, 5, dtype=torch.float64))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = layer.nonsense


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_that_cannot_be(kind):
    with pytest.raises(ValueError, match="in_features cannot be negative, got -1"):
        kind(-1, 4)
    with pytest.raises(ValueError, match="out_features cannot be negative, got -2"):
        kind(4, -2)
    for sparsity in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"sparsity is the share of connections to leave out and lies in \[0, 1\], got"):
            kind(4, 4, sparsity=sparsity)
    with pytest.raises(ValueError, match="needs columns divisible by 4"):
        kind(6, 4, pattern=NM(2, 4))
    with pytest.raises(ValueError, match="needs real arrays for its topology: build it on a real device, not on 'meta'"):
        kind(4, 4, device="meta")


@pytest.mark.parametrize("kind", KINDS)
def test_from_dense_and_back(kind):
    dense = nn.Linear(7, 5, dtype=torch.float64).eval()
    dense.bias.requires_grad_(False)
    mask = torch.rand(5, 7) < 0.4
    layer = kind.from_dense(dense, Topology.from_mask(mask))
    assert torch.equal(layer.to_dense(), dense.weight * mask)
    assert torch.equal(layer.values, dense.weight[mask])
    assert layer.parameter.requires_grad
    assert not layer.bias.requires_grad
    assert not layer.training
    with torch.no_grad():
        layer.bias.add_(1)
        layer.parameter.add_(1)
    assert not torch.equal(dense.bias, layer.bias), "nothing is shared"

    back = layer.dense_module()
    assert type(back) is nn.Linear
    assert (back.in_features, back.out_features, back.training, back.bias.requires_grad) == (7, 5, False, False)
    assert torch.equal(back.weight, layer.to_dense())
    assert torch.equal(back.bias, layer.bias)
    x = torch.randn(3, 7, dtype=torch.float64)
    torch.testing.assert_close(back(x), layer(x))
    assert kind.from_dense(nn.Linear(7, 5, bias=False)).dense_module().bias is None


@pytest.mark.parametrize("kind", KINDS)
def test_from_dense_keeps_what_is_not_zero_unless_told(kind):
    dense = nn.Linear(4, 3)
    with torch.no_grad():
        dense.weight[0] = 0
        dense.weight[2, 1] = 0
    assert kind.from_dense(dense).topology.keys.tolist() == [4, 5, 6, 7, 8, 10, 11]
    given = kind.from_dense(dense, Topology.from_keys((3, 4), torch.tensor([0, 5])), values=torch.tensor([1.0, 2.0]))
    assert given.values.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match=r"expected a topology of shape \(3, 4\) for Linear.*got \(4, 3\)"):
        kind.from_dense(dense, Topology.from_keys((4, 3), torch.tensor([0])))
    with pytest.raises(ValueError, match=r"FanIn\(\) cannot have 1 connections"):
        kind.from_dense(dense, Topology.from_keys((3, 4), torch.tensor([0])), pattern=FanIn())


def test_what_a_layer_says_of_itself():
    layer = SparseLinear(7, 5, sparsity=0.6)
    assert (layer.in_features, layer.out_features) == (7, 5)
    assert "connections=14, sparsity=0.6000, pattern=Unstructured()" in repr(layer)
    assert {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()} == {"values": (14,), "bias": (5,)}
    assert set(layer.state_dict()) == {"values", "bias", "indptr", "indices", "fingerprint"}


def test_largest_absent_gradients_rank_nan_last_and_ties_by_position():
    layer = SparseLinear.from_dense(nn.Linear(4, 2), Topology.from_mask(drawn("x... ...x")))
    dy, x = torch.tensor([[1.0, -1.0]]), torch.tensor([[5.0, float("nan"), 2.0, 2.0]])
    # |dy x|: row 0 is . nan 2 2, row 1 is 5 nan 2 .
    for count, expected in ((1, [4]), (2, [2, 4]), (4, [2, 3, 4, 6]), (5, [1, 2, 3, 4, 6]), (9, [1, 2, 3, 4, 5, 6])):
        assert layer.top_gradients([(dy, x)], layer.topology, count).tolist() == expected
        whole = DenseGradient(layer, whole=dy.T @ x)
        assert whole.top(layer.topology, count).tolist() == expected, "as in the masked twin, whose gradient is whole"
    # A NaN comes after every number, a gradient of 0 among them.
    zeros = torch.tensor([[5.0, float("nan"), 0.0, 0.0]])
    for count, expected in ((2, [2, 4]), (4, [2, 3, 4, 6]), (5, [1, 2, 3, 4, 6])):
        assert layer.top_gradients([(dy, zeros)], layer.topology, count).tolist() == expected
        assert DenseGradient(layer, whole=dy.T @ zeros).top(layer.topology, count).tolist() == expected
    half = [(dy / 2, x), (dy / 2, x)]
    assert layer.top_gradients(half, layer.topology, 2).tolist() == [2, 4]
    torch.testing.assert_close(layer.gradient_rows(half[:1], 1, 2), dy[:, 1:].T @ x / 2, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_that_is_no_number_comes_after_those_that_are_zero(kind):
    """The absent gradients of a row are NaN and, after it, 0: by position alone NaN would come first."""
    layer = kind.from_dense(nn.Linear(4, 2), Topology.from_mask(drawn("xx.. xx..")))
    dy, x = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0, float("nan"), 0.0]])
    for count, expected in ((2, [3, 7]), (3, [2, 3, 7])):
        assert DenseGradient(layer, whole=dy.T @ x).top(layer.topology, count).tolist() == expected
        if isinstance(layer, SparseLinear):
            assert layer.top_gradients([(dy, x)], layer.topology, count).tolist() == expected
