"""Random networks: every operation that the passes understand, and some that they do not, in any order."""

import hypothesis.strategies as st
import torch
from torch import nn

from truesparse import SparseConv2d, SparseLinear


class Net(nn.Module):
    """Layers by name, and a function of them and the input."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x)


SMOOTH = (nn.Tanh, nn.GELU, nn.SiLU, nn.LeakyReLU)  # nothing dies by chance, and zero stays zero
ANY = (*SMOOTH, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Sigmoid)


class Program(nn.Module):
    """Steps, each a function of the module and of earlier results: (function, places of its inputs)."""

    def __init__(self, modules, steps, outputs):
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.steps, self.outputs = steps, outputs

    def forward(self, x):
        values = [x]
        for function, places in self.steps:
            values.append(function(self, *(values[place] for place in places)))
        return tuple(values[place] for place in self.outputs)


def thinned(layer, generator, bias):
    """A layer with about half of its rows and columns empty, dense or sparse, in float64."""
    layer = layer.double()
    rows, inputs = layer.weight.shape[:2]
    mask = (torch.rand(layer.weight.shape, generator=generator) < 0.5).double()
    for extent, axis in ((rows, 0), (inputs, 1)):
        mask.index_fill_(axis, (torch.rand(extent, generator=generator) < 0.3).nonzero().flatten(), 0.0)
    layer.weight.data = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64) * mask
    if layer.bias is not None:
        layer.bias.data = torch.randn(rows, generator=generator, dtype=torch.float64) * bias
    if torch.rand(1, generator=generator) < 0.3:
        return layer
    return (SparseConv2d if isinstance(layer, nn.Conv2d) else SparseLinear).from_dense(layer)


def norm(kind, channels, generator, shift):
    """A BatchNorm in eval mode with statistics of its own; a channel may have the weight zero."""
    made = kind(channels).double().eval()
    made.running_mean = torch.randn(channels, generator=generator, dtype=torch.float64) * shift
    made.running_var = torch.rand(channels, generator=generator, dtype=torch.float64) + 0.5
    made.weight.data = torch.randn(channels, generator=generator, dtype=torch.float64) * (torch.rand(channels, generator=generator) > 0.2)
    made.bias.data = torch.randn(channels, generator=generator, dtype=torch.float64) * shift
    return made


class Builder:
    """Draws steps, keeping the shape of each result without its batch."""

    def __init__(self, draw, shape, generator, smooth, constants):
        self.draw, self.generator, self.smooth, self.constants = draw, generator, smooth, constants
        self.modules, self.steps, self.shapes = [], [], [shape]

    def one_of(self, *choices):
        return self.draw(st.sampled_from(choices))

    def add(self, function, *places, shape):
        self.steps.append((function, places))
        self.shapes.append(shape)

    def module(self, made, place, shape):
        number = len(self.modules)
        self.modules.append(made)
        self.add(lambda program, x: program.parts[number](x), place, shape=shape)

    def layer(self, place, outputs=None):
        shape = self.shapes[place]
        outputs = outputs or self.draw(st.integers(2, 6))
        bias = self.one_of(True, True, False)
        if len(shape) == 1:
            self.module(thinned(nn.Linear(shape[0], outputs, bias), self.generator, self.constants), place, (outputs,))
            return
        groups = self.one_of(1, 1, shape[0], 2 if shape[0] % 2 == 0 else 1)
        outputs = outputs if groups == 1 else groups * self.one_of(1, 2)
        kernel = self.one_of(1, 3) if min(shape[1:]) >= 3 else 1
        # Where constants are not zero, the exact counts are for convolutions without a border of zeros.
        padding = self.one_of(0, 1, "same") if kernel == 3 and not (self.smooth and self.constants) else 0
        mode = self.one_of("zeros", "zeros", "reflect") if padding == 1 else "zeros"
        stride = self.one_of(1, 2) if padding != "same" else 1
        made = nn.Conv2d(shape[0], outputs, kernel, stride, padding, 1, groups, bias, mode)
        with torch.no_grad():
            size = made(torch.zeros(1, *shape)).shape[1:]
        self.module(thinned(made, self.generator, self.constants), place, tuple(size))

    def norm(self, place):
        shape = self.shapes[place]
        kind = nn.BatchNorm1d if len(shape) == 1 else nn.BatchNorm2d
        self.module(norm(kind, shape[0], self.generator, self.constants), place, shape)

    def activation(self, place):
        kind = self.one_of(*(SMOOTH if self.smooth else ANY))
        self.module(kind(), place, self.shapes[place])

    def pool(self, place):
        shape = self.shapes[place]
        if len(shape) == 1 or min(shape[1:]) < 4:
            return
        half = shape[0], shape[1] // 2, shape[2] // 2
        self.module(self.one_of(nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(half[1:])), place, half)

    def flatten(self, place):
        shape = self.shapes[place]
        if len(shape) == 1:
            return
        extent = torch.Size(shape).numel()
        spellings = (
            lambda _, x: torch.flatten(x, 1),
            lambda _, x: x.view(x.size(0), -1),
            lambda _, x: x.reshape(-1, extent),
            lambda _, x: x.reshape((x.shape[0], extent)),
        )
        # At a border of zeros, single positions of a channel may be constant; where counts are exact, channels are taken as wholes.
        if (self.constants or not self.smooth) and self.one_of(True, False):
            self.add(self.one_of(*spellings), place, shape=(extent,))
        else:
            self.add(self.one_of(lambda _, x: x.mean((2, 3)), lambda _, x: x.mean([-2, -1])), place, shape=(shape[0],))

    def together(self, place):
        """An addition or a concatenation with an earlier result."""
        shape = self.shapes[place]
        same = [other for other, its in enumerate(self.shapes) if its == shape and other != place]
        beside = [other for other, its in enumerate(self.shapes) if its[1:] == shape[1:] and len(its) == len(shape)]
        if same and self.one_of(True, True, False):
            add = self.one_of(lambda _, a, b: a + b, lambda _, a, b: torch.sub(a, b, alpha=0.7))
            self.add(add, place, self.draw(st.sampled_from(same)), shape=shape)
        else:
            other = self.draw(st.sampled_from(beside))
            joined = shape[0] + self.shapes[other][0]
            if joined <= 12:
                self.add(lambda _, a, b: torch.cat([a, b], 1), place, other, shape=(joined, *shape[1:]))

    def residual(self, place):
        """A layer whose outputs are added to its inputs."""
        shape = self.shapes[place]
        if len(shape) > 1:
            made = nn.Conv2d(shape[0], shape[0], 1, bias=self.one_of(True, False))
        else:
            made = nn.Linear(shape[0], shape[0], bias=self.one_of(True, False))
        self.module(thinned(made, self.generator, self.constants), place, shape)
        self.add(lambda _, a, b: a + b, place, len(self.steps), shape=shape)

    def again(self, place):
        """An earlier layer of the same number of inputs, called once more."""
        shape = self.shapes[place]
        numbers = [
            number
            for number, made in enumerate(self.modules)
            if (isinstance(made, (nn.Linear, SparseLinear)) and len(shape) == 1 and made.in_features == shape[0])
            or (isinstance(made, nn.BatchNorm1d) and len(shape) == 1 and made.num_features == shape[0])
        ]
        if numbers:
            number = self.draw(st.sampled_from(numbers))
            made = self.modules[number]
            outputs = shape[0] if isinstance(made, nn.BatchNorm1d) else made.out_features
            self.add(lambda program, x: program.parts[number](x), place, shape=(outputs,))

    def dropout(self, place):
        self.module(self.one_of(nn.Dropout(0.5), nn.Identity()), place, self.shapes[place])

    def other(self, place):
        """What is not understood, or only sometimes: mixing channels, writing in place, taking some channels, multiplying."""
        shape = self.shapes[place]
        half, padded = (shape[0] + 1) // 2, (shape[0] + 2, *shape[1:])
        border = (0, 0) * (len(shape) - 1)
        function, made = self.one_of(
            (lambda _, x: torch.softmax(x, 1), shape),
            (lambda _, x: x.flip(1), shape),
            (lambda _, x: x[:, :half], (half, *shape[1:])),
            (lambda _, x: x.chunk(2, 1)[0], (half, *shape[1:])),
            (lambda _, x: x * torch.sigmoid(x), shape),
            (lambda _, x: 0.5 * x + 1.0, shape),
            (lambda _, x: x * x.size(1), shape),
            (lambda _, x: torch.relu_(x.clone()), shape),
            (lambda _, x: x.mul_(0.5), shape),
            (lambda _, x: nn.functional.relu(x, inplace=True), shape),
            (lambda _, x: nn.functional.pad(x, (*border, 1, 1), value=0.5), padded),
            (lambda _, x: x[:, :, ::2] if len(shape) > 1 else x, (shape[0], (shape[1] + 1) // 2, *shape[2:]) if len(shape) > 1 else shape),
        )
        self.add(function, place, shape=made)


KINDS = ("layer", "layer", "layer", "norm", "activation", "activation", "pool", "flatten", "together", "residual", "again", "dropout")


@st.composite
def programs(draw, kinds=KINDS, smooth=False, constants=True, images=None, latest=False, outputs=True):
    """(a network in eval mode, an example) with the kinds of steps given.

    Args:
        kinds: methods of `Builder`.
        smooth: only activations that let everything through.
        constants: whether biases and offsets are other than zero.
        images: whether inputs are images; None draws it.
        latest: each step follows the one before: a chain.
        outputs: whether other results may be outputs too.
    """
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    shape = (draw(st.integers(1, 3)), 7, 7) if (draw(st.booleans()) if images is None else images) else (draw(st.integers(2, 5)),)
    builder = Builder(draw, shape, generator, smooth, constants)
    builder.layer(0)
    for _ in range(draw(st.integers(2, 9))):
        last = len(builder.steps)
        place = last if latest else draw(st.sampled_from([last, last, max(1, last - 1)]))
        getattr(builder, draw(st.sampled_from(kinds)))(place)
    builder.layer(len(builder.steps), outputs=2)
    last = len(builder.steps)
    also = [draw(st.integers(1, last - 1))] if outputs and draw(st.integers(0, 4)) == 0 else []
    model = Program(builder.modules, builder.steps, [last, *also]).eval()
    return model, torch.randn(2, *shape, generator=generator, dtype=torch.float64)
