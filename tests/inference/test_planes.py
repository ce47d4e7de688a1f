"""The layout of convolutions computes what torch does in float64: every kind of geometry, every instruction set, one sample and many."""

import copy
import math
import pickle

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from truesparse import Topology, Unstructured, _core
from truesparse.inference.graph.layers import Weights
from truesparse.inference.layouts import Dense, Finish, Planes, planes
from truesparse.topology.geometry import Convolution


@pytest.fixture(autouse=True, params=_core.supported_isas())
def isa(request):
    before = _core.isa()
    _core.use_isa(request.param)
    yield request.param
    _core.use_isa(before)


def weights_of(geometry, sparsity, bias=True, seed=0):
    draw = torch.Generator().manual_seed(seed)
    rows, columns = geometry.shape
    topology = Unstructured().random(geometry.shape, round(rows * columns * (1 - sparsity)), draw)
    return Weights(geometry, topology, torch.randn(topology.nnz, generator=draw), torch.randn(rows, generator=draw) if bias else None)


def expected(weights, relu, finish, x):
    g, bias = weights.geometry, weights.bias
    weight = weights.topology.scatter(weights.values).view(g.weight_shape).double()
    y = F.conv2d(x.double(), weight, None if bias is None else bias.double(), g.stride, g.padding, g.dilation, g.groups)
    scale = float(y.abs().max()) if y.numel() else 0.0
    y = y.clamp(0.0 if relu else -math.inf, finish.most)
    return F.max_pool2d(y, 2) if finish.pool else y, max(scale, 1.0)


def hold(layout, weights, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))
    y, (wanted, scale) = layout(x), expected(weights, layout.relu, layout.finish, x)
    assert y.shape == wanted.shape
    assert y.dtype == torch.float32
    assert y.numel() == 0 or float((y - wanted).abs().max()) <= 1e-5 * scale


@st.composite
def geometries(draw):
    """A convolution and the size of an image that it takes; depthwise and 1x1 ones are not rare."""
    kind = draw(st.sampled_from(["any", "any", "pointwise", "depthwise"]))
    groups = draw(st.sampled_from([1, 1, 2, 5]))
    inputs, outputs = (groups * draw(st.integers(1, 6)) for _ in range(2))
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, stride, padding, dilation = draw(pair), draw(pair), draw(st.tuples(st.integers(0, 2), st.integers(0, 2))), draw(pair)
    if kind == "pointwise":
        groups, kernel, stride, padding = 1, (1, 1), (1, 1), (0, 0)
    if kind == "depthwise":
        groups, outputs = inputs, inputs * draw(st.integers(1, 2))
    least = [max(1, dilation[axis] * (kernel[axis] - 1) + 1 + stride[axis] - 2 * padding[axis]) for axis in (0, 1)]
    size = [extent + draw(st.integers(0, 20)) for extent in least]
    return Convolution(inputs, outputs, kernel, stride, padding, dilation, groups), size


@settings(max_examples=60)
@given(geometries(), st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.booleans(), st.booleans(), st.sampled_from([math.inf, 0.5]), st.booleans())
def test_small_convolutions(drawn, sparsity, bias, relu, most, pool):
    geometry, size = drawn
    weights = weights_of(geometry, sparsity, bias)
    layout = Planes(weights, relu, Finish(most, pool))
    for batch in (1, 3, 0, 17):
        hold(layout, weights, (batch, geometry.in_channels, *size))


CASES = {
    "many channels": (Convolution(300, 20, (1, 1), (1, 1), (0, 0), (1, 1), 1), (9, 9)),
    "1x1, whole vectors": (Convolution(24, 16, (1, 1), (1, 1), (0, 0), (1, 1), 1), (20, 28)),
    "1x1, channels a page apart": (Convolution(24, 16, (1, 1), (1, 1), (0, 0), (1, 1), 1), (32, 32)),
    "3x3": (Convolution(40, 24, (3, 3), (1, 1), (1, 1), (1, 1), 1), (16, 16)),
    "3x3, a vector wide": (Convolution(12, 9, (3, 3), (1, 1), (1, 1), (1, 1), 1), (7, 8)),
    "3x5, dilated, wider than the image": (Convolution(5, 8, (3, 5), (1, 1), (2, 6), (1, 2), 1), (9, 20)),
    "3x3, without padding": (Convolution(6, 8, (3, 3), (1, 1), (0, 0), (1, 1), 1), (9, 26)),
    "3x3, stride 2": (Convolution(40, 24, (3, 3), (2, 2), (1, 1), (1, 1), 1), (15, 30)),
    "depthwise, many": (Convolution(200, 200, (5, 5), (2, 2), (2, 2), (1, 1), 200), (14, 14)),
    "a large image, in bands": (Convolution(3, 8, (3, 3), (2, 2), (1, 1), (1, 1), 1), (300, 420)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("finish", [Finish(), Finish(6.0), Finish(pool=True)], ids=str)
def test_convolutions_of_networks(case, finish):
    geometry, size = CASES[case]
    weights = weights_of(geometry, 0.8 if geometry.groups == 1 else 0.0)
    layout = Planes(weights, True, finish)
    for batch in (1,) if "large" in case else (1, 2, 16):
        hold(layout, weights, (batch, geometry.in_channels, *size))


@pytest.mark.parametrize("case", CASES)
def test_threads_change_nothing(case, monkeypatch):
    monkeypatch.setattr(planes, "WORK_OF_A_THREAD", 1)
    geometry, size = CASES[case]
    layout = Planes(weights_of(geometry, 0.9 if geometry.groups == 1 else 0.2), False, Finish(pool=True))
    x, before = torch.randn(2, geometry.in_channels, *size), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = layout(x)
        torch.set_num_threads(2)
        assert torch.equal(layout(x), alone)
    finally:
        torch.set_num_threads(before)


def test_rows_of_no_and_of_all_connections():
    geometry = Convolution(4, 6, (3, 3), (1, 1), (1, 1), (1, 1), 1)
    mask = torch.zeros(geometry.shape, dtype=torch.bool)
    mask[1], mask[4, 35] = True, True
    topology = Topology.from_mask(mask)
    weights = Weights(geometry, topology, torch.randn(topology.nnz), torch.randn(6))
    for batch in (1, 16):
        hold(Planes(weights), weights, (batch, 4, 7, 9))
        hold(Planes(weights, True, Finish(0.5, pool=True)), weights, (batch, 4, 7, 9))


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("kernel", [1, 3])
def test_what_is_not_finite_stays_where_it_belongs(batch, kernel):
    geometry = Convolution(3, 3, (kernel, kernel), (1, 1), (kernel // 2, kernel // 2), (1, 1), 3)
    mask = torch.zeros(3, kernel * kernel, dtype=torch.bool)
    mask[:, kernel * kernel // 2] = True
    weights = Weights(geometry, Topology.from_mask(mask), torch.ones(3), None)
    x = torch.ones(batch, 3, 8, 8)
    x[0, 0, 2, 3], x[0, 1, 2, 3], x[0, 2, 2, 3] = float("nan"), float("inf"), -float("inf")
    for finish in (Finish(), Finish(6.0), Finish(pool=True), Finish(6.0, pool=True)):
        wanted = x.clamp(0.0, finish.most)
        wanted = F.max_pool2d(wanted, 2) if finish.pool else wanted
        torch.testing.assert_close(Planes(weights, True, finish)(x), wanted, equal_nan=True)
        if kernel == 1:  # where there is a connection for each weight
            torch.testing.assert_close(Dense(weights, True, finish)(x), wanted, equal_nan=True)


def test_can_be_copied_and_pickled():
    weights = weights_of(CASES["3x3"][0], 0.9)
    layout, x = Planes(weights, True, Finish(2.0, pool=True)), torch.randn(2, 40, 9, 9)
    y = layout(x)
    for other in (copy.deepcopy(layout), pickle.loads(pickle.dumps(layout))):
        assert torch.equal(other(x), y)


def test_images_whose_rows_are_too_wide_are_refused():
    layout = Planes(weights_of(Convolution(1024, 1, (1, 3)), 0.9), False, Finish())
    with pytest.raises(ValueError, match=r"rows of an image hold \d+ numbers, and a convolution takes up to 2\^31 - 1 at a time"):
        layout._plan(torch.Size((1, 1024, 1, 2**21)), 1)
