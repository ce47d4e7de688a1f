"""Columns of inputs that are zero are never read, the rest is the product; they are tried where zeros were seen, and that is told."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from oracles import connections, made
from torch import nn

import truesparse as ts
from truesparse import Topology, Unstructured, _core
from truesparse.inference import choice
from truesparse.inference.choice import Memory, by_rule, key_of, measure
from truesparse.inference.graph.layers import Weights
from truesparse.inference.layouts import Columns, ColumnsCandidate, Conditions, candidates, columns
from truesparse.topology.geometry import Convolution, Matrix

KINDS = [ColumnsCandidate("whole"), ColumnsCandidate("lists"), ColumnsCandidate("lists", 3)]


@pytest.fixture(params=_core.supported_isas())
def isa(request):
    before = _core.isa()
    _core.use_isa(request.param)
    yield request.param
    _core.use_isa(before)


def weights_of(rows, columns, density, bias=True, seed=0):
    draw = torch.Generator().manual_seed(seed)
    topology = Unstructured().random((rows, columns), round(rows * columns * density), draw)
    values = torch.randn(topology.nnz, generator=draw)
    return Weights(Matrix(rows, columns), topology, values, torch.randn(rows, generator=draw) if bias else None)


def expected(weights, x):
    y = x.double() @ weights.topology.scatter(weights.values).double().T
    return y if weights.bias is None else y + weights.bias.double()


def inputs(batch, columns, zeros, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(batch, columns, generator=draw) * (torch.rand(batch, columns, generator=draw) >= zeros)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.95, 1.0])
def test_the_product_whatever_is_zero(isa, kind, zeros):
    for rows, width in ((16, 16), (17, 33), (130, 250), (5, 1000), (4100, 20), (0, 4), (4, 0)):
        weights = weights_of(rows, width, 0.3, bias=rows != 17)
        for batch in (0, 1, 5, 20):
            x = inputs(batch, width, zeros, batch)
            for relu in (False, True):
                wanted = expected(weights, x)
                torch.testing.assert_close(
                    kind.make(weights, relu, "float32")(x).double(), wanted.relu() if relu else wanted, rtol=1e-5, atol=1e-4
                )


@settings(max_examples=30)
@given(connections(), st.sampled_from(KINDS), st.booleans(), st.sampled_from([0.0, 0.7, 1.0]))
def test_small_matrices_as_columns(drawn, kind, bias, zeros):
    extents, pairs = drawn
    topology = made(extents, pairs)
    draw = torch.Generator().manual_seed(0)
    values, biases = torch.randn(topology.nnz, generator=draw), torch.randn(topology.shape[0], generator=draw)
    weights = Weights(Matrix(*topology.shape), topology, values, biases if bias else None)
    for batch in (0, 1, 3):
        x = inputs(batch, topology.shape[1], zeros)
        torch.testing.assert_close(kind.make(weights, False, "float32")(x).double(), expected(weights, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_zeros_of_either_sign_take_no_part_even_of_weights_that_are_not_finite(isa, kind):
    weights = weights_of(40, 30, 1.0)
    dense = weights.topology.scatter(weights.values)
    dense[:, 3], dense[:, 7] = torch.nan, torch.inf
    x = inputs(1, 30, 0.0)
    x[0, 3], x[0, 7] = 0.0, -0.0
    layout = kind.make(Weights(weights.geometry, weights.topology, dense.flatten(), None), False, "float32")
    kept = dense.clone()
    kept[:, [3, 7]] = 0
    torch.testing.assert_close(layout(x), x @ kept.T)
    x[0, 3] = 1e-30
    assert bool(layout(x).isnan().all())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_inputs_that_are_not_finite_are_never_taken_for_zero(isa, kind):
    weights = weights_of(20, 12, 1.0, bias=False)
    x = torch.zeros(1, 12)
    assert torch.equal(kind.make(weights, False, "float32")(x), torch.zeros(1, 20))
    for bad in (torch.nan, torch.inf):
        x[0, 5] = bad
        y = kind.make(weights, True, "float32")(x)[0]
        assert bool(y.isnan().all()) if bad != bad else bool(((y == torch.inf) | (y == 0)).all())


@pytest.mark.parametrize("values", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_of_several_samples_with_few_zeros_torch_takes_over(values, kind, bias, monkeypatch):
    weights = weights_of(300, 200, 0.4, bias)
    layout = kind.make(weights, True, values)
    few, many = inputs(64, 200, 0.99), inputs(64, 200, 0.0)
    assert not layout._dense_is_faster(few[:2])
    assert layout._dense_is_faster(many)
    y = layout(many)
    monkeypatch.setattr(Columns, "_dense_is_faster", lambda layout, x: False)
    torch.testing.assert_close(layout(many), y, rtol=1e-4, atol=1e-3)


def named(found):
    return [str(one) for one in found if str(one).startswith("columns")]


def test_whole_columns_of_int8_need_no_zeros():
    weights = weights_of(48, 640, 0.9)
    for values, kinds in (("float32", []), ("bfloat16", []), ("int8", ["columns:whole"])):
        assert named(candidates(weights, Conditions((1, 640), 2, values=values))) == kinds
    assert named(candidates(weights, Conditions((17, 640), 2, values="int8"))) == []


def test_candidates_go_by_zeros_samples_and_density():
    for density, kinds in ((1.0, ["columns:whole"]), (0.3, ["columns:whole", "columns:lists:2"]), (0.05, ["columns:lists:2"])):
        weights = weights_of(64, 640, density)
        assert named(candidates(weights, Conditions((1, 640), 2, zeros=0.9))) == kinds
        assert named(candidates(weights, Conditions((1, 640), 2, zeros=0.1))) == []
        assert named(candidates(weights, Conditions((17, 640), 2, zeros=0.9))) == []
    geometry = Convolution(4, 8, (3, 3))
    topology = Unstructured().random(geometry.shape, 30, torch.Generator().manual_seed(0))
    assert named(candidates(Weights(geometry, topology, torch.ones(30), None), Conditions((1, 4, 5, 5), 1, zeros=0.9))) == []


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_where_zero_times_a_weight_would_be_nan_columns_are_not_tried(bad):
    weights = weights_of(64, 640, 0.3)
    weights.values[5] = bad
    assert named(candidates(weights, Conditions((1, 640), 1, zeros=0.9))) == []


@pytest.mark.parametrize(
    ("density", "zeros", "chosen"),
    [
        (1.0, 0.9, "columns:whole"),
        (1.0, 0.5, "columns:whole"),
        (0.5, 0.9, "columns:whole"),
        (0.1, 0.9, "columns:lists:1"),
        (0.05, 0.9, "columns:lists:1"),
        (0.1, 0.0, "windows"),
        (1.0, 0.0, "dense"),
    ],
)
def test_the_rule_knows_zeros(density, zeros, chosen):
    assert str(by_rule(weights_of(1024, 1024, density), Conditions((1, 1024), 1, zeros=zeros))).startswith(chosen)


def test_columns_are_measured_with_the_inputs_that_are_given(monkeypatch):
    weights, x, seen = weights_of(48, 160, 0.3), inputs(1, 160, 0.9), []
    right = Columns.__call__
    monkeypatch.setattr(Columns, "__call__", lambda self, x: seen.append(x) or right(self, x))
    measure(weights, False, Conditions((1, 160), 1, zeros=0.9), x)
    assert torch.equal(seen[0], x)
    assert {int(one.count_nonzero()) for one in seen} == {int(x.count_nonzero())}
    assert len({one.numpy().tobytes() for one in seen}) == choice.OTHERS, (
        "other columns each time: those of the call before are in the cache"
    )
    assert key_of(weights, False, Conditions((1, 160), 1), ()) != key_of(weights, False, Conditions((1, 160), 1, zeros=0.9), ())


def zero_makers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 512), nn.ReLU(), nn.Linear(512, 512))
    with torch.no_grad():
        model[0].bias -= 1.5
    return model.eval()


@pytest.mark.parametrize("tune", [False, True])
def test_pack_sees_the_zeros_of_the_example_and_says_so(tune, tmp_path, monkeypatch):
    model, x = zero_makers(), torch.randn(1, 32)
    asked = []
    monkeypatch.setattr("truesparse.inference.laying_out.measure", lambda *given: asked.append(given) or measure(*given))
    fast = ts.pack(model, x, tune=tune, memory=Memory(tmp_path / "layouts.json"))
    first, second = fast.explain().rows
    read = model[:2](x)
    share = float((read == 0).float().mean())
    assert share > 0.8
    assert first.zeros == 0
    assert second.zeros == pytest.approx(share)
    if tune:
        assert asked[0][3] is None
        assert torch.equal(asked[1][3], read), "measured with what the layer reads"
    else:
        assert second.layout == "columns (whole)"
        assert f"{share:.1%}" in str(fast.explain())
        assert "with fewer the result is as right, and takes longer" in str(fast.explain())
        for batch in (1, 2, 40):
            for dense in (False, True):
                other = torch.randn(batch, 32, generator=torch.Generator().manual_seed(batch)) + 20 * dense
                torch.testing.assert_close(fast(other), model(other), rtol=1e-4, atol=1e-3)
    columns_of = ts.pack(model, x, tune=False, values="int8").explain().rows[1].layout
    assert columns_of == "columns (whole, int8)"


def test_without_zeros_nothing_is_said(tmp_path):
    model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 8)).eval()
    assert "as right" not in str(ts.pack(model, torch.randn(1, 16), tune=False).explain())


def test_columns_that_cannot_be():
    for kind, parts in (("bitmaps", 1), ("lists", 0)):
        with pytest.raises(ValueError, match=f"columns are of kind whole or lists, in at least one part, got '{kind}' in {parts}"):
            ColumnsCandidate(kind, parts)


def test_rows_beyond_16_bits(isa):
    rows = columns.WIDEST_PART + 5
    mask = torch.zeros(rows, 3, dtype=torch.bool)
    mask[0, 0] = mask[-1, 1] = mask[columns.WIDEST_PART - 1, 1] = mask[columns.WIDEST_PART, 2] = True
    topology = Topology.from_mask(mask)
    weights = Weights(Matrix(rows, 3), topology, torch.arange(1.0, 5.0), None)
    x = torch.tensor([[2.0, 3.0, 0.0], [0.0, 0.0, 5.0]])
    assert torch.equal(KINDS[1].make(weights, False, "float32")(x).double(), expected(weights, x))
