"""A quantised layer is a module like others: state_dict, copies, pickles, compilation; and it takes states of other topologies."""

import copy
import pickle

import pytest
import torch
from torch import nn

import truesparse as ts
from truesparse.nn.quantized import PLAIN

KINDS = {
    "row": lambda model, x: ts.quantize(model, 6),
    "row, activations": lambda model, x: ts.quantize(model, 8, data=x),
    "codebook": lambda model, x: ts.quantize(model, 3, by="codebook"),
}


def net(sparsity=0.5, seed=0):
    torch.manual_seed(seed)
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)
    return ts.sparsify(nn.Sequential(*layers), sparsity, budget=ts.Uniform())


@pytest.fixture
def x():
    return torch.randn(5, 1, 6, 6)


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_copies_and_pickles(make, x):
    model = make(net(), x)
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), expected)
        other(x).sum().backward()
        assert other[3].rounding.trained.grad is not None
        assert model[3].rounding.trained.grad is None


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_a_state_of_another_topology(make, x, assign):
    model, other = make(net(), x), make(net(0.3, seed=1), 2 * x)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    assert str(other.load_state_dict(model.state_dict(), assign=assign)) == "<All keys matched successfully>"
    assert torch.equal(other(x), model(x))
    for one, two in zip(ts.nn.topology_layers(model).values(), ts.nn.topology_layers(other).values(), strict=True):
        assert one.topology.equal(two.topology)
    again = make(net(0.3, seed=2), x)
    again.load_state_dict(other.state_dict())
    assert torch.equal(again(x), model(x))
    if not assign:
        other(x).square().sum().backward()
        optimizer.step()
        assert not torch.equal(other(x), model(x))


def test_states_that_do_not_fit(x):
    model = ts.quantize(net(), 3, by="codebook")
    state = model.state_dict()
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: .*3.rounding.codes"):
        ts.quantize(net(), 3).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: .*rounding.trained"):
        model.load_state_dict({name: tensor for name, tensor in state.items() if not name.endswith("trained")})
    damaged = {**state, "3.rounding.codes": state["3.rounding.codes"] + 200}
    with pytest.raises(RuntimeError, match="3: its codes go beyond a codebook of 8 entries"):
        model.load_state_dict(damaged)
    with pytest.raises(RuntimeError, match=r"3: expected .* values, one for each connection"):
        model.load_state_dict({**state, "3.rounding.codes": state["3.rounding.codes"][:-1]})
    averaged = {**state, "3.indices": state["5.indices"]}
    with pytest.raises(RuntimeError, match="3: "):
        model.load_state_dict(averaged)


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_compiled_it_gives_the_same(make, x):
    model = make(net(), x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).sum().backward()
    assert all(layer.rounding.trained.grad is not None for layer in ts.nn.topology_layers(model).values())


def test_buffers_that_others_wrote_into_are_told(x):
    model = ts.quantize(net(), 6)
    model[3].indices.copy_(model[3].indices.flip(0))
    with pytest.raises(RuntimeError, match="something wrote another topology"):
        model(x)


def test_what_a_model_says_of_itself(x):
    model = ts.quantize(net(), 6, data=x)
    assert "QuantizedLinear(" in repr(model)
    assert "64" in str(ts.summary(model))
    assert ts.metrics.connections(model) == ts.metrics.connections(net())
    assert isinstance(model[3].weight[0, 0].item(), float)
    torch.testing.assert_close(model[3].to_dense(), model[3].topology.scatter(model[3].values))


def test_every_quantised_kind_knows_its_plain_one():
    for quantized, plain in PLAIN.items():
        assert quantized.__name__ == plain.__name__.replace("Sparse", "Quantized")
        assert issubclass(quantized, plain)
