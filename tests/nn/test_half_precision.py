"""Sparse layers under autocast and in bfloat16: float64 algebra of the same rounded inputs, and the masked twins."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from truesparse import MaskedConv2d, MaskedLinear, Rewirer, RigL, SparseConv2d, SparseLinear, sparsify

BF16 = torch.bfloat16
HALF_UNIT = torch.finfo(BF16).eps / 2  # the largest relative error of rounding to bfloat16
MAKERS = {
    "linear": lambda sparsity: (SparseLinear(70, 45, sparsity=sparsity), torch.randn(33, 70)),
    "one sample": lambda sparsity: (SparseLinear(70, 45, sparsity=sparsity), torch.randn(70)),
    "no sample": lambda sparsity: (SparseLinear(70, 45, sparsity=sparsity), torch.randn(0, 70)),
    "sequence, no bias": lambda sparsity: (SparseLinear(70, 45, False, sparsity=sparsity), torch.randn(2, 9, 70)),
    "convolution": lambda sparsity: (SparseConv2d(6, 8, 3, 2, 1, sparsity=sparsity), torch.randn(5, 6, 9, 8)),
    "pointwise": lambda sparsity: (SparseConv2d(6, 8, 1, sparsity=sparsity), torch.randn(3, 6, 9, 9)),
}
made = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def autocast(dtype=BF16):
    return torch.autocast("cpu", dtype)


def gradients(y, dy, *of):
    return torch.autograd.grad(y, [tensor for tensor in of if tensor is not None], dy)


def in_float64(layer, x, dy):
    """(y, dvalues, dx, dbias) of a dense copy in float64, at x and dy as they were rounded."""
    dense = layer.dense_module().double()
    x = x.double().requires_grad_()
    y = dense(x)
    dweight, *others = gradients(y, dy.double(), dense.weight, x, dense.bias)
    return y.detach(), dweight.flatten()[layer.topology.keys], *others


def assert_rounded(actual, expected, error=2.0):
    """Within `error` times the rounding to bfloat16, or to float32, of the sum that it is."""
    unit = HALF_UNIT * error if actual.dtype == BF16 else 1e-5
    torch.testing.assert_close(actual.double(), expected, rtol=unit, atol=1e-5 * error)


@made
def test_autocast_rounds_inputs_and_outputs_only(family, make):
    layer, x = make(0.7)
    rounded = x.to(BF16)
    with autocast():
        y = layer(x.requires_grad_())
    assert y.dtype == BF16
    dy = torch.randn_like(y)
    found = y, *gradients(y, dy, layer.values, x, layer.bias)
    assert [gradient.dtype for gradient in found[1:]] == [torch.float32] * len(found[1:])  # each that of what it is the gradient of
    expected = in_float64(layer, rounded, dy)
    assert_rounded(found[0], expected[0], 1.01)
    assert_rounded(found[1], expected[1])
    assert_rounded(found[2].to(BF16), expected[2], 1.01)
    assert torch.equal(found[2], found[2].to(BF16).float())
    for actual, wanted in zip(found[3:], expected[3:], strict=True):
        assert_rounded(actual, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, BF16, torch.float32, torch.float64])
@pytest.mark.parametrize("to", [BF16, torch.float16])
def test_autocast_takes_any_float_and_gives_its_own(family, dtype, to):
    layer, dense = SparseLinear(30, 20, sparsity=0.5), nn.Linear(30, 20)
    x = torch.randn(4, 30).to(dtype).requires_grad_()
    with autocast(to):
        y = layer(x)
        assert dtype == torch.float64 or dense(x).dtype == y.dtype
    assert y.dtype == to
    torch.testing.assert_close(y, layer.dense_module()(x.to(to).float()).to(to), rtol=2e-3, atol=2e-3)  # float16 is not rounded before
    dx, dvalues = torch.autograd.grad(y.float().sum(), (x, layer.values))
    assert (dx.dtype, dvalues.dtype) == (dtype, torch.float32)
    with autocast(to):
        assert layer.double()(x).dtype == torch.float64  # which autocast leaves alone


@made
def test_a_layer_of_bfloat16(family, make):
    layer, x = make(0.7)
    layer, x = layer.to(BF16), x.to(BF16).requires_grad_()
    y = layer(x)
    dy = torch.randn_like(y)
    found = y, *gradients(y, dy, layer.values, x, layer.bias)
    for actual, expected in zip(found, in_float64(layer, x.detach(), dy), strict=True):
        assert actual.dtype == BF16
        assert_rounded(actual, expected, 1.01)
    with autocast():
        assert torch.equal(layer(x), y)
        assert torch.equal(layer(x.float()), y)
    with pytest.raises(TypeError, match=r"expected an input of torch\.bfloat16, the dtype of the values, got torch\.float32"):
        layer(x.float())


@pytest.mark.parametrize("name", ["linear", "sequence, no bias", "convolution"])
def test_a_full_layer_is_the_dense_one_under_autocast(name):
    layer, x = MAKERS[name](0.0)
    dense = layer.dense_module()
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    with autocast():
        y, expected = layer(ours), dense(theirs)
    assert y.dtype == expected.dtype
    dy = torch.randn_like(y)
    found, wanted = gradients(y, dy, ours, layer.values, layer.bias), gradients(expected, dy, theirs, dense.weight, dense.bias)
    torch.testing.assert_close(y, expected)
    for actual, other in zip(found, wanted, strict=True):
        assert actual.dtype == other.dtype
        torch.testing.assert_close(actual.flatten(), other.flatten(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", ["linear", "convolution"])
def test_second_derivatives(family, name):
    layer, x = MAKERS[name](0.7)
    x = x.to(BF16)
    wide = copy.deepcopy(layer).double()

    def second(layer, x, mode):
        x = x.requires_grad_()
        with mode:
            y = layer(x)
        first = torch.autograd.grad(y.pow(2).sum(), (x, layer.values), create_graph=True)
        return torch.autograd.grad(sum(gradient.double().pow(2).sum() for gradient in first), (x, layer.values))

    for actual, expected in zip(second(layer, x.clone(), autocast()), second(wide, x.double(), autocast()), strict=True):
        scale = float(expected.abs().max())
        torch.testing.assert_close(actual.double() / scale, expected / scale, rtol=0.05, atol=0.02)


def network():
    """Smooth: no unit is on in one of two copies and off in the other."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.GELU(), nn.Conv2d(6, 12, 3, stride=2, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(192, 40),
        nn.GELU(), nn.Linear(40, 10),
    )  # fmt: skip
    return sparsify(model, 0.6, init="he", generator=torch.Generator().manual_seed(1))


def twin_of(model):
    twin = copy.deepcopy(model)
    for name, layer in model.named_children():
        if isinstance(layer, SparseLinear | SparseConv2d):
            kind = MaskedLinear if isinstance(layer, SparseLinear) else MaskedConv2d
            setattr(twin, name, kind.from_dense(layer.dense_module(), layer.topology))
    return twin


def batch(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 1, 8, 8, generator=generator), torch.randint(10, (16,), generator=generator)


def trained(model, steps):
    """The losses under autocast with AdamW."""
    optimizer, losses = torch.optim.AdamW(model.parameters(), 3e-3), []
    for step in range(steps):
        x, target = batch(step % 2)
        with autocast():
            loss = F.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, optimizer.state


def test_gradients_of_a_network_are_no_further_from_float64_than_those_of_its_masked_twin():
    model = network()
    twin, exact, (x, target) = twin_of(model), copy.deepcopy(model).double(), batch(0)
    F.cross_entropy(exact(x.double()), target).backward()
    for one in (model, twin):
        with autocast():
            loss = F.cross_entropy(one(x), target)
        loss.backward()
    layers = [layers for layers in zip(model, twin, exact, strict=True) if isinstance(layers[0], SparseLinear | SparseConv2d)]
    assert len(layers) == 4
    for ours, theirs, wide in layers:
        assert ours.values.grad.dtype == ours.bias.grad.dtype == torch.float32
        pairs = (
            (ours.values.grad, theirs.of_connections(theirs.weight.grad), wide.values.grad),
            (ours.bias.grad, theirs.bias.grad, wide.bias.grad),
        )
        for found, other, expected in pairs:
            error, allowed = (float((gradient - expected).norm() / expected.norm()) for gradient in (found, other))
            assert error < max(1.5 * allowed, 0.005)
            assert error < 0.02


def test_training_with_adamw_follows_the_masked_twin_and_leaves_the_state_as_it_is():
    model = network()
    twin, before = twin_of(model), {name: (entry.dtype, entry.shape) for name, entry in model.state_dict().items()}
    losses, state = trained(model, 30)
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(trained(twin, 30)[0]), rtol=0.05, atol=0.02)
    assert losses[-1] < losses[0] / 2
    assert {name: (entry.dtype, entry.shape) for name, entry in model.state_dict().items()} == before
    assert {name: entry.dtype for name, entry in state[model[5].values].items() if entry.ndim} == {
        "exp_avg": torch.float32,
        "exp_avg_sq": torch.float32,
    }
    again = network()
    again.load_state_dict(model.state_dict())
    with autocast(), torch.no_grad():
        assert torch.equal(again(batch(0)[0]), model(batch(0)[0]))


def test_a_network_of_bfloat16_trains_and_rewires():
    model = network().to(BF16)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    rewirer, losses = Rewirer(model, optimizer, RigL(), every=5), []
    for step in range(30):
        x, target = batch(step % 2)
        loss = F.cross_entropy(model(x.to(BF16)).float(), target)
        loss.backward()
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert rewirer.rewirings >= 3
    assert optimizer.state[model[5].values]["exp_avg"].dtype == BF16
    assert model[5].values.dtype == BF16


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_largest_absent_gradients_of_bfloat16_samples_add_up_in_float32(family, dtype):
    """Whole numbers that bfloat16 has, whose sums it has not."""
    layer = SparseLinear(40, 30, sparsity=0.8).to(dtype)
    samples = [(torch.randint(-99, 99, (64, 30)).to(BF16), torch.randint(-99, 99, (64, 40)).to(BF16)) for _ in range(2)]
    dense = sum(dy.double().T @ x.double() for dy, x in samples).abs().flatten()
    dense[layer.topology.keys] = -1
    with torch.autocast("cpu", enabled=False):
        found = layer.top_gradients(samples, layer.topology, 100)
    assert found.tolist() == dense.sort(descending=True, stable=True).indices[:100].sort().values.tolist()


@pytest.mark.parametrize("inside", [False, True])
def test_rigl_under_autocast_grows_what_the_masked_twin_grows(inside):
    """Also where backward and step() run under autocast too."""
    model = network()
    moved, topologies = [], []
    for one in (model, twin_of(model)):
        before = [layer.topology for layer in one if hasattr(layer, "topology")]
        optimizer = torch.optim.SGD(one.parameters(), 0.1)
        rewirer, (x, target) = Rewirer(one, optimizer, RigL(), every=1), batch(0)
        with autocast():
            loss = F.cross_entropy(one(x), target)
        with torch.autocast("cpu", BF16, enabled=inside):
            loss.backward()
            rewirer.step()
        topologies.append([set(layer.topology.keys.tolist()) for layer in one if hasattr(layer, "topology")])
        moved.append([len(new - set(old.keys.tolist())) for old, new in zip(before, topologies[-1], strict=True)])
    for ours, theirs, grown in zip(*topologies, moved[0], strict=True):
        assert len(theirs - ours) <= 0.1 * grown  # dy and x of the two differ by rounding
    assert moved[0][0] == 0  # it has all its connections
    assert min(moved[0][1:-1]) > 50
