"""SparseConv2d against F.conv2d with the dense weight, in float64, under every option of nn.Conv2d."""

import pytest
import torch
from torch import nn

from truesparse import FanIn, MaskedConv2d, SparseConv2d, Topology, ops

# nn.Conv2d itself says this of padding that is one longer on one side; it is right all the same.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

OPTIONS = [
    {},
    {"padding": 1},
    {"stride": 2, "padding": 1},
    {"stride": (2, 1), "padding": (0, 2)},
    {"dilation": 2, "padding": 2},
    {"dilation": (1, 2), "stride": (1, 2), "padding": (1, 0)},
    {"groups": 2, "padding": 1},
    {"groups": 4},
    {"bias": False},
    {"kernel_size": 1},
    {"kernel_size": (1, 3), "padding": (0, 1)},
    {"kernel_size": (2, 4)},
    {"kernel_size": 5, "padding": 2, "stride": 3},
    {"padding": "same"},
    {"padding": "same", "kernel_size": (2, 4)},
    {"padding": "same", "dilation": 2},
    {"padding": "valid"},
    {"padding": 1, "padding_mode": "reflect"},
    {"padding": (2, 1), "padding_mode": "replicate", "stride": 2},
    {"padding": 2, "padding_mode": "circular", "groups": 2},
    {"padding": "same", "padding_mode": "circular", "kernel_size": (4, 3)},
    {"padding_mode": "reflect"},
    {"sparsity": 0.0},
    {"sparsity": 1.0},
    {"pattern": FanIn(), "groups": 2},
]
KINDS = [SparseConv2d, MaskedConv2d]


def made(kind=SparseConv2d, **options):
    """A float64 layer of 4 to 8 channels."""
    return kind(4, 8, **{"kernel_size": 3, "sparsity": 0.7, "dtype": torch.float64, **options})


def agree(layer, x):
    """Output and all gradients of `layer` are those of nn.Conv2d with its dense weight."""
    dense = layer.dense_module()
    x = x.clone().requires_grad_()
    dense_x = x.detach().clone().requires_grad_()
    y, expected = layer(x), dense(dense_x)
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected)
    dy = torch.randn_like(expected)
    y.backward(dy)
    expected.backward(dy)
    torch.testing.assert_close(x.grad, dense_x.grad)
    torch.testing.assert_close(layer.of_connections(layer.parameter.grad), dense.weight.grad.flatten()[layer.topology.keys])
    if layer.bias is not None:
        torch.testing.assert_close(layer.bias.grad, dense.bias.grad)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_as_dense(family, options):
    layer = made(**options)
    torch.testing.assert_close(layer.dense_module().weight, layer.to_dense())
    agree(layer, torch.randn(2, 4, 7, 9, dtype=torch.float64))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_masked_twin_is_as_dense(options):
    agree(made(MaskedConv2d, **options), torch.randn(2, 4, 7, 9, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(4, 7, 9), (0, 4, 7, 9), (1, 4, 3, 3), (5, 4, 3, 4)], ids=str)
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])  # FAULT: ConvolutionReference.spmm and spmm_t fail on a batch of 0
def test_batches_and_small_images(family, shape, padding_mode):
    agree(made(padding=1, padding_mode=padding_mode), torch.randn(shape, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"padding": 2, "padding_mode": "circular", "kernel_size": 5}, {"padding": "same", "kernel_size": 4}])
def test_an_image_that_only_fits_with_its_padding(kind, options):
    agree(made(kind, **options), torch.randn(2, 4, 3, 2, dtype=torch.float64))


def test_empty_rows_and_channels(family):
    dense = nn.Conv2d(3, 4, 3, dtype=torch.float64)
    keys = torch.tensor([0, 5, 27 * 3 + 20])  # rows 1 and 2, and the middle channel, have nothing
    agree(SparseConv2d.from_dense(dense, Topology.from_keys((4, 27), keys)), torch.randn(2, 3, 5, 5, dtype=torch.float64))


def test_channels_last(family):
    layer = made(padding=1)
    agree(layer, torch.randn(2, 4, 5, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("options", [{}, {"stride": 2, "groups": 2, "padding": 1}, {"padding": 1, "padding_mode": "reflect"}], ids=str)
def test_first_and_second_derivatives(family, options):
    layer = SparseConv2d(2, 2, 2, **options, sparsity=0.4, dtype=torch.float64)
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    values, bias = (parameter.detach().clone().requires_grad_() for parameter in (layer.values, layer.bias))

    def run(values, x, bias):
        return torch.func.functional_call(layer, {"values": values, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(run, (values, x, bias))
    assert torch.autograd.gradgradcheck(run, (values, x, bias))


@pytest.mark.parametrize("kind", KINDS)
def test_errors(kind):
    layer = made(kind)
    for shape in ((2, 3, 7, 9), (4, 7), (1, 2, 4, 7, 9)):
        with pytest.raises(ValueError, match=r"expected an input of shape \(batch, 4, height, width\), got"):
            layer(torch.zeros(shape, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"an input of 2 x 9 is too small for kernel \(3, 3\)"):
        layer(torch.zeros(1, 4, 2, 9, dtype=torch.float64))
    for wrong in ({"groups": 3}, {"padding": "same", "stride": 2}, {"padding_mode": "mirror"}):
        with pytest.raises(
            ValueError, match=r"channels must be divisible by groups|padding='same' is not supported|padding_mode must be one of"
        ):
            made(kind, **wrong)
    with pytest.raises(ValueError, match=r"sparsity is the share of connections to leave out"):
        made(kind, sparsity=2.0)


def test_dtype_error(family):
    with pytest.raises(TypeError, match=r"expected an input of torch\.float64, the dtype of the values, got torch\.float32"):
        made()(torch.zeros(1, 4, 5, 5))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS[:22], ids=str)
def test_from_dense_and_back(kind, options):
    dense = nn.Conv2d(4, 8, **{"kernel_size": 3, "dtype": torch.float64, **options}).eval()
    mask = torch.rand(dense.weight.shape) < 0.3
    layer = kind.from_dense(dense, Topology.from_mask(mask))
    assert torch.equal(layer.to_dense(), dense.weight * mask)
    back = layer.dense_module()
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "training"):
        assert getattr(back, name) == getattr(dense, name)
        assert getattr(layer, name) == getattr(dense, name)
    assert repr(back) == repr(dense)
    x = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    torch.testing.assert_close(back(x), layer(x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{"padding": "same", "kernel_size": (2, 4)}, {"padding": 1, "padding_mode": "reflect"}], ids=str)
def test_other_connections_keep_padding_and_mode(kind, settings):
    layer = kind(4, 6, **{"kernel_size": 3, **settings}, dtype=torch.float64).eval()
    kept = torch.rand(layer.topology.nnz) < 0.5
    other = layer.with_connections(layer.geometry, layer.topology.keep(kept), layer.values.detach()[kept], None)
    x, dense = torch.randn(2, 4, 7, 7, dtype=torch.float64), layer.dense_module()
    dense.weight.data *= other.topology.mask().view_as(dense.weight)
    torch.testing.assert_close(other(x), dense(x) - dense.bias[:, None, None])
    assert not other.training
    assert other.bias is None


def test_other_connections_must_fit():
    layer = SparseConv2d(4, 6, 3)
    with pytest.raises(ValueError, match=r"expected a topology of shape \(6, 36\) and one value for each of its connections"):
        layer.with_connections(layer.geometry, layer.topology, layer.values[1:], None)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")  # of nn.Conv2d, which says what arguments may be
@pytest.mark.parametrize("sparsity", [0.5, 0.0])
@pytest.mark.parametrize(
    ("family", "inputs", "outputs"), [("native", 4, 0), ("native", 0, 4), ("native", 0, 0), ("reference", 4, 0)]
)  # the reference makes patches with torch's unfold, which wants a channel
@pytest.mark.parametrize("batch", [0, 2])
def test_a_convolution_without_channels_keeps_its_shapes(sparsity, family, inputs, outputs, batch):
    layer = SparseConv2d(inputs, outputs, 3, sparsity=sparsity)
    x = torch.randn(batch, inputs, 6, 5, requires_grad=True)
    with ops.use(family):
        y = layer(x)
        y.sum().backward()
    assert y.shape == (batch, outputs, 4, 3)
    torch.testing.assert_close(y.detach(), layer.bias.detach()[:, None, None].expand(batch, outputs, 4, 3))
    assert x.grad.shape == x.shape
    assert not x.grad.any()
    assert layer.bias.grad.tolist() == [batch * 12.0] * outputs


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_gradient_bounds_hold_in_every_group(groups):
    """The gradient at (row, column) is at most the product of the two sums, and the sums are those of |dy| and |x|."""
    layer = SparseConv2d(6, 12, 3, groups=groups, padding=1, sparsity=0.5)
    samples = [(torch.randn(2, 12, 5, 5), torch.randn(2, 6, 5, 5) * torch.arange(1.0, 7)[:, None, None]) for _ in range(2)]
    rows, columns = layer.gradient_bounds(samples)
    torch.testing.assert_close(rows, sum(dy.abs().sum((0, 2, 3)) for dy, _ in samples))
    inputs = sum(x.abs().sum((0, 2, 3)) for _, x in samples).view(groups, -1).sum(0)
    torch.testing.assert_close(columns, inputs.repeat_interleave(9))
    shape = layer.geometry.weight_shape
    dense = sum(torch.nn.grad.conv2d_weight(x, shape, dy, padding=1, groups=groups) for dy, x in samples).flatten(1).abs()
    assert bool((dense <= rows[:, None] * columns * (1 + 1e-5)).all())
