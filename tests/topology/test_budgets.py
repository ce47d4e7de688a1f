"""Budgets against numbers worked by hand, each step written out."""

from math import floor, prod

import hypothesis.strategies as st
import pytest
from hypothesis import given

from truesparse.topology.budgets import BUDGETS, ER, ERK, Uniform, budget, kept


def test_kept_is_all_less_the_floor():
    assert [kept(100, 0.9), kept(7, 0.5), kept(12, 0.0), kept(12, 1.0), kept(0, 0.5)] == [10, 4, 12, 0, 0]
    assert kept(100, 0.29) == 71, "0.29 x 100 is a little below 29 in floating point"


def test_uniform():
    shapes = {"first": (4, 5), "second": (10, 10), "third": (3, 4, 3, 3)}
    # second: 100 - floor(70) = 30; third: 108 - floor(75.6) = 33
    assert Uniform().counts(shapes, 0.7) == {"first": 20, "second": 30, "third": 33}
    assert Uniform(dense_first=False).counts(shapes, 0.7) == {"first": 6, "second": 30, "third": 33}
    assert Uniform().counts({"only": (10, 10)}, 0.7) == {"only": 30}, "a single layer is not kept dense"


def test_erdos_renyi_kernel():
    # floor(0.75 x 288) = 216, so 72 to keep; floor(0.75 x 200) = 150, so 50 to keep
    # p N: 8 + 4 + 3 + 3 = 18 and 10 + 20 = 30; factor = (72 + 50) / (18 + 30) = 2.541667
    # convolution: 18 x 2.541667 = 45.75; linear: 30 x 2.541667 = 76.25. Of the 122 one is left after 45 and 76, for the larger fraction.
    shapes = {"convolution": (8, 4, 3, 3), "linear": (10, 20)}
    assert ERK().counts(shapes, 0.75) == {"convolution": 46, "linear": 76}


def test_erdos_renyi_leaves_the_kernel_out():
    # p N: (8 + 4) / 32 x 288 = 108 and 30; factor = 122 / 138 = 0.884058
    # convolution: 95.478; linear: 26.522, the larger fraction
    shapes = {"convolution": (8, 4, 3, 3), "linear": (10, 20)}
    assert ER().counts(shapes, 0.75) == {"convolution": 95, "linear": 27}


def test_a_layer_that_would_be_more_than_dense_becomes_dense():
    # to keep: 12 - 6 = 6 and 200 - 100 = 100; factor = 106 / (7 + 30) = 2.865, times 7/12 is above 1: small is dense
    # then factor = (100 - 6) / 30 = 3.1333; large: 94
    assert ERK().counts({"small": (4, 3), "large": (20, 10)}, 0.5) == {"small": 12, "large": 94}


def test_layers_that_tie_become_dense_together_and_then_a_second_round():
    # to keep: 4 - 3 = 1 each, 20 - 16 = 4, 1200 - 960 = 240; p N: 4, 4, 12, 70; p: 1, 1, 0.6, 0.058333
    # round 1: 246 / 90 = 2.7333, times 1 is above 1: both small ones are dense
    # round 2: (4 + 240 - 3 - 3) / 82 = 2.9024, times 0.6 is 1.741: the middle one is dense
    # round 3: (240 - 3 - 3 - 16) / 70 = 3.1143, times 0.058333 is 0.18167: large keeps 218
    shapes = {"one": (2, 2), "large": (40, 30), "other": (2, 2), "middle": (2, 10)}
    counts = ERK().counts(shapes, 0.8)
    assert counts == {"one": 4, "large": 218, "other": 4, "middle": 20}
    assert list(counts) == list(shapes)
    assert sum(counts.values()) == 1 + 1 + 4 + 240


def test_the_epsilon_of_the_set_paper():
    # 20 (4000 + 3072) = 141440; 20 (1000 + 4000) = 100000 twice; 20 (10 + 4000) = 80200 is more than all 40000
    shapes = {"1": (4000, 3072), "2": (1000, 4000), "3": (4000, 1000), "4": (10, 4000)}
    assert ER(epsilon=20).counts(shapes, 0.9) == {"1": 141440, "2": 100000, "3": 100000, "4": 40000}
    assert ERK(epsilon=20).counts(shapes, 0.0) == ER(epsilon=20).counts(shapes, 0.9), "epsilon alone decides"
    # p N: 18 with the kernel, 108 without
    assert ERK(epsilon=2).counts({"convolution": (8, 4, 3, 3)}, 0.5) == {"convolution": 36}
    assert ER(epsilon=2).counts({"convolution": (8, 4, 3, 3)}, 0.5) == {"convolution": 216}


layer_shapes = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 40), st.integers(1, 40)), st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3), st.integers(1, 3))
    ),
    min_size=1,
    max_size=6,
)


@given(layer_shapes, st.floats(0, 1, exclude_max=True), st.sampled_from(["er", "erk"]))
def test_totals_and_proportions(shapes, sparsity, name):
    named = {str(index): shape for index, shape in enumerate(shapes)}
    counts = budget(name).counts(named, sparsity)
    wanted = sum(prod(shape) - floor(round(sparsity * prod(shape), 6)) for shape in shapes)
    assert min(counts.values()) >= 1
    assert sum(counts.values()) == wanted or 1 in counts.values()
    assert wanted <= sum(counts.values()) <= wanted + list(counts.values()).count(1)
    share = {key: (sum(shape) / prod(shape) if name == "erk" else sum(shape[:2]) / prod(shape[:2])) for key, shape in named.items()}
    sparse = [key for key, shape in named.items() if counts[key] < prod(shape)]
    for key, shape in named.items():
        assert 0 <= counts[key] <= prod(shape)
        for other in sparse:
            size = prod(named[other])
            if key in sparse:
                # One factor for all: counts are its number rounded up or down, but for the one that each has at least.
                least, most = (counts[other] - 1) / (share[other] * size), (counts[other] + 1) / (share[other] * size)
                assert counts[key] == 1 or (counts[key] - 1) / (share[key] * prod(shape)) <= most + 1e-6
                assert counts[other] == 1 or (counts[key] + 1) / (share[key] * prod(shape)) >= least - 1e-6


@given(layer_shapes, st.sampled_from([0.0, 1e-6, 0.001, 0.01, 0.99, 0.999, 0.9999, 1 - 1e-9]), st.sampled_from(["er", "erk"]))
def test_totals_are_exact_at_extreme_densities(shapes, sparsity, name):
    named = {str(index): shape for index, shape in enumerate(shapes)}
    counts = budget(name).counts(named, sparsity)
    assert all(1 <= counts[key] <= prod(shape) for key, shape in named.items())
    assert sum(counts.values()) == sum(kept(prod(shape), sparsity) for shape in shapes) or set(counts.values()) >= {1}


def test_totals_of_real_networks_are_exact():
    resnet = {"stem": (64, 3, 7, 7)}
    for stage, width in enumerate((64, 128, 256, 512)):
        for block in range(4):
            resnet |= {f"{stage}.{block}.1": (width, width, 3, 3), f"{stage}.{block}.2": (width, width, 1, 1)}
    resnet["head"] = (1000, 512)
    for sparsity in (0.3, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999):
        for name in ("er", "erk"):
            assert sum(budget(name).counts(resnet, sparsity).values()) == sum(kept(prod(shape), sparsity) for shape in resnet.values())


def test_errors():
    shapes = {"layer": (4, 5)}
    for rule in (Uniform(), ER(), ERK()):
        for sparsity in (-0.1, 1.0, float("nan")):
            with pytest.raises(ValueError, match=rf"sparsity is the share of weights to leave out and lies in \[0, 1\), got {sparsity}"):
                rule.counts(shapes, sparsity)
    for epsilon in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"epsilon must be positive, got {epsilon}"):
            ER(epsilon).counts(shapes, 0.5)
    with pytest.raises(ValueError, match="unknown budget 'erdos'; known: uniform, er, erk"):
        budget("erdos")


def test_budgets_by_name():
    assert [budget(name) for name in BUDGETS] == [Uniform(), ER(), ERK()]
    own = ERK(epsilon=3)
    assert budget(own) is own
