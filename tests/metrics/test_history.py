"""What has become of connections, against sets and dicts that follow them one by one."""

import hypothesis.strategies as st
import torch
from hypothesis import given
from oracles import Watched, connections, made, topology_of

from truesparse import Move, Topology
from truesparse.metrics import Explored, Lineage
from truesparse.metrics.history import _sample
from truesparse.metrics.topologies import grown_keys


def test_a_history_one_can_check_by_eye():
    first, second, third = topology_of("xx.. ...."), topology_of("x.x. ...."), topology_of("xx.. ...x")
    explored, lineage = Explored.begin(first), Lineage.begin(first)
    assert explored.rate == 2 / 8
    rates = []
    for old, new in ((first, second), (second, third)):
        move = Move.between(old, new)
        explored, lineage = explored.after(grown_keys(move)), lineage.after(move)
        rates.append(explored.rate)
    assert rates == [3 / 8, 4 / 8], "what comes back is not new"
    assert lineage.born.tolist() == [0, 2, 2]
    assert lineage.grown == (2, 1, 2)
    assert lineage.alive.tolist() == [1, 0, 2]
    assert lineage.survival.tolist() == [0.5, 0.0, 1.0]


@given(st.data())
def test_histories_of_any_moves(data):
    shape, pairs = data.draw(connections())
    topology = made(shape, pairs)
    explored, lineage = Explored.begin(topology), Lineage.begin(topology)
    union, born, grown = set(pairs), dict.fromkeys(pairs, 0), [len(pairs)]
    for number in range(1, data.draw(st.integers(1, 4)) + 1):
        survivors = {pair for pair in sorted(pairs) if data.draw(st.booleans())}
        new = survivors | data.draw(connections(shape))[1]
        move = Move.through(topology, made(shape, survivors), made(shape, new))
        explored, lineage = explored.after(grown_keys(move)), lineage.after(move)
        born = {pair: born[pair] if pair in survivors else number for pair in sorted(new)}
        grown.append(len(new - survivors))
        union |= new
        pairs, topology = new, move.new
    size = shape[0] * shape[1]
    assert explored.rate == (len(union) / size if size else 0.0)
    assert explored.keys.tolist() == sorted(row * shape[1] + column for row, column in union)
    assert lineage.born.tolist() == list(born.values())
    assert lineage.grown == tuple(grown)
    assert lineage.alive.tolist() == [list(born.values()).count(number) for number in range(len(grown))]


def splitmix64(key):
    """Steele et al. 2014, as published, on Python's integers."""
    mixed = (key + 0x9E3779B97F4A7C15) % 2**64
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
    return mixed ^ (mixed >> 31)


def test_the_sample_is_that_of_the_hash():
    assert splitmix64(0) == 0xE220A8397B1DCDAF, "the published generator's first number from seed 0"
    keys = torch.cat([torch.arange(3000), torch.randint(2**62, (3000,)).sort().values])
    for one_in in (1, 2, 64):
        assert _sample(keys, one_in).tolist() == [key for key in keys.tolist() if splitmix64(key) % one_in == 0]


def test_the_rate_of_a_sample_is_close():
    shape = (400, 500)
    topology = Topology.from_keys(shape, torch.randperm(200_000)[:10_000])
    exact, estimate = Explored.begin(topology), Explored.begin(topology, largest_exact=20_000)
    assert (exact.one_in, estimate.one_in) == (1, 16)
    assert estimate.rate == exact.rate == 0.05, "the beginning is known"
    for _ in range(10):
        new = Topology.from_keys(shape, torch.randperm(200_000)[:10_000])
        grown = grown_keys(Move.between(topology, new))
        exact, estimate, topology = exact.after(grown), estimate.after(grown), new
    met = (exact.rate - 0.05) * 200_000
    error = (16 * met) ** 0.5 / 200_000
    assert abs(estimate.rate - exact.rate) < 3 * error < 0.03
    assert estimate.keys.numel() < exact.keys.numel() / 10


def test_nothing_is_of_the_size_of_the_matrix():
    shape = (2**11, 2**30)
    topology = Topology.from_keys(shape, torch.randint(2**41, (5000,)).unique())
    grown = torch.randint(2**41, (500,)).unique()
    with Watched() as watched:
        explored = Explored.begin(topology).after(grown)
    assert watched.largest <= 5500
    assert explored.one_in == 2**19
    assert 0 < explored.rate < 1e-6


def test_full_and_empty_layers():
    assert Explored.begin(topology_of("xx")).rate == 1.0
    assert Explored.begin(topology_of("..")).rate == 0.0
    assert Explored.begin(Topology.from_keys((0, 5), torch.zeros(0, dtype=torch.int64))).rate == 0.0
    move = Move.between(topology_of(".."), topology_of(".."))
    assert Lineage.begin(move.old).after(move).survival.isnan().all()


def test_a_rate_that_is_estimated_is_a_share():
    """A sample of one in four in which more is new than in the rest would extrapolate to 5 + 4 x 3 of 10 positions."""
    explored = Explored(size=10, one_in=4, began=5, sampled=1, keys=torch.arange(4))
    assert explored.rate == 1.0
