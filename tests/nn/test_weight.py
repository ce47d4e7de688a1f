"""`layer.weight` of a sparse layer: read like the dense weight, written to never; initialisers; the masked twin's weight."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import truesparse as ts

LAYERS = {
    "linear": lambda: ts.SparseLinear(9, 6, sparsity=0.7, dtype=torch.float64),
    "convolution": lambda: ts.SparseConv2d(4, 6, 3, groups=2, sparsity=0.7, dtype=torch.float64),
}
layers = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
REFUSED = r"the weight of a sparse layer is made when it is read.*write to layer\.values.*layer\.initialise"


@pytest.fixture
def no_dense(monkeypatch):
    """Makes the making of a dense weight an error."""
    for kind in (ts.SparseLinear, ts.SparseConv2d):
        monkeypatch.setattr(kind, "to_dense", lambda self: pytest.fail("made"))


@layers
def test_what_it_is_is_read_without_making_it(make, no_dense):
    layer = make()
    weight, shape = layer.weight, layer.geometry.weight_shape
    assert isinstance(weight, torch.Tensor)
    assert not isinstance(weight, nn.Parameter)
    assert (weight.dtype, weight.device, weight.shape, weight.ndim) == (torch.float64, torch.device("cpu"), shape, len(shape))
    assert (weight.size(), weight.size(0), weight.dim(), weight.numel()) == (shape, 6, len(shape), layer.topology.size)
    assert weight.requires_grad
    assert not weight.is_cuda
    assert weight.is_floating_point()
    assert weight.element_size() == weight.itemsize == 8
    layer.values.requires_grad_(False)
    assert not layer.weight.requires_grad
    assert layer.float().weight.dtype == torch.float32


@layers
def test_its_values_are_those_of_to_dense(make):
    layer = make()
    dense = layer.to_dense().detach()
    assert torch.equal(layer.weight.detach(), dense)
    assert torch.equal(layer.weight[1:3] * 2, dense[1:3] * 2)
    assert torch.equal(torch.stack([layer.weight, layer.weight]).sum(0), 2 * dense)
    assert layer.weight.norm().item() == dense.norm().item()
    assert torch.equal(torch.empty_like(dense).copy_(layer.weight), dense)
    assert "grad_fn" in repr(layer.weight)


def test_it_is_differentiable():
    layer, x = LAYERS["linear"](), torch.randn(5, 9, dtype=torch.float64)
    expected = torch.autograd.grad(F.linear(x, layer.to_dense()).pow(2).sum(), layer.values)[0]
    torch.testing.assert_close(torch.autograd.grad(F.linear(x, layer.weight).pow(2).sum(), layer.values)[0], expected)
    torch.testing.assert_close(torch.autograd.grad((x @ layer.weight.T).pow(2).sum(), layer.values)[0], expected)
    assert layer.weight.grad is None
    layer(x).pow(2).sum().backward()
    torch.testing.assert_close(layer.weight.grad * 1.0, layer.topology.scatter(layer.values.grad))


WRITES = {
    "init": lambda layer: nn.init.normal_(layer.weight),
    "init by fan": lambda layer: nn.init.kaiming_normal_(layer.weight),
    "init of data": lambda layer: layer.weight.data.normal_(),
    "init of a view": lambda layer: layer.weight.detach().view(-1).uniform_(),
    "orthogonal": lambda layer: nn.init.orthogonal_(layer.weight),
    "copy_": lambda layer: layer.weight.copy_(torch.ones(6, 9)),
    "data": lambda layer: setattr(layer.weight, "data", torch.ones(6, 9)),
    "grad": lambda layer: setattr(layer.weight, "grad", torch.ones(6, 9)),
    "grad zeroed": lambda layer: (layer(torch.ones(1, 9, dtype=torch.float64)).sum().backward(), layer.weight.grad.zero_()),
    "freezing": lambda layer: layer.weight.requires_grad_(False),
    "freezing by name": lambda layer: setattr(layer.weight, "requires_grad", False),
    "mark": lambda layer: setattr(layer.weight, "no_decay", True),
    "row": lambda layer: layer.weight[0].zero_(),
    "transposed": lambda layer: layer.weight.T.mul_(2),
    "entry": lambda layer: layer.weight.__setitem__((0, 0), 1.0),
    "in place": lambda layer: layer.weight.__imul__(2),
    "out": lambda layer: torch.add(1, 1, out=layer.weight),
    "foreach": lambda layer: torch._foreach_mul_([layer.weight], 2.0),
    "hook": lambda layer: layer.weight.register_hook(print),
    "address": lambda layer: layer.weight.data_ptr(),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_writing_is_refused(write):
    layer = LAYERS["linear"]()
    before = layer.values.detach().clone()
    with pytest.raises(RuntimeError, match=REFUSED):
        write(layer)
    assert torch.equal(layer.values, before)


def test_an_optimizer_does_not_take_it():
    with pytest.raises(ValueError, match="can't optimize a non-leaf Tensor"):
        torch.optim.SGD([LAYERS["linear"]().weight], lr=0.1)


@pytest.mark.parametrize("kind", [ts.SparseLinear, ts.SparseConv2d])
def test_a_weight_is_not_replaced_tied_or_taken_away(kind):
    layer = kind(4, 6) if kind is ts.SparseLinear else kind(4, 6, 3)
    embedding, said = (
        nn.Embedding(6, 4),
        rf"{kind.__name__} holds no dense weight that could be replaced or tied.*sparsify\(\.\.\., exclude=",
    )
    state = sorted(layer.state_dict())
    for change in (
        lambda: setattr(layer, "weight", embedding.weight),
        lambda: setattr(layer, "weight", torch.zeros(6, 4)),
        lambda: setattr(layer, "weight", None),
        lambda: layer.register_parameter("weight", embedding.weight),
        lambda: delattr(layer, "weight"),
    ):
        with pytest.raises(AttributeError, match=said):
            change()
    assert sorted(layer.state_dict()) == state


def test_a_model_that_asks_for_the_dtype_of_a_weight():
    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            if isinstance(self.outer.weight, torch.Tensor) and x.dtype != self.inner.weight.dtype:
                x = x.to(self.inner.weight.dtype)
            return self.outer(torch.relu(self.inner(x))).to(self.outer.weight.device)

    network = ts.sparsify(Cast(), 0.5)
    dense = ts.densify(copy.deepcopy(network))
    x = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(network(x), dense(x))


@pytest.mark.parametrize("kind", [ts.SparseLinear, ts.MaskedLinear])
def test_reset_parameters_draws_as_the_constructor_does(kind):
    def make():
        torch.manual_seed(3)
        return kind(30, 20, sparsity=0.7, generator=torch.Generator().manual_seed(1))

    layer = make()
    topology, parameter = layer.topology, layer.parameter
    layer.reset_parameters(torch.Generator().manual_seed(5))
    again = make()
    again.reset_parameters(torch.Generator().manual_seed(5))
    assert layer.topology is topology
    assert layer.parameter is parameter
    assert torch.equal(layer.to_dense(), again.to_dense())
    assert not torch.equal(layer.to_dense(), make().to_dense())
    assert torch.equal(layer.to_dense() != 0, topology.mask())
    for row, count in enumerate(topology.fan_in.tolist()):
        assert layer.bias[row].abs().item() <= count**-0.5
    torch.manual_seed(9)
    layer.reset_parameters()
    assert not torch.equal(layer.to_dense(), again.to_dense())


@pytest.mark.parametrize("kind", [ts.SparseLinear, ts.MaskedLinear])
def test_reset_values_have_the_variance_of_their_own_fan_in(kind):
    layer = kind(400, 300, sparsity=0.9)
    layer.reset_parameters(torch.Generator().manual_seed(0))
    scaled = layer.values.detach() * (layer.topology.fan_in[layer.topology.rows] / 2.0).sqrt()
    assert float(scaled.var()) == pytest.approx(1.0, abs=5 * (2 / scaled.numel()) ** 0.5)


@pytest.mark.parametrize(
    "make",
    [*LAYERS.values(), lambda: ts.MaskedLinear(9, 6, sparsity=0.7), lambda: ts.MaskedConv2d(2, 4, 3, sparsity=0.7)],
)
@pytest.mark.parametrize(
    "fill", [nn.init.xavier_uniform_, nn.init.orthogonal_, nn.init.kaiming_normal_, lambda weight: nn.init.normal_(weight, std=0.02)]
)
def test_initialise_takes_what_the_dense_initialiser_writes_at_the_connections(make, fill):
    layer = make()
    parameter, bias = layer.parameter, layer.bias.detach().clone()
    dense = torch.empty(layer.geometry.weight_shape, dtype=parameter.dtype)
    torch.manual_seed(4)
    fill(dense)
    torch.manual_seed(4)
    layer.initialise(fill)
    assert layer.parameter is parameter
    assert torch.equal(layer.to_dense().detach(), dense * layer.topology.mask().view_as(dense))
    assert torch.equal(layer.bias, bias)


def test_initialise_refuses_what_does_not_fill():
    layer = LAYERS["linear"]()
    before = layer.values.detach().clone()
    for fill in (torch.ones_like, lambda weight: weight[:2].zero_(), lambda weight: weight.fill_(torch.nan)):
        with pytest.raises(ValueError, match="fill must write every entry of the weight it is given, in place"):
            layer.initialise(fill)
        assert torch.equal(layer.values, before)


def test_a_masked_weight_is_replaced_by_one_that_its_mask_fits():
    layer = ts.MaskedLinear(9, 6, sparsity=0.7)
    held = layer.weight
    with pytest.raises(ValueError, match=r"expected a weight of shape \(6, 9\), that of the mask, got \(1, 9\)"):
        layer.weight = nn.Parameter(torch.zeros(1, 9))
    with pytest.raises(ValueError, match=r"expected a weight that is zero where the mask is False.*tied.*exclude="):
        layer.weight = nn.Embedding(6, 9).weight
    assert layer.weight is held
    layer.weight = nn.Parameter(torch.ones(6, 9) * layer.mask)
    assert torch.equal(layer.values, torch.ones(layer.topology.nnz))
