"""OWL and the schedule over depth against their formulas in float64, and the sparsity of all to the connection."""

import copy

import pytest
import torch
from torch import nn

import truesparse as ts
from truesparse.nn.convert import topology_layers
from truesparse.pruning import OWL, Depth, Evidence
from truesparse.pruning.budgets import blocks_of

NAMES = ["model.layers.0.q", "model.layers.0.up", "model.layers.1.q", "model.layers.1.up", "model.layers.2.q", "model.layers.2.up", "head"]
SHAPES = {"q": (16, 16), "up": (40, 16), "head": (10, 16)}


def layers():
    """Evidence of three blocks of two layers and an output layer; inputs of later ones have more outliers."""
    found = {}
    for place, name in enumerate(NAMES):
        shape = SHAPES[name.rsplit(".", 1)[-1]]
        squares = torch.ones(shape[1], dtype=torch.float64)
        squares[: place // 2] = 900.0
        found[name] = [Evidence(name, torch.randn(shape, dtype=torch.float64), statistics={"input_squares": squares})]
    return found


def sizes_of(layers):
    return {name: groups[0].weight.numel() * len(groups) for name, groups in layers.items()}


def assert_sparsity_of_all(found, sizes, sparsity):
    kept = [(1 - found[name]) * size for name, size in sizes.items()]
    assert sum(round(one) for one in kept) == sum(size - int(round(sparsity * size, 6)) for size in sizes.values())
    assert all(abs(one - round(one)) < 1e-6 for one in kept)


def owl_by_hand(layers, sparsity, outlier, spread):
    """Of each layer, before what is kept is rounded to whole weights."""
    blocks = [
        ["model.layers.0.q", "model.layers.0.up"],
        ["model.layers.1.q", "model.layers.1.up"],
        ["model.layers.2.q", "model.layers.2.up"],
        ["head"],
    ]
    ratios = []
    for names in blocks:
        scores = torch.cat([(layers[name][0].weight.abs() * layers[name][0]["input_squares"].sqrt()[None]).flatten() for name in names])
        ratios.append(float((scores > outlier * scores.mean()).double().mean()))
    scaled = [(ratio - min(ratios)) / (max(ratios) - min(ratios)) * 2 * spread for ratio in ratios]
    sizes = sizes_of(layers)
    weighted = sum(sum(sizes[name] for name in names) * part for names, part in zip(blocks, scaled, strict=True)) / sum(sizes.values())
    return {name: sparsity - part + weighted for names, part in zip(blocks, scaled, strict=True) for name in names}


@pytest.mark.parametrize(("sparsity", "outlier", "spread"), [(0.5, 5.0, 0.08), (0.7, 3.0, 0.15), (0.61, 7.0, 0.08)])
def test_owl_is_the_formula_of_its_paper(sparsity, outlier, spread):
    evidence = layers()
    found = OWL(outlier, spread).sparsities(evidence, sparsity)
    expected = owl_by_hand(evidence, sparsity, outlier, spread)
    assert max(expected.values()) - min(expected.values()) == pytest.approx(2 * spread)
    for name, size in sizes_of(evidence).items():
        assert found[name] == pytest.approx(expected[name], abs=2 / size)
    assert_sparsity_of_all(found, sizes_of(evidence), sparsity)


def test_owl_without_outliers_is_even():
    evidence = {name: [Evidence(name, torch.ones(8, 8), statistics={"input_squares": torch.ones(8)})] for name in ("a.0.x", "a.1.x")}
    assert OWL().sparsities(evidence, 0.5) == {"a.0.x": 0.5, "a.1.x": 0.5}


@pytest.mark.parametrize("spread", [0.1, -0.05, 0.0])
def test_sparsities_rise_with_depth_in_equal_steps(spread):
    evidence = layers()
    found = Depth(spread).sparsities(evidence, 0.6)
    sizes = sizes_of(evidence)
    offsets = {name: spread * (2 * min(place // 2, 3) / 3 - 1) for place, name in enumerate(NAMES)}
    mean = sum(offsets[name] * size for name, size in sizes.items()) / sum(sizes.values())
    for name, size in sizes.items():
        assert found[name] == pytest.approx(0.6 + offsets[name] - mean, abs=2 / size)
    assert_sparsity_of_all(found, sizes, 0.6)


def test_no_layer_loses_more_than_all_or_less_than_nothing():
    evidence = layers()
    for sparsity in (0.97, 0.03):
        found = Depth(0.4).sparsities(evidence, sparsity)
        assert all(0 <= one < 1 for one in found.values())
        assert_sparsity_of_all(found, sizes_of(evidence), sparsity)


def test_blocks_are_what_has_one_number_in_its_name():
    names = [
        "embedding",
        "model.layers.0.q",
        "model.layers.0.up.0",
        "model.layers.1.q",
        "0",
        "3",
        "stage2.1.a",
        "stage2.1.b",
        "0.x",
        "h1.x",
    ]
    assert blocks_of(dict.fromkeys(names)) == {
        "embedding": ["embedding"],
        "model.layers.0": ["model.layers.0.q", "model.layers.0.up.0"],
        "model.layers.1": ["model.layers.1.q"],
        "0": ["0", "0.x"],
        "3": ["3"],
        "stage2.1": ["stage2.1.a", "stage2.1.b"],
        "h1.x": ["h1.x"],
    }


@pytest.mark.parametrize("budget", [OWL(outlier=2.0), Depth(0.2)])
def test_prune_takes_them(budget):
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 10))
    x = torch.randn(20, 4, 6, 6)
    x[:, 0] *= 20
    sparse = topology_layers(ts.prune(copy.deepcopy(model), 0.6, "magnitude", data=x, budget=budget))
    sizes = {name: layer.topology.size for name, layer in sparse.items()}
    assert sum(layer.topology.nnz for layer in sparse.values()) == sum(size - int(0.6 * size) for size in sizes.values())
    sparsities = [layer.topology.sparsity for layer in sparse.values()]
    assert max(sparsities) - min(sparsities) > 0.1
    if isinstance(budget, Depth):
        assert sparsities == sorted(sparsities)
