"""What is removed, and what stays, where one can see it by eye: one network for each thing that may hold a neuron back."""

import pytest
import torch
import torch.nn.functional as F
from oracles import drawn
from programs import Net
from torch import nn

from truesparse import NM, FanIn, SparseConv2d, SparseLinear, Unstructured
from truesparse.inference import simplify


def linear(text, bias=True, sparse=True, pattern=None):
    """A linear layer drawn as rows of x and dots, with random weights."""
    mask = drawn(text)
    dense = nn.Linear(mask.shape[1], mask.shape[0], bias).double()
    dense.weight.data *= mask
    return SparseLinear.from_dense(dense, pattern=pattern) if sparse else dense


def conv(text, kernel=1, bias=True, sparse=True, **settings):
    """A convolution drawn as [out_channels, in_channels / groups]: all taps of a channel or none."""
    mask = drawn(text)
    inputs = mask.shape[1] * settings.get("groups", 1)
    dense = nn.Conv2d(inputs, mask.shape[0], kernel, bias=bias, **settings).double()
    dense.weight.data *= mask[:, :, None, None]
    return SparseConv2d.from_dense(dense) if sparse else dense


def removed(net, shape):
    """{layer: (neurons left, inputs left, connections left)}, after a look at the outputs for two sizes of batch."""
    x = torch.randn(2, *shape, dtype=torch.float64)
    simplified = simplify(net, x)
    net.eval()
    for one in (x, torch.randn(5, *shape, dtype=torch.float64)):
        torch.testing.assert_close(simplified.module(one), net(one), rtol=1e-9, atol=1e-9)
    return {change.name: (change.neurons[1], change.inputs[1], change.connections[1]) for change in simplified.layers}


CHAIN = {"a": "xx. .x. x.. ... xxx", "b": "xx..x .x.x. ..x..", "c": "x.. xx."}


@pytest.mark.parametrize("sparse", [True, False])
def test_a_chain(sparse):
    # a: neuron 3 has no input; b: neuron 2 has no output, so a's neuron 2 has none either.
    net = Net(lambda m, x: m.c(torch.tanh(m.b(F.relu(m.a(x))))), **{name: linear(text, sparse=sparse) for name, text in CHAIN.items()})
    assert removed(net, (3,)) == {"a": (3, 3, 6), "b": (2, 3, 4), "c": (2, 2, 3)}


def test_a_chain_of_constants_ends_in_the_last_bias():
    net = Net(lambda m, x: m.c(torch.sigmoid(m.b(torch.sigmoid(m.a(x))))), a=linear("... xx."), b=linear("x. .x"), c=linear("x. xx"))
    assert removed(net, (3,)) == {"a": (1, 3, 2), "b": (1, 1, 1), "c": (2, 1, 1)}


def test_a_constant_gives_a_bias_to_a_layer_that_had_none():
    net = Net(lambda m, x: m.b(torch.sigmoid(m.a(x))), a=linear("... xx.", bias=False), b=linear("xx x.", bias=False))
    assert removed(net, (3,)) == {"a": (1, 3, 2), "b": (2, 1, 1)}
    assert simplify(net, torch.randn(1, 3).double()).module.b.bias is not None


def test_one_neuron_stays_where_none_matters():
    net = Net(lambda m, x: m.b(F.relu(m.a(x))), a=linear("xxx xxx"), b=linear(".. .."))
    assert removed(net, (3,)) == {"a": (1, 3, 0), "b": (2, 1, 0)}


def test_an_addition_loses_only_what_all_its_parts_can_lose():
    # Of the sum, c reads place 0 only; a's place 1 is read by d too, so b keeps a neuron there, without connections.
    layers = {"a": linear("xx xx xx"), "b": linear("xx xx xx"), "c": linear("x.."), "d": linear(".x.")}
    net = Net(lambda m, x: m.c(F.relu((y := m.a(x)) + m.b(x))) + m.d(y), **layers)
    assert removed(net, (2,)) == {"a": (2 + 2, 2, 4 + 2), "c": (1, 2, 1), "d": (1, 2, 1)}  # a and b read the same: they are joined


def test_what_is_added_to_the_input_stays():
    net = Net(lambda m, x: m.b(x + m.a(x)), a=linear("xx xx"), b=linear("x."))
    assert removed(net, (2,)) == {"a": (2, 2, 2), "b": (1, 2, 1)}


def test_parts_of_a_concatenation_are_removed_apart():
    net = Net(lambda m, x: m.c(torch.cat([m.a(x), x, m.b(x)], 1)), a=linear("xx xx"), b=linear("xx .. xx"), c=linear(".x..xx."))
    assert removed(net, (2,)) == {"a": (1 + 1, 2, 2 + 2), "c": (1, 4, 2)}  # a and b read the same: they are joined


@pytest.mark.parametrize("constant_first", [True, False])
def test_a_layer_called_twice_keeps_what_one_call_needs(constant_first):
    def function(m, x):
        first, second = (m.a(m.s(x)), m.a(x)) if constant_first else (m.a(x), m.a(m.s(x)))
        return m.b(first) + m.c(second)

    # s's place 1 is constant, but x's is not. a's outputs 2 and 3 nobody reads.
    net = Net(function, s=linear("xxx ... xxx"), a=linear("xx. .xx x.. .xx"), b=linear("x..."), c=linear(".x.."))
    left = removed(net, (3,))
    assert {name: left[name] for name in "abc"} == {"a": (2, 3, 4), "b": (1, 2, 1), "c": (1, 2, 1)}


@pytest.mark.parametrize(
    "flat",
    [
        nn.Flatten(),
        lambda x: torch.flatten(x, 1),
        lambda x: x.view(x.size(0), -1),
        lambda x: x.view(-1, 12),
        lambda x: x.reshape((x.shape[0], 12)),
        lambda x: x.reshape(x.size()[0], -1),
        lambda x: torch.reshape(x, (-1, 12)),
    ],
)
def test_a_channel_is_a_block_of_columns(flat):
    # Channel 1 is read at one position only; channel 0 at none; channel 2 is constant.
    net = Net(lambda m, x: m.b(m.flat(F.relu(m.a(x)))), flat=flat, a=conv("xx xx .."), b=linear("....x....... ........xxxx"))
    assert removed(net, (2, 2, 2)) == {"a": (1, 2, 2), "b": (2, 4, 1)}


POOLS = {
    "max": (nn.MaxPool2d(3, 2, padding=1), True),
    "ceil": (nn.MaxPool2d(2, ceil_mode=True), True),
    "average": (nn.AvgPool2d(2, ceil_mode=True), True),
    "average of what is there": (nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), True),
    "adaptive": (nn.AdaptiveAvgPool2d(2), True),
    "adaptive max": (nn.AdaptiveMaxPool2d((3, 1)), True),
    "average over a border": (nn.AvgPool2d(3, 2, padding=1), False),
    "divided by something": (nn.AvgPool2d(2, ceil_mode=True, divisor_override=3), False),
    "functional": (lambda x: F.max_pool2d(x, 3, stride=2, padding=1), True),
    "mean": (lambda x: x.mean((2, 3), keepdim=True), True),
    "slices": (lambda x: x[:, :, ::2, 1:], True),
    "border of zeros": (lambda x: F.pad(x, (1, 0, 2, 1)), False),
    "cropped": (lambda x: F.pad(x, (-1, 0)), True),
    "dilated over a border": (nn.MaxPool2d(2, padding=1, dilation=2), None),
    "softmax": (lambda x: torch.softmax(x, 1), None),
    "flip": (lambda x: x.flip(1), None),
    "norm of channels": (nn.GroupNorm(1, 3).double(), None),
    "some channels": (lambda x: x[:, [0, 1, 2]], None),
    "all channels": (lambda x: x * x.size(1), None),
}


@pytest.mark.parametrize(("pool", "constant"), POOLS.values(), ids=POOLS)
def test_pooling_and_what_is_not_understood(pool, constant):
    # Channel 0 is read, channel 1 is not, channel 2 is constant.
    net = Net(lambda m, x: m.b(m.pool(torch.sigmoid(m.a(x)))), pool=pool, a=conv("xx xx .."), b=conv("x.x"))
    left = {None: (3, 3, 2, 4), False: (2, 2, 2, 2), True: (1, 1, 1, 2)}[constant]
    assert removed(net, (2, 5, 5)) == {"a": (left[0], 2, left[3]), "b": (1, left[1], left[2])}


@pytest.mark.parametrize(
    ("settings", "stays"),
    [
        ({"padding": 1}, True),
        ({"padding": "same"}, True),
        ({"padding": 0}, False),
        ({"padding": "valid"}, False),
        ({"padding": 1, "padding_mode": "circular"}, False),
        ({"padding": 1, "padding_mode": "replicate"}, False),
        ({"padding": (0, 1)}, True),
    ],
    ids=str,
)
@pytest.mark.parametrize("sparse", [True, False])
def test_a_border_of_zeros_is_no_constant(settings, stays, sparse):
    net = Net(lambda m, x: m.b(torch.sigmoid(m.a(x))), a=conv("x ."), b=conv("xx", 3, sparse=sparse, **settings))
    left = removed(net, (1, 5, 5))
    assert left["a"] == (1 + stays, 1, 1)
    assert left["b"] == (1, 1 + stays, {False: 9, True: 18 - (3 if settings["padding"] == (0, 1) else 1)}[stays])


def test_zeros_go_through_a_border():
    net = Net(lambda m, x: m.b(torch.tanh(m.a(x))), a=conv("x .", bias=False), b=conv("xx", 3, padding=1))
    assert removed(net, (1, 5, 5)) == {"a": (1, 1, 1), "b": (1, 1, 9)}


def test_taps_that_never_reach_over_the_border_read_a_constant():
    b = conv("xx", 3, sparse=False, padding=1)
    b.weight.data[0, 1] *= torch.eye(3)[1].outer(torch.eye(3)[1])  # of channel 1, the middle only
    net = Net(lambda m, x: m.b(torch.sigmoid(m.a(x))), a=conv("x ."), b=b)
    assert removed(net, (1, 5, 5)) == {"a": (1, 1, 1), "b": (1, 1, 9)}


def test_of_a_grouped_convolution_whole_groups_go():
    # Depthwise: channel 1 is not read, channel 2 is zero before it.
    net = Net(
        lambda m, x: m.c(m.b(torch.tanh(m.a(x)))),
        a=conv("x x . x", bias=False),
        b=conv("x x x x", 3, groups=4, padding=1, bias=False),
        c=conv("x.xx"),
    )
    assert removed(net, (1, 4, 4)) == {"a": (2, 1, 2), "b": (2, 2, 18), "c": (1, 2, 2)}
    # Two in a group: of the first, both outputs must be unread.
    net = Net(lambda m, x: m.c(m.b(m.a(x))), a=conv("x x x x"), b=conv("xx xx xx xx", groups=2), c=conv("x..."))
    assert removed(net, (1, 4, 4)) == {"a": (2, 1, 2), "b": (1, 2, 2), "c": (1, 1, 1)}  # the last group is a whole
    net = Net(lambda m, x: m.c(m.b(m.a(x))), a=conv("x x x x"), b=conv("xx xx xx xx", groups=2), c=conv("x..x"))
    assert removed(net, (1, 4, 4)) == {"a": (4, 1, 4), "b": (4, 4, 4), "c": (1, 4, 2)}


def test_a_norm_of_its_own_loses_channels_too():
    norm = nn.BatchNorm1d(3).double()
    norm.running_mean = torch.randn(3).double()
    norm.weight.data = torch.tensor([1.0, 2.0, 0.0]).double()
    # Place 2 has the weight zero: it is constant. Place 1 nobody reads.
    net = Net(lambda m, x: m.b(m.norm(torch.tanh(m.a(x)))), a=linear("xx xx xx"), norm=norm, b=linear("x.x"))
    assert removed(net, (2,)) == {"a": (1, 2, 2), "b": (1, 1, 1)}
    assert simplify(net, torch.randn(1, 2).double()).module.norm.num_features == 1


def test_padded_channels_are_added_to_what_they_meet():
    # As the shortcut of a ResNet with more channels: place 2 and 3 come from zeros and b alone.
    layers = {"a": conv("x x"), "b": conv("x x x x"), "c": conv("x.x.")}
    net = Net(lambda m, x: m.c(F.pad(m.a(x), (0, 0, 0, 0, 0, 2)) + m.b(x)), **layers)
    assert removed(net, (1, 4, 4)) == {"a": (1, 1, 1), "b": (2, 1, 2), "c": (1, 2, 2)}


def test_what_is_an_output_stays():
    net = Net(lambda m, x: ((y := m.a(x)), m.b(y)), a=linear("xx xx"), b=linear("x."))
    assert removed(net, (2,))["a"] == (2, 2, 4)


def test_a_tensor_written_in_place_while_something_else_reads_it():
    def function(m, x):
        y = m.a(x)
        z = m.b(y)
        y.sigmoid_()
        return z + m.c(y)

    net = Net(function, a=linear("xx .."), b=linear("xx"), c=linear("xx"))  # the constant of b is not the constant of c
    assert removed(net, (2,)) == {"a": (2, 2, 2), "b": (1, 2, 2), "c": (1, 2, 2)}

    def chain(m, x):
        y = m.a(x)
        y += 1.0
        return m.b(F.relu(y, inplace=True))

    net = Net(chain, a=linear("xx .. xx"), b=linear("xx."))
    assert removed(net, (2,)) == {"a": (1, 2, 2), "b": (1, 1, 1)}


def test_what_is_written_through_a_view_matters():
    def function(m, x):
        y = m.a(x)
        view = y.view(y.size(0), -1)
        view.add_(m.b(x))
        return m.c(y)  # has what m.b gave, though nothing reads the sum

    net = Net(function, a=linear("xx xx"), b=linear("xx xx"), c=linear("x."))
    assert removed(net, (2,)) == {"a": (2, 2, 4), "b": (2, 2, 4), "c": (1, 2, 1)}


@pytest.mark.parametrize("count", [lambda y: y.size(1), lambda y: y.shape[-1], lambda y: y.numel(), lambda y: y.size()[1]])
def test_channels_that_are_counted_stay(count):
    net = Net(lambda m, x: m.b(y := m.a(x)) + count(y), a=linear("xx xx xx"), b=linear("x.."))
    assert removed(net, (2,)) == {"a": (3, 2, 6), "b": (1, 3, 1)}


def test_weights_that_something_else_reads_stay():
    layer = linear("xx xx", sparse=False)
    net = Net(lambda m, x: m.b(m.a(x)) + m.a.weight.sum(), a=layer, b=linear("x."))
    assert removed(net, (2,))  # the output
    assert simplify(net, torch.randn(1, 2).double()).module.a.weight.shape == (2, 2)


def test_layers_on_the_last_of_three_dimensions():
    net = Net(lambda m, x: x + m.b(F.gelu(m.a(x))), a=linear("xx xx .."), b=linear("x.x x.."))
    assert removed(net, (4, 2)) == {"a": (1, 2, 2), "b": (2, 1, 2)}


def test_a_linear_layer_over_positions_is_not_one_over_channels():
    net = Net(lambda m, x: m.b(m.a(x)), a=conv("x x ."), b=linear("xx.. ...."))
    assert removed(net, (1, 4, 4)) == {"a": (3, 1, 2), "b": (2, 4, 2)}


def test_a_pattern_that_no_longer_holds_is_not_claimed():
    net = Net(lambda m, x: m.b(m.a(x)), a=linear("xx xx .. xx"), b=linear("x.x. ..xx", pattern=NM(2, 4)))
    module = simplify(net, torch.randn(1, 2).double()).module
    assert isinstance(module.b.pattern, Unstructured)
    net = Net(lambda m, x: m.b(m.a(x)), a=linear("xx xx xx xx"), b=linear("x.x. x..x", pattern=FanIn()))
    module = simplify(net, torch.randn(1, 2).double()).module
    assert module.b.pattern == FanIn()
    assert module.b.in_features == 3


def test_stored_zeros_are_no_connections():
    a = linear("xx xx")
    a.values.data[1] = 0.0
    left = simplify(Net(lambda m, x: m.a(x), a=a).eval(), torch.randn(1, 2).double())
    assert left.layers[0].connections == (3, 3)
    assert left.module.a.topology.nnz == 3


@pytest.mark.parametrize("alike", [False, True])
def test_a_layer_called_on_two_tensors_reads_the_constants_that_both_have(alike):
    a, b = linear("xx .."), linear("xx ..")
    b.bias.data[1] = a.bias[1] if alike else -a.bias[1]
    net = Net(lambda m, x: m.c(torch.sigmoid(m.a(x))) + m.c(torch.sigmoid(m.b(x))), a=a, b=b, c=linear("xx"))
    left = 1 if alike else 2
    assert removed(net, (2,)) == {"a": (left, 2, 2), "b": (left, 2, 2), "c": (1, left, left)}


def test_a_norm_called_on_two_tensors_loses_what_both_can_lose():
    # Behind a, place 1 is read by nothing, behind c place 0; place 2 by neither.
    layers = {"a": linear("xx xx xx"), "c": linear("xx xx xx"), "b": linear("x.."), "d": linear(".x.")}
    norm = nn.BatchNorm1d(3).double()
    norm.running_mean = torch.randn(3).double()
    net = Net(lambda m, x: m.b(m.norm(torch.tanh(m.a(x)))) + m.d(m.norm(torch.tanh(m.c(x)))), norm=norm, **layers)
    assert removed(net, (2,)) == {"a": (2, 2, 2), "c": (2, 2, 2), "b": (1, 2, 1), "d": (1, 2, 1)}
    assert simplify(net, torch.randn(1, 2).double()).module.norm.num_features == 2


@pytest.mark.parametrize(("kernel", "dilation", "inside"), [(2, 1, 1), (4, 1, 1), (2, (1, 2), 0), ((1, 2), 1, 1), ((3, 2), 1, 1)])
def test_more_zeros_on_one_side_reach_other_taps(kernel, dilation, inside):
    # With padding "same" an even kernel has one more zero after the input than before it: inside are the taps that read none of them.
    b = conv("xx", kernel, padding="same", dilation=dilation)
    taps = b.topology.nnz // 2
    net = Net(lambda m, x: m.b(torch.sigmoid(m.a(x))), a=conv("x ."), b=b)
    assert removed(net, (1, 7, 7)) == {"a": (2, 1, 1), "b": (1, 2, 2 * taps - inside)}


def test_rows_that_only_a_switched_off_channel_reads_lose_their_connections():
    norm = nn.BatchNorm1d(3).double()
    norm.weight.data[1] = 0.0
    net = Net(lambda m, x: m.b(torch.softmax(m.norm(torch.tanh(m.a(x))), 1)), a=linear("xx xx xx"), norm=norm, b=linear("xxx"))
    assert removed(net, (2,)) == {"a": (3, 2, 4), "b": (1, 3, 3)}
