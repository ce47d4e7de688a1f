"""What is removed from random networks: never what matters, and everything else."""

import torch
from hypothesis import assume, given, settings
from programs import KINDS, programs
from torch import nn

from truesparse import SparseConv2d, SparseLinear
from truesparse.inference import simplify
from truesparse.inference.graph.prune import prune_following
from truesparse.inference.graph.trace import trace

LAYERS = (nn.Linear, nn.Conv2d, SparseLinear, SparseConv2d)


def close(model, module, x):
    """Whether both give the same, for the example and for a batch of another size."""
    others = torch.randn(3, *x.shape[1:], dtype=x.dtype)
    for one in (x, others):
        with torch.no_grad():
            for expected, output in zip(model(one.clone()), module(one.clone()), strict=True):
                torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)


def weight_of(layer):
    dense = layer.to_dense() if isinstance(layer, (SparseLinear, SparseConv2d)) else layer.weight
    return dense.detach()


def flows(array, channel):
    """An input or output of a layer as [channels, everything else]."""
    return array.movedim(channel, 0).flatten(1)


class Probed:
    """Brute force: which outputs of each layer matter, and which inputs vary, seen by running the network on many inputs.

    An output matters if the gradient of what the network gives is not zero there; an input varies if it is not one number for all
    samples and positions.
    """

    def __init__(self, model, x):
        self.layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LAYERS)}
        seen = {name: [] for name in self.layers}
        hooks = [
            layer.register_forward_hook(lambda _, inputs, output, name=name: seen[name].append((inputs[0].detach(), output)))
            for name, layer in self.layers.items()
        ]
        outputs = model(torch.randn(24, *x.shape[1:], dtype=x.dtype).requires_grad_())
        for hook in hooks:
            hook.remove()
        for calls in seen.values():
            for _, output in calls:
                output.retain_grad()
        made = [output for calls in seen.values() for _, output in calls]
        total = sum((output * torch.randn_like(output)).sum() for output in outputs)
        gradients = dict(zip(map(id, made), torch.autograd.grad(total, made, allow_unused=True), strict=True))
        self.calls = {name: [(values, output, gradients[id(output)]) for values, output in calls] for name, calls in seen.items()}

    def matters(self, name):
        """Outputs of a layer that matter in any call, [rows] bool."""
        rows = weight_of(self.layers[name]).shape[0]
        found = torch.zeros(rows, dtype=torch.bool)
        for _, _, gradient in self.calls[name]:
            if gradient is not None:
                found |= (flows(gradient, 1) != 0).any(1)
        return found

    def varies(self, name, of="input"):
        """Inputs (or outputs) of a layer that are not the same number in all samples, positions and calls."""
        calls = torch.cat([flows(call[0] if of == "input" else call[1].detach(), 1) for call in self.calls[name]], 1)
        return calls.amax(1) - calls.amin(1) > 1e-12

    def connections(self, name):
        """How many connections join what varies to what matters."""
        layer = self.layers[name]
        exists = (weight_of(layer) != 0).flatten(2) if weight_of(layer).ndim > 2 else (weight_of(layer) != 0).unsqueeze(2)
        groups = getattr(layer, "groups", 1)
        varies = self.varies(name).view(groups, 1, -1).expand(-1, exists.shape[0] // groups, -1).flatten(0, 1)
        return int((exists & self.matters(name)[:, None, None] & varies[:, :, None]).sum())


# A layer that is called twice may give two constants: to the brute force, it varies.
UNDERSTOOD = tuple(kind for kind in KINDS if kind != "again")


@settings(max_examples=70)
@given(programs(kinds=(*KINDS, "other", "flatten")))
def test_the_output_never_changes(example):
    model, x = example
    before = {name: array.clone() for name, array in model.state_dict().items()}
    simplified = simplify(model, x)
    close(model, simplified.module, x)
    assert all(torch.equal(array, before[name]) for name, array in model.state_dict().items()), "the given model is not touched"


@settings(max_examples=50)
@given(programs(UNDERSTOOD, smooth=True))
def test_exactly_the_connections_from_what_varies_to_what_matters_stay(example):
    model, x = example
    probed = Probed(model, x)
    for change in simplify(model, x).layers:
        assert change.connections[1] == probed.connections(change.name), change.name


@settings(max_examples=30)
@given(programs(UNDERSTOOD, smooth=True, constants=False))
def test_where_constants_are_zero_borders_do_not_matter(example):
    model, x = example
    probed = Probed(model, x)
    for change in simplify(model, x).layers:
        assert change.connections[1] == probed.connections(change.name), change.name


@settings(max_examples=30)
@given(programs(kinds=("layer", "layer", "norm", "activation", "dropout", "flatten", "pool"), smooth=True, latest=True, outputs=False))
def test_in_a_chain_exactly_the_neurons_that_vary_and_matter_stay(example):
    model, x = example
    probed, last = Probed(model, x), [name for name in dict(model.named_modules()) if name][-1]
    assume(all(getattr(layer, "groups", 1) == 1 for layer in probed.layers.values()))
    for change in simplify(model, x).layers:
        matter = probed.matters(change.name) & probed.varies(change.name, "output")
        expected = change.neurons[0] if change.name == last else max(1, int(matter.sum()))
        assert change.neurons[1] == expected, change.name


@settings(max_examples=20)
@given(programs(kinds=(*KINDS, "other")))
def test_nothing_is_left_to_remove(example):
    model, x = example
    once = simplify(model, x)
    again = simplify(once.module, x)
    sizes = [(change.neurons[1], change.inputs[1], change.connections[1]) for change in once.layers]
    assert [(change.neurons[1], change.inputs[1], change.connections[1]) for change in again.layers] == sizes


def test_the_random_networks_have_much_to_remove():
    removed, total = 0, 0

    @settings(max_examples=20)
    @given(programs(kinds=(*KINDS, "other")))
    def count(example):
        nonlocal removed, total
        for change in simplify(*example).layers:
            removed, total = removed + change.neurons[0] - change.neurons[1], total + change.neurons[0]

    count()
    assert 0.1 < removed / total < 0.9


def test_which_rows_are_left_of_a_layer_that_loses_some_twice():
    """Of a grouped convolution whole groups go first; of the one that is left, rows."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 6, 1, groups=2), nn.Conv2d(6, 3, 1)).eval()
    with torch.no_grad():
        model[2].weight[:, :3] = 0  # the first group
        model[2].weight[:, 4] = 0
    x = torch.randn(2, 2, 5, 5)
    small, rows = prune_following(trace(model, x), x)
    assert rows["1"].tolist() == [3, 5]
    torch.testing.assert_close(small.get_submodule("1").weight, model[1].weight[rows["1"]])
