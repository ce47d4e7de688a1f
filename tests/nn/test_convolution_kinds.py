"""Convolutions along one and three dimensions, and transposed ones, against torch's own with the dense weight, in float64."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import truesparse as ts
from truesparse import ops
from truesparse.nn.initial import initial_values, kept_values
from truesparse.nn.kinds import KINDS, kind_of

# nn.Conv1d itself says this of padding that is one longer on one side; it is right all the same.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

CONVOLUTIONS = [kind for kind in KINDS if hasattr(kind.sparse, "kernel_size")]
TRANSPOSED = [kind for kind in CONVOLUTIONS if hasattr(kind.sparse, "output_padding")]
OTHERS = [kind for kind in CONVOLUTIONS if kind.dense is not nn.Conv2d]
SIZE = (5, 4, 6)


def named(kind):
    return kind.dense.__name__


def dimensions_of(kind):
    return int(kind.dense.__name__[-2])


def made(kind, masked=False, **options):
    """A float64 layer of 4 to 6 channels."""
    options = {"kernel_size": 3, "sparsity": 0.7, "dtype": torch.float64, **options}
    return (kind.masked if masked else kind.sparse)(4, 6, **options)


def sample(kind, *lead):
    return torch.randn(*lead, 4, *SIZE[: dimensions_of(kind)], dtype=torch.float64)


def agree(layer, x, **call):
    """Output and all gradients of `layer` are those of torch's layer with its dense weight."""
    dense = layer.dense_module()
    layer.zero_grad()
    x = x.clone().requires_grad_()
    dense_x = x.detach().clone().requires_grad_()
    y, expected = layer(x, **call), dense(dense_x, **call)
    assert y.shape == expected.shape
    assert y.is_contiguous()
    torch.testing.assert_close(y, expected)
    dy = torch.randn_like(expected)
    y.backward(dy)
    expected.backward(dy)
    torch.testing.assert_close(x.grad, dense_x.grad)
    torch.testing.assert_close(layer.of_connections(layer.parameter.grad), dense.weight.grad.flatten()[layer.topology.keys])
    if layer.bias is not None:
        torch.testing.assert_close(layer.bias.grad, dense.bias.grad)


def test_the_table_holds_every_layer_once_and_its_two_counterparts_agree():
    assert len({kind.dense for kind in KINDS}) == len(KINDS) == 7
    for kind in KINDS:
        assert kind.sparse.stands_for is kind.masked.stands_for is kind.dense
        assert kind.sparse.__name__ == f"Sparse{named(kind)}"
        assert kind.masked.__name__ == f"Masked{named(kind)}"
        assert getattr(ts, kind.sparse.__name__) is kind.sparse
        assert getattr(ts, kind.masked.__name__) is kind.masked
        arguments = (4, 4) if kind.dense is nn.Linear else (4, 4, 3)
        assert all(kind_of(one(*arguments)) is kind for one in (kind.dense, kind.sparse, kind.masked))
    assert kind_of(nn.ReLU()) is None


@st.composite
def cases(draw):
    """A layer of any kind with any legal options, and an input that fits."""
    kind = draw(st.sampled_from(OTHERS))
    n = dimensions_of(kind)

    def each(least, most):
        return tuple(draw(st.integers(least, most)) for _ in range(n))

    groups = draw(st.sampled_from([1, 1, 2]))
    options = {"kernel_size": each(1, 3), "stride": each(1, 3), "dilation": each(1, 2), "padding": each(0, 2), "groups": groups}
    options |= {"bias": draw(st.booleans()), "sparsity": draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])), "dtype": torch.float64}
    size = each(1, 6)
    if kind in TRANSPOSED:
        most = [max(pair) - 1 for pair in zip(options["stride"], options["dilation"], strict=True)]
        options["output_padding"] = tuple(draw(st.integers(0, extent)) for extent in most)
    layer = draw(st.sampled_from([kind.sparse, kind.masked]))(groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3)), **options)
    lead = draw(st.sampled_from([(), (1,), (2,)]))
    return layer, torch.randn(*lead, layer.in_channels, *size, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(case=cases(), family=st.sampled_from(["native", "reference"]))
def test_as_dense(case, family):
    layer, x = case
    fits = min(layer.geometry.output_size(x.shape[-len(layer.kernel_size) :])) > 0
    with ops.use(family):
        if fits:
            agree(layer, x)
        else:
            with pytest.raises(ValueError, match="an input of"):
                layer(x)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in OTHERS if kind not in TRANSPOSED], ids=named)
@pytest.mark.parametrize(
    "options",
    [
        {"padding": "same", "kernel_size": 2},
        {"padding": "valid"},
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": 2, "padding_mode": "replicate", "stride": 2},
        {"padding": "same", "padding_mode": "circular", "groups": 2},
    ],
    ids=str,
)
def test_padding_of_every_kind(kind, options, masked):
    agree(made(kind, masked, **options), sample(kind, 2))
    agree(made(kind, masked, **options), sample(kind))


@pytest.mark.parametrize("kernel", [(3, 1, 1), (1, 1, 3), (1, 3, 3), (1, 1, 1)])
@pytest.mark.parametrize("sparsity", [0.5, 0.95])
def test_flat_kernels_of_volumes(kernel, sparsity):
    for kind in (KINDS[3], KINDS[6]):
        assert dimensions_of(kind) == 3
        agree(made(kind, kernel_size=kernel, sparsity=sparsity, groups=2), sample(kind, 2))


@pytest.mark.parametrize("kind", OTHERS, ids=named)
@pytest.mark.parametrize("sparsity", [0.0, 0.7])
def test_no_samples(kind, sparsity):
    agree(made(kind, sparsity=sparsity), sample(kind, 0))


@pytest.mark.parametrize("kind", OTHERS, ids=named)
def test_first_and_second_derivatives(kind):
    layer = kind.sparse(2, 2, 2, stride=2, padding=1, sparsity=0.4, dtype=torch.float64)
    x = torch.randn(1, 2, *(3, 2, 2)[: dimensions_of(kind)], dtype=torch.float64, requires_grad=True)
    values, bias = (parameter.detach().clone().requires_grad_() for parameter in (layer.values, layer.bias))

    def run(values, x, bias):
        return torch.func.functional_call(layer, {"values": values, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(run, (values, x, bias))
    assert torch.autograd.gradgradcheck(run, (values, x, bias))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", OTHERS, ids=named)
def test_from_dense_and_back(kind, masked):
    options = {"output_padding": 1} if kind in TRANSPOSED else {"padding_mode": "circular"}
    dense = kind.dense(4, 6, 3, stride=2, padding=1, groups=2, dtype=torch.float64, **options).eval()
    mask = torch.rand(dense.weight.shape) < 0.3
    layer = (kind.masked if masked else kind.sparse).from_dense(dense, ts.Topology.from_mask(mask))
    assert torch.equal(layer.to_dense(), dense.weight * mask)
    back = layer.dense_module()
    assert type(back) is kind.dense
    assert repr(back) == repr(dense)
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "training"):
        assert getattr(back, name) == getattr(dense, name)
        assert getattr(layer, name) == getattr(dense, name)
    assert layer.parameter.ndim == dense.weight.ndim
    torch.testing.assert_close(back(sample(kind, 2)).shape, layer(sample(kind, 2)).shape)
    kept = torch.rand(layer.topology.nnz) < 0.5
    other = layer.with_connections(layer.geometry, layer.topology.keep(kept), layer.acting_values.detach()[kept], None)
    x = sample(kind, 2)
    torch.testing.assert_close(other(x), other.dense_module()(x))


@pytest.mark.parametrize("kind", OTHERS, ids=named)
def test_sparsify_and_densify(kind):
    model = nn.Sequential(kind.dense(4, 6, 3), nn.ReLU(), kind.dense(6, 4, 1)).double()
    x, shape = sample(kind, 2), model(sample(kind, 2)).shape
    before = model(x)
    torch.testing.assert_close(ts.sparsify(copy.deepcopy(model), 0.0)(x), before)
    sparse = ts.sparsify(model, 0.5)
    assert [type(one) for one in (sparse[0], sparse[2])] == [kind.sparse] * 2
    y = sparse(x)
    assert y.shape == shape
    said = ts.summary(sparse)
    assert [layer.kind for layer in said.layers] == [kind.sparse.__name__] * 2
    assert said.layers[0].shape == sparse[0].geometry.weight_shape
    assert abs(said.sparsity - 0.5) < 0.02
    dense = ts.densify(copy.deepcopy(sparse))
    assert type(dense[0]) is kind.dense
    torch.testing.assert_close(dense(x), y)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", OTHERS, ids=named)
def test_states_copies_and_pickles(kind, masked):
    layer, x = made(kind, masked, stride=2), sample(kind, 2)
    other = made(kind, masked, stride=2, sparsity=0.3)
    other.load_state_dict(layer.state_dict())
    for same in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(same(x), layer(x))
        assert same.parameter.ndim == dimensions_of(kind) + 2
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), layer(x))


@pytest.mark.parametrize("kind", OTHERS, ids=named)
def test_bfloat16_under_autocast(kind):
    layer = made(kind, stride=2, padding=1, dtype=torch.float32)
    x = sample(kind, 2).float()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert layer.values.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), layer(x), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind", TRANSPOSED, ids=named)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("settings", [{"stride": 3}, {"stride": 2, "padding": 1, "output_padding": 1}, {"stride": 3, "groups": 2}], ids=str)
def test_output_sizes(kind, masked, settings):
    layer, n = made(kind, masked, **settings), dimensions_of(kind)
    least = [extent - more for extent, more in zip(layer.geometry.output_size(SIZE[:n]), layer.output_padding, strict=True)]
    for size in (least, [extent + settings["stride"] - 1 for extent in least], [least[0] + 1, *least[1:]]):
        agree(layer, sample(kind, 2), output_size=size)
    agree(layer, sample(kind, 2), output_size=(2, 6, *least))
    for wrong in ([least[0] - 1, *least[1:]], [*least[:-1], least[-1] + settings["stride"]], [1], (1, 1, 1, *least, 1)):
        if wrong != least:
            with pytest.raises(ValueError, match=r"gives sizes from \[.*\] to \[.*\], got output_size="):
                layer(sample(kind, 2), output_size=wrong)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", OTHERS, ids=named)
def test_errors(kind, masked):
    layer, extents = made(kind, masked), {1: "length", 2: "height, width", 3: "depth, height, width"}[dimensions_of(kind)]
    for shape in ((2, 3, *SIZE[: dimensions_of(kind)]), (4, 7, 5, 5, 5, 5, 5), (4,)):
        with pytest.raises(ValueError, match=rf"expected an input of shape \(batch, 4, {extents}\), got"):
            layer(torch.zeros(shape, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"channels must be divisible by groups"):
        made(kind, masked, groups=3)
    small = made(kind, masked, padding=2, kernel_size=2) if kind in TRANSPOSED else layer
    with pytest.raises(ValueError, match=r"is too small for kernel|leaves no output of kernel"):
        small(torch.zeros(1, 4, *[2] * dimensions_of(kind), dtype=torch.float64))
    if kind in TRANSPOSED:
        with pytest.raises(ValueError, match=r"output_padding must be smaller than stride or dilation"):
            made(kind, masked, output_padding=1)


@pytest.mark.parametrize("kind", OTHERS, ids=named)
def test_a_layer_without_connections_and_with_empty_rows(kind):
    dense = kind.dense(4, 6, 3, dtype=torch.float64)
    shape = dense.weight.flatten(1).shape
    for keys in ([], [0, 5, shape[1] * 2 + 7]):
        agree(kind.sparse.from_dense(dense, ts.Topology.from_keys(tuple(shape), torch.tensor(keys, dtype=torch.int64))), sample(kind, 2))


@pytest.mark.parametrize("kind", CONVOLUTIONS, ids=named)
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_operations_are_those_of_dense_times_the_density(kind, sparsity):
    """Of the forward pass, and of the two gradients."""
    layer = made(kind, sparsity=sparsity, stride=2, groups=2 if sparsity else 1, bias=False)  # torch itself counts groups too often
    dense, x = layer.dense_module(), sample(kind, 2).requires_grad_()
    counts = []
    for one in (layer, dense):
        with FlopCounterMode(display=False) as counter:
            one(x).sum().backward()
        counts.append(counter.get_total_flops())
    positions = 2 * torch.tensor(SIZE[: dimensions_of(kind)]).prod() if kind in TRANSPOSED else layer(x)[:, 0].numel()
    assert counts[0] == 3 * 2 * layer.topology.nnz * int(positions)
    assert sparsity or counts[0] == counts[1]


@pytest.mark.parametrize("kind", TRANSPOSED, ids=named)
def test_initial_values_keep_the_variance_of_the_output(kind):
    """Each output channel has its own number of connections: the variance that comes out is as if it had them all."""
    torch.manual_seed(0)
    n = dimensions_of(kind)
    dense = kind.dense(64, 8, 4, stride=2, bias=False, dtype=torch.float64)
    mask = torch.rand(dense.weight.shape) < torch.linspace(0.05, 0.6, 8).view(1, 8, *[1] * n)
    topology, geometry = ts.Topology.from_mask(mask), kind.sparse.geometry_of(dense)
    torch.testing.assert_close(geometry.fan_in(topology), mask.sum(dim=(0, *range(2, 2 + n))))
    assert torch.equal(geometry.output_of_each(topology), mask.nonzero()[:, 1])
    assert torch.equal(geometry.input_of_each(topology), mask.nonzero()[:, 0])
    x = torch.randn(4, 64, *(24, 12, 7)[n - 1 : n] * n, dtype=torch.float64)
    inner = (..., *[slice(4, -4)] * n)
    for values, expected in (
        (kept_values(dense.weight.detach(), topology, geometry), dense(x)[inner].var().item()),
        (initial_values(topology, geometry, torch.Generator().manual_seed(1), torch.float64), 2.0),
    ):
        y = kind.sparse.from_dense(dense, topology, values=values)(x)[inner].transpose(0, 1).flatten(1)
        torch.testing.assert_close(y.var(1) / expected, torch.ones(8, dtype=torch.float64), rtol=0.35, atol=0)


@pytest.mark.parametrize("kind", OTHERS, ids=named)
@pytest.mark.parametrize("groups", [1, 2])
def test_the_gradient_of_every_position_and_its_bounds(kind, groups):
    layer = made(kind, stride=2, groups=groups)
    dense, x = layer.dense_module(), sample(kind, 2)
    y = dense(x)
    dy = torch.randn_like(y)
    y.backward(dy)
    expected = dense.weight.grad.flatten(1)
    rows = layer.topology.shape[0]
    torch.testing.assert_close(layer.gradient_rows([(dy, x)], 0, rows), expected)
    torch.testing.assert_close(layer.gradient_rows([(dy, x), (dy, x)], 1, rows - 1), 2 * expected[1:-1])
    absent = expected.abs().masked_fill(layer.topology.mask(), -1).flatten()
    assert torch.equal(layer.top_gradients([(dy, x)], layer.topology, 9), absent.topk(9).indices.sort().values)
    by_row, by_column = layer.gradient_bounds([(dy, x)])
    assert bool((expected.abs() <= by_row[:, None] * by_column * (1 + 1e-9)).all())


@pytest.mark.parametrize("kind", [KINDS[1], KINDS[3], KINDS[5]], ids=named)
def test_compiled_as_eager(kind):
    """One graph, forward and backward; a rewiring that keeps the count is seen."""
    torch.compiler.reset()
    layer, x = made(kind, stride=2, groups=2), sample(kind, 2)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), layer(x))
        layer.zero_grad()
        compiled(x).sum().backward()
        agree(layer, x)
        topology = layer.topology
        ts.rewire(layer, None, layer.pattern.grow_random(topology.drop(torch.tensor([0])), topology.nnz, torch.Generator()))
