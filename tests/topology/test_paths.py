"""Scores of paths of three: counted by eye, against loops over all paths, in slabs of any size."""

import numpy as np
import pytest
import torch
from hypothesis import given
from oracles import Watched, connections, drawing, made, topology_of
from oracles.cht import paths_of_three, scores

from truesparse import NM, Block, FanIn, Topology, Unstructured
from truesparse.topology import paths as module
from truesparse.topology.paths import candidates, check_rule, grow, paths

RULES = ["CH3-L3p", "CH2-L3n"]

# Five positions have a path, one each. All inner neurons have one connection inside, and row 1, with three, one outside.
LEFT = "xx.. .xxx ..x."
BY_EYE = {
    "CH3-L3p": {(0, 2): 0.5**0.5, (0, 3): 0.5**0.5, (1, 0): 1.0, (2, 1): 0.5**0.5, (2, 3): 0.5**0.5},
    "CH2-L3n": {(0, 2): 2 / 2 + 2, (0, 3): 2 / 2 + 2, (1, 0): 2 + 2, (2, 1): 2 / 2 + 2, (2, 3): 2 / 2 + 2},
}


def found(topology, rule, step=1):
    """(keys, scores) of all slabs together."""
    slabs = list(candidates(topology, rule, step))
    return torch.cat([keys for keys, _ in slabs]), torch.cat([score for _, score in slabs])


@pytest.mark.parametrize("rule", RULES)
def test_paths_counted_by_eye(rule):
    keys, score = found(topology_of(LEFT), rule)
    assert {divmod(key, 4): value for key, value in zip(keys.tolist(), score.tolist(), strict=True)} == pytest.approx(BY_EYE[rule])


@pytest.mark.parametrize("rule", RULES)
@given(connections())
def test_scores_are_those_of_loops_over_all_paths(rule, case):
    shape, pairs = case
    topology = made(shape, pairs)
    if not shape[0]:
        assert not list(candidates(topology, rule))
        return
    keys, score = found(topology, rule)
    expected = scores(topology.mask().numpy(), rule).flatten()
    assert keys.tolist() == np.flatnonzero(expected).tolist()
    assert score.numpy() == pytest.approx(expected[keys.numpy()], rel=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_scores_in_wide_and_in_narrow_layers(rule):
    # Few candidates among many columns are sorted, many are looked for; both kinds must be met.
    for shape, nnz in (((12, 120), 50), ((30, 10), 80), ((14, 14), 120)):
        topology = Unstructured().random(shape, nnz, torch.Generator().manual_seed(nnz))
        keys, score = found(topology, rule)
        expected = scores(topology.mask().numpy(), rule).flatten()
        assert keys.tolist() == np.flatnonzero(expected).tolist()
        assert score.numpy() == pytest.approx(expected[keys.numpy()], rel=1e-6)


@given(connections())
def test_the_count_of_walks_bounds_the_paths(case):
    shape, pairs = case
    topology = made(shape, pairs)
    mask = topology.mask().numpy()
    walks = mask.astype(int) @ mask.T.astype(int) @ mask.astype(int)
    assert paths(topology).tolist() == walks.sum(1).tolist()
    for row, column in np.argwhere(~mask)[:5]:
        assert walks[row, column] == len(paths_of_three(mask, row, column))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("pattern", [Unstructured(), FanIn(), NM(2, 4), Block(4)], ids=str)
def test_slabs_and_threads_change_nothing(monkeypatch, pattern, rule):
    topology = pattern.random((24, 32), pattern.round((24, 32), 150), torch.Generator().manual_seed(0))
    kept = pattern.drop(topology, torch.rand(topology.nnz, generator=torch.Generator().manual_seed(1)), 64)
    whole = grow(kept, topology.nnz, pattern, rule, torch.Generator().manual_seed(2))
    pattern.check(whole)
    monkeypatch.setattr(module.merge, "WORK_OF_A_THREAD", 10)
    torch.set_num_threads(3)
    for most in (1, 40, 100):
        monkeypatch.setattr(module, "SLAB_CANDIDATES", most)
        assert len(list(candidates(kept, rule, pattern.unit(kept.shape)[0]))) > 1
        assert grow(kept, topology.nnz, pattern, rule, torch.Generator().manual_seed(2)).equal(whole)


def test_ties_go_to_the_earlier_position_and_the_rest_is_drawn():
    left = topology_of(LEFT)
    assert drawing(grow(left, 8, Unstructured(), "CH3-L3p", None)) == ["xxx.", "xxxx", "..x."]
    assert drawing(grow(left, 9, Unstructured(), "CH3-L3p", None)) == ["xxxx", "xxxx", "..x."]
    drawn = {tuple(drawing(grow(left, 12, Unstructured(), "CH3-L3p", torch.Generator().manual_seed(seed)))) for seed in range(9)}
    assert drawn == {("xxxx", "xxxx", "xxxx")}
    # Nothing to count paths of: all is drawn.
    empty = topology_of("..... .....")
    drawn = {tuple(drawing(grow(empty, 3, Unstructured(), "CH2-L3n", torch.Generator().manual_seed(seed)))) for seed in range(9)}
    assert len(drawn) > 5


def test_equal_paths_in_another_order_tie():
    # Both free positions have the same three paths, met from the other end.
    topology = topology_of("x.xx .xxx xx.. xx..")
    topology = topology.drop(torch.tensor([0]))
    keys, score = found(topology, "CH3-L3p")
    mask = topology.mask()
    flipped = Topology.from_mask(mask.flip(0, 1))
    other_keys, other_score = found(flipped, "CH3-L3p")
    assert (mask.numel() - 1 - other_keys.flip(0)).tolist() == keys.tolist()
    assert torch.equal(other_score.flip(0), score)


def test_a_block_counts_with_all_its_paths():
    # Block (0, 1) has paths from all four of its positions, like block (1, 2); block (0, 2), a path over two blocks further, has none.
    kept = topology_of("xx.... xx.... xxxx.. xxxx.. ....xx ....xx")
    new = grow(kept, kept.nnz + 4, Block(2), "CH3-L3p", None)
    assert drawing(new)[:2] == ["xxxx..", "xxxx.."]
    Block(2).check(new)


@pytest.mark.parametrize("seed", range(8))
def test_a_block_is_sampled_once_by_all_its_paths(seed):
    kept = Block(2).random((8, 10), 24, torch.Generator().manual_seed(seed))
    sums = scores(kept.mask().numpy(), "CH3-L3p").reshape(4, 2, 5, 2).sum((1, 3)).flatten()
    blocks = np.flatnonzero(sums)
    new = grow(kept, 28, Block(2), "CH3-L3p", torch.Generator().manual_seed(100 + seed), sampled=True)
    times = torch.empty(len(blocks)).exponential_(generator=torch.Generator().manual_seed(100 + seed)).numpy()
    grown = set(Block(2).units(new).keys.tolist()) - set(Block(2).units(kept).keys.tolist())
    assert grown == {int(blocks[np.argmin(times / sums[blocks])])}


def test_sampling_follows_the_scores():
    kept, generator, hits = topology_of(LEFT), torch.Generator().manual_seed(0), torch.zeros(12)
    for _ in range(2000):
        hits[grow(kept, 7, Unstructured(), "CH3-L3p", generator, sampled=True).keys] += 1
    rates = torch.zeros(12)
    for (row, column), rate in BY_EYE["CH3-L3p"].items():
        rates[row * 4 + column] = rate
    expected = 2000 * rates / rates.sum()
    free = torch.ones(12, dtype=torch.bool)
    free[kept.keys] = False
    assert float((hits - expected)[free].abs().max()) < 4 * float(expected.max()) ** 0.5


def test_nothing_of_size_rows_by_columns_is_held(monkeypatch):
    monkeypatch.setattr(module, "SLAB_CANDIDATES", 3000)
    topology = Unstructured().random((1000, 2000), 4000, torch.Generator().manual_seed(0))
    with Watched() as watched:
        new = grow(topology, 5000, Unstructured(), "CH3-L3p", torch.Generator().manual_seed(1))
    assert new.nnz == 5000
    assert watched.largest < 20_000


def test_rules_are_named():
    for rule in RULES:
        check_rule(rule)
    with pytest.raises(ValueError, match=r"score is one of CH3-L3p, CH2-L3n, got 'CH1'"):
        check_rule("CH1")
