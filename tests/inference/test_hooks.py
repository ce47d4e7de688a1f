"""Hooks of the library never hold `pack` back; those of users go on to be called, and `explain` says what they held back."""

import pytest
import torch
from torch import nn

import truesparse as ts
from truesparse.inference import pack, trace
from truesparse.inference.packed import PackedLayer
from truesparse.stability.activations import hidden_layers


class Net(nn.Module):
    """A chain of three parts; the one in the middle is a container. `decides` makes it no graph."""

    def __init__(self, decides=False):
        super().__init__()
        self.first, self.last = nn.Linear(12, 16), nn.Linear(16, 3)
        self.block = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        self.decides = decides

    def forward(self, x):
        x = self.block(torch.relu(self.first(x)))
        return self.last(-x if self.decides and x.sum() > 1e9 else x)


LAYERS = ["block.0", "block.2", "first", "last"]


def network(decides=False, sparse=True):
    torch.manual_seed(0)
    model = Net(decides)
    return (ts.sparsify(model, 0.5, generator=torch.Generator().manual_seed(0)) if sparse else model).eval()


def packed_layers(packed):
    return sorted(row.layer for row in packed.explain().rows)


def hold(packed, model):
    for batch in (1, 5):
        x = torch.randn(batch, 12)
        with torch.inference_mode():
            torch.testing.assert_close(packed(x), model(x))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("decides", [False, True])
def test_those_that_are_there_for_training_hold_nothing_back(sparse, decides):
    model = network(decides, sparse)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    kept = [ts.stability.ActivationPenalty(hidden_layers(model), l2=1e-4)]
    if sparse:
        kept += [rewirer := ts.Rewirer(model, optimizer, ts.RigL(), every=2), ts.metrics.Tracker(model, rewirer, torch.randn(1, 12))]
    backward = []
    for module in (model, model.block, model.first):
        module.register_full_backward_hook(lambda *given: backward.append(given))
        module.register_full_backward_pre_hook(lambda *given: backward.append(given))
    packed = pack(model, torch.randn(1, 12), tune=False)
    assert packed_layers(packed) == LAYERS
    assert not packed.explain().hooked
    hold(packed, model)
    (model.train()(torch.randn(4, 12, requires_grad=True)).sum() + kept[0].loss()).backward()
    assert backward, "the model's own hooks are where they were"


def doubled(module, given, output=None):
    """As a hook, of either kind."""
    return tuple(2 * one for one in given) if output is None else 2 * output


KINDS = {"forward hook": "register_forward_hook", "forward pre-hook": "register_forward_pre_hook"}
ELSEWHERE = {"": LAYERS, "first": LAYERS[:2] + LAYERS[3:], "block": LAYERS, "block.1": LAYERS, "block.2": [LAYERS[0], *LAYERS[2:]]}


@pytest.mark.parametrize("decides", [False, True], ids=["a graph", "no graph"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("place", ELSEWHERE)
@pytest.mark.parametrize("kind", KINDS)
def test_those_of_users_go_on_and_everything_else_is_packed(kind, place, sparse, decides):
    model = network(decides, sparse)
    plain = model(x := torch.randn(2, 12)).detach()
    getattr(model.get_submodule(place), KINDS[kind])(doubled)
    assert not torch.allclose(model(x), plain), "the hook does something"
    packed = pack(model, x, tune=False)
    hold(packed, model)
    assert packed_layers(packed) == ELSEWHERE[place]
    explanation = packed.explain()
    assert explanation.hooked == {place: kind}
    assert f"hooks of yours are on them: {place or 'the model itself'} ({kind})" in str(explanation)
    assert sum(isinstance(module, PackedLayer) for module in packed.modules()) == len(ELSEWHERE[place])


def test_an_observer_sees_what_it_saw():
    model, seen = network(), []
    model.block.register_forward_hook(lambda module, given, output: seen.append(output))
    packed = pack(model, torch.randn(1, 12), tune=False)
    x = torch.randn(3, 12)
    seen.clear()
    with torch.inference_mode():
        packed(x), model(x)
    assert len(seen) == 2
    torch.testing.assert_close(*seen)


def test_both_kinds_on_one_module_are_named():
    model = network()
    model.first.register_forward_hook(doubled)
    model.first.register_forward_pre_hook(doubled)
    assert pack(model, torch.randn(1, 12), tune=False).explain().hooked == {"first": "forward hook, forward pre-hook"}


def test_torch_export_would_lose_them():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), nn.Linear(8, 2)).eval()
    x = torch.randn(2, 3, 8)
    assert "0.linear1" in packed_layers(pack(model, x, tune=False))
    model[1].register_forward_hook(doubled)
    packed = pack(model, x, tune=False)
    assert packed_layers(packed) == []
    assert packed.explain().whole == ("0",)
    with torch.inference_mode():
        torch.testing.assert_close(packed(x), model(x))
    decides = network(decides=True)
    decides.first.register_forward_hook(doubled)
    with pytest.raises(TypeError, match=r"control flow.*torch\.export would lose the hooks on first"):
        trace(decides, torch.randn(2, 12))


def test_layers_of_a_module_of_torch_that_is_no_graph_stay():
    # It reads the weights of its parts. The mask is one of values, so that neither way of tracing can follow.
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
            self.score = nn.Linear(8, 2)

        def forward(self, x):
            return self.score(self.inner(x)) if x.max() < 1e9 else x

    model, x = Masked().eval(), torch.randn(2, 3, 8)
    packed = pack(model, x, tune=False)
    assert packed_layers(packed) == ["score"]
    with torch.inference_mode():
        torch.testing.assert_close(packed(x), model(x))
