"""Every layout computes what dense float64 does: odd shapes, empty rows, no connections, every instruction set, one sample and many."""

import copy
import math
import pickle

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from oracles import connections, made

from truesparse import Topology, Unstructured, _core
from truesparse.inference.graph.layers import Weights
from truesparse.inference.layouts import Columns, ColumnsCandidate, Dense, Pairs, PairShape, Windows, WindowsCandidate, pairs, windows
from truesparse.topology.geometry import Matrix

ISAS = _core.supported_isas()
WINDOWS = [WindowsCandidate(4, 2), WindowsCandidate(4, 4), *map(WindowsCandidate, (5, 7, 8, 16))]
COLUMNS = [ColumnsCandidate("whole"), ColumnsCandidate("lists"), ColumnsCandidate("lists", 3)]
PAIRS = [PairShape(1, 16), PairShape(2, 5), PairShape(2, 100, 3), PairShape(1, 33, 2)]


@pytest.fixture(autouse=True, params=ISAS)
def isa(request):
    before = _core.isa()
    _core.use_isa(request.param)
    yield request.param
    _core.use_isa(before)


def weights_of(topology, bias=True, seed=0):
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(topology.nnz, generator=draw)
    return Weights(Matrix(*topology.shape), topology, values, torch.randn(topology.shape[0], generator=draw) if bias else None)


def expected(weights, relu, x):
    y = x.double() @ weights.topology.scatter(weights.values).double().T
    if weights.bias is not None:
        y = y + weights.bias.double()
    return y.relu() if relu else y


def hold(layout, weights, batch, tolerance=1e-5):
    x = torch.randn(batch, weights.topology.shape[1], generator=torch.Generator().manual_seed(batch))
    y, wanted = layout(x), expected(weights, layout.relu, x)
    assert y.shape == wanted.shape
    assert y.dtype == torch.float32
    size = float(wanted.abs().max()) if wanted.numel() else 0.0
    assert wanted.numel() == 0 or float((y - wanted).abs().max()) <= tolerance * max(size, 1.0)


@settings(max_examples=30)
@given(connections(), st.sampled_from(WINDOWS), st.booleans(), st.booleans())
def test_small_matrices(drawn, kind, bias, relu):
    extents, pairs = drawn
    weights = weights_of(made(extents, pairs), bias)
    for batch in (0, 1, 3, 6):
        hold(Windows(weights, relu, kind), weights, batch)


@settings(max_examples=30)
@given(connections(), st.sampled_from(PAIRS), st.booleans(), st.booleans())
def test_small_matrices_in_pairs(drawn, shape, bias, relu):
    extents, pairs = drawn
    weights = weights_of(made(extents, pairs), bias)
    for batch in (0, 1, 3, 33):
        hold(Pairs(weights, relu, shape), weights, batch)


@pytest.mark.parametrize("shape", PAIRS, ids=str)
@pytest.mark.parametrize("sparsity", [0.3, 0.8, 0.95, 0.995])
def test_pairs(shape, sparsity):
    for rows, columns in ((16, 16), (17, 33), (100, 250), (5, 1000)):
        topology = Unstructured().random((rows, columns), round(rows * columns * (1 - sparsity)), torch.Generator().manual_seed(rows))
        weights = weights_of(topology)
        layout = Pairs(weights, rows % 2 == 1, shape)
        for batch in (5, 16, 40, 100):
            hold(layout, weights, batch)


def test_rows_alike_share_all_columns():
    """Pairs that need the same columns hold each place once."""
    mask = torch.rand(20, 60, generator=torch.Generator().manual_seed(0)) < 0.3
    weights = weights_of(Topology.from_mask(torch.cat([mask, mask.roll(7, 0)])))
    alone = weights_of(Topology.from_mask(mask))
    for shape in (PairShape(1, 60), PairShape(1, 20)):
        both, one = Pairs(weights, False, shape), Pairs(alone, False, shape)
        places, values = both.arrays[3], both.arrays[4]
        assert len(values) == weights.topology.nnz
        assert len(places) == alone.topology.nnz < len(one.arrays[4])
        hold(both, weights, 20)


@pytest.mark.parametrize("kind", WINDOWS, ids=str)
@pytest.mark.parametrize("sparsity", [0.3, 0.8, 0.95, 0.995])
def test_windows(kind, sparsity):
    for rows, columns in ((16, 16), (17, 33), (100, 250), (5, 1000)):
        topology = Unstructured().random((rows, columns), round(rows * columns * (1 - sparsity)), torch.Generator().manual_seed(rows))
        weights = weights_of(topology)
        layout = Windows(weights, rows % 2 == 1, kind)
        for batch in (1, 5, 9):
            hold(layout, weights, batch)


@pytest.mark.parametrize("candidate", [*WINDOWS, *PAIRS, *COLUMNS], ids=str)
@pytest.mark.parametrize("batch", [3, 150])
def test_threads_change_nothing(candidate, batch, monkeypatch):
    monkeypatch.setattr("truesparse.inference.layouts.columns.WORK_OF_A_THREAD", 1)
    monkeypatch.setattr(Columns, "_dense_is_faster", lambda layout, x: False)
    monkeypatch.setattr(windows, "WORK_OF_A_THREAD", 1)
    monkeypatch.setattr(pairs, "WORK_OF_A_THREAD", 1)
    weights = weights_of(Unstructured().random((100, 250), 3000, torch.Generator().manual_seed(0)))
    layout, x, before = candidate.make(weights, False, "float32"), torch.randn(batch, 250), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = layout(x)
        torch.set_num_threads(2)
        assert torch.equal(layout(x), alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("relu", [False, True])
def test_dense(relu):
    topology = Unstructured().random((37, 70), 400, torch.Generator().manual_seed(0))
    weights = weights_of(topology)
    for batch in (1, 3, 40):
        hold(Dense(weights, relu), weights, batch)


def test_connections_crowded_into_one_window_and_empty_rows():
    mask = torch.zeros(40, 200, dtype=torch.bool)
    mask[3, 64:96] = mask[4, :] = mask[39, 199] = mask[20, :17] = True
    weights = weights_of(Topology.from_mask(mask))
    for candidate in (*WINDOWS, *PAIRS, *COLUMNS):
        hold(candidate.make(weights, False, "float32"), weights, 2)


def test_what_is_not_finite_stays_where_it_belongs():
    topology = Topology.from_mask(torch.eye(40, dtype=torch.bool))
    x = torch.ones(1, 40)
    x[0, 5], x[0, 6], x[0, 7] = float("nan"), float("inf"), -float("inf")
    for relu in (False, True):
        weights = Weights(Matrix(40, 40), topology, torch.ones(40), None)
        for layout in [one.make(weights, relu, "float32") for one in (*WINDOWS, *PAIRS, *COLUMNS[1:])]:
            y = layout(x)[0]
            assert bool(y[5].isnan())
            assert y[6] == float("inf")
            assert y[7] == (0.0 if relu else -float("inf"))


@pytest.mark.parametrize(("values", "tolerance"), [("bfloat16", 2**-8), ("int8", 1 / 127)])
@pytest.mark.parametrize("kind", [*WINDOWS, *COLUMNS], ids=str)
def test_narrow_values_are_off_by_their_rounding_only(values, tolerance, kind):
    topology = Unstructured().random((50, 300), 3000, torch.Generator().manual_seed(0))
    weights = weights_of(topology)
    layout = kind.make(weights, False, values)
    x = torch.randn(3, 300)
    dense = topology.scatter(weights.values).abs()
    largest = dense.amax(1, keepdim=True).expand_as(dense) if values == "int8" else dense
    bound = (x.abs().double() @ (largest * topology.mask()).double().T) * tolerance / 2
    error = (layout(x) - expected(weights, False, x)).abs()
    assert bool((error <= bound + 1e-4).all())
    assert float(error.max()) > 1e-4, "values were not rounded at all"
    assert layout.nbytes < kind.make(weights, False, "float32").nbytes


@pytest.mark.parametrize("values", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kind", WINDOWS, ids=str)
def test_of_many_samples_windows_are_unpacked(values, kind):
    for rows, columns, count in ((50, 300, 7500), (7, 5, 18), (20, 16, 0), (33, 3, 99), (16, 64, 1024)):
        weights = weights_of(Unstructured().random((rows, columns), count, torch.Generator().manual_seed(rows)))
        layout, x = Windows(weights, rows % 2 == 0, kind, values), torch.randn(9, columns)
        layout.dense_from = windows.NEVER
        y = layout(x)
        layout.dense_from = 9
        torch.testing.assert_close(layout(x), y, rtol=1e-5, atol=1e-4)


def test_windows_tell_from_how_many_samples_on_they_are_unpacked(isa):
    half = Windows(
        weights_of(Unstructured().random((160, 400), 32000, torch.Generator().manual_seed(0))), False, WINDOWS[2 if isa == "avx512" else 1]
    )
    assert 2 < half.dense_from < 1000
    assert str(half).endswith(f", dense from {half.dense_from} samples on")
    rare = Windows(weights_of(Unstructured().random((160, 400), 320, torch.Generator().manual_seed(0))), False, WINDOWS[-1])
    assert rare.dense_from == windows.NEVER
    assert "dense" not in str(rare)


def test_layouts_can_be_copied_and_pickled():
    weights = weights_of(Unstructured().random((30, 60), 300, torch.Generator().manual_seed(0)))
    x = torch.randn(2, 60)
    made_ones = [Windows(weights, False, WINDOWS[1]), Windows(weights, True, WINDOWS[3], "int8")]
    made_ones += [Columns(weights, True, one, values) for one in COLUMNS for values in ("float32", "int8")]
    for layout in (Dense(weights), Pairs(weights, True, PAIRS[2]), *made_ones):
        y = layout(x)
        for other in (copy.deepcopy(layout), pickle.loads(pickle.dumps(layout))):
            assert torch.equal(other(x), y)


def test_windows_that_cannot_be():
    for kind in ((0, 1), (6, 1), (4, 1), (5, 2)):
        with pytest.raises(ValueError, match=r"bits of a place and windows of a stop are of \(4, 2\), .*, got \("):
            WindowsCandidate(*kind)


def test_pair_shapes_that_cannot_be():
    for abreast, width, parts in ((3, 16, 1), (1, 0, 1), (1, 4097, 1), (2, 16, 0)):
        with pytest.raises(ValueError, match="pairs are 1 or 2 abreast, in blocks of 1 to 4096 columns and at least one part"):
            PairShape(abreast, width, parts)


@pytest.mark.parametrize("shape", PAIRS, ids=str)
@pytest.mark.parametrize("left", [math.inf, math.nan])
def test_what_an_earlier_call_left_in_scratch_memory_is_never_read(shape, left):
    other = weights_of(Unstructured().random((40, 160), 3200, torch.Generator().manual_seed(1)))
    Pairs(other, False, shape)(torch.full((70, 160), left))
    weights = weights_of(Unstructured().random((21, 90), 500, torch.Generator().manual_seed(2)))
    for batch in (2, 7, 17, 70):
        hold(Pairs(weights, False, shape), weights, batch)
        Pairs(other, False, shape)(torch.full((70, 160), left))
