"""SET against a table drawn by hand: which connections go, which may come, and what the new ones start from."""

from contextlib import nullcontext

import pytest
import torch
from oracles import drawing, signals, topology_of

from truesparse import SET, Block, FanIn, Move, SparseLinear, rewire
from truesparse.topology.select import lowest

BEFORE = "xx.x x.xx .xx."
#         0.9  -0.1        0.45
#        -0.8        0.05 -0.3
#              0.5  -0.02
VALUES = [0.9, -0.1, 0.45, -0.8, 0.05, -0.3, 0.5, -0.02]
# Half of the positives nearest zero: 0.05 and 0.45. Half of the negatives nearest zero: -0.02 and -0.1, not -0.8 and -0.3, though
# without regard to sign -0.3 would go before 0.45.
SURVIVORS = ["x...", "x..x", ".x.."]


def survivors_of(move):
    """The connections of the new topology that keep what they have, as a drawing."""
    return drawing(move.new.keep(move.source >= 0))


def hold_to_the_table(algorithm):
    """The connections that always stay, over many draws, are those of the table; what is dropped may be drawn again, anew."""
    topology = topology_of(BEFORE)
    came_back = 0
    for seed in range(40):
        move = algorithm.update(topology, signals(VALUES, generator=torch.Generator().manual_seed(seed)))
        assert move.old is topology
        assert move.new.nnz == 8
        assert survivors_of(move) == SURVIVORS
        assert move(torch.tensor(VALUES))[move.source < 0].tolist() == [0.0] * 4
        came_back += int(topology.contains(move.new.keys[move.source < 0]).sum())
    assert came_back > 0, "a connection that was just dropped may be drawn again"


def test_the_table():
    hold_to_the_table(SET(0.5))


def most_negative(topology, given):
    """The mistake of published code: positives nearest zero, and the most negative of the negatives."""
    values = given.values
    sides = (values >= 0).nonzero().squeeze(1), (values < 0).nonzero().squeeze(1)
    return topology.drop(torch.cat([side[lowest(values[side], side.numel() // 2)] for side in sides]))


def without_regard_to_sign(topology, given):
    """Another: magnitudes of both signs ranked together."""
    return given.pattern.drop(topology, given.values.abs(), topology.nnz // 2)


def as_it_should(topology, given):
    return topology.keep(torch.tensor([True, False, False, True, False, True, True, False]))


def keeping_what_comes_back(topology, kept, new):
    """Another: a connection dropped and drawn again keeps its weight."""
    return Move.between(topology, new)


@pytest.mark.parametrize(
    ("drop", "follow", "right"),
    [
        (as_it_should, Move.through, True),
        (most_negative, Move.through, False),
        (without_regard_to_sign, Move.through, False),
        (as_it_should, keeping_what_comes_back, False),
    ],
)
def test_the_table_catches_the_mistakes_of_published_code(drop, follow, right):
    class Own:
        def update(self, topology, given):
            kept = drop(topology, given)
            return follow(topology, kept, given.pattern.grow_random(kept, topology.nnz, given.generator))

    with nullcontext() if right else pytest.raises(AssertionError):
        hold_to_the_table(Own())


@pytest.mark.parametrize(
    ("fraction", "values", "kept"),
    [
        (0.3, [1.0, 2.0, 3.0, 4.0, -1.0, -2.0, -3.0, -4.0], [2.0, 3.0, 4.0, -2.0, -3.0, -4.0]),  # int(0.3 x 4) = 1 of each
        (0.3, [1.0, 2.0, 3.0, -1.0, -2.0, -3.0, -4.0, -5.0], [1.0, 2.0, 3.0, -2.0, -3.0, -4.0, -5.0]),  # 0 and 1
        (0.5, [1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0], [1.0, 1.0, -1.0, -1.0]),
        (0.25, [0.0, 1.0, 2.0, 3.0, -0.5, -0.1, -2.0, -3.0], [1.0, 2.0, 3.0, -0.5, -2.0, -3.0]),  # zero goes first
        (1.0, [1.0, 2.0, 3.0, 4.0, -1.0, -2.0, -3.0, -4.0], []),
        (0.0, [1.0, 2.0, 3.0, 4.0, -1.0, -2.0, -3.0, -4.0], [1.0, 2.0, 3.0, 4.0, -1.0, -2.0, -3.0, -4.0]),
    ],
)
def test_how_many_of_each_sign_go(fraction, values, kept):
    topology = topology_of("xxxx.... ....xxxx")
    move = SET(fraction).update(topology, signals(values, progress=0.9, generator=torch.Generator().manual_seed(0)))
    assert torch.tensor(values)[move.source[move.source >= 0]].tolist() == kept, "the fraction does not decay"
    assert move.new.nnz == 8


def test_growth_is_uniform_over_everything_not_kept():
    topology, hits, draws = topology_of(BEFORE), torch.zeros(12), 1500
    generator = torch.Generator().manual_seed(0)
    for _ in range(draws):
        move = SET(0.5).update(topology, signals(VALUES, generator=generator))
        hits[move.new.keys[move.source < 0]] += 1
    empty = torch.tensor([mark == "." for row in SURVIVORS for mark in row])
    expected = draws * 4 / 8
    assert not hits[~empty].any()
    assert float((hits[empty] - expected).abs().max()) < 4 * expected**0.5


def test_new_weights_are_normal_if_wanted():
    topology = topology_of(" ".join(["x" * 40 + "." * 40] * 40))
    values = torch.linspace(-1, 1, 1600)
    move = SET(0.5, grown_std=0.1).update(topology, signals(values, generator=torch.Generator().manual_seed(0)))
    new = move.values(values)[move.source < 0]
    assert new.numel() == 800
    assert float(new.std()) == pytest.approx(0.1, rel=0.15)
    assert abs(float(new.mean())) < 0.02
    assert SET(0.5).update(topology, signals(values)).grown_values is None


def test_survivors_keep_their_momentum_and_what_comes_back_starts_anew():
    layer = SparseLinear.from_dense(torch.nn.Linear(4, 3), topology_of(BEFORE), values=torch.tensor(VALUES))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0, momentum=0.9)
    layer(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    state = optimizer.state[layer.values]
    state["momentum_buffer"] = torch.arange(1.0, 9.0)
    for seed in range(20):
        move = SET(0.5).update(layer.topology, signals(layer.values.detach(), generator=torch.Generator().manual_seed(seed)))
        back = layer.topology.contains(move.new.keys) & (move.source < 0)
        if bool(back.any()):
            break
    rewire(layer, optimizer, move)
    assert drawing(layer.topology.keep(layer.values != 0)) == SURVIVORS
    assert sorted(state["momentum_buffer"].tolist()) == [0.0] * 4 + [1.0, 4.0, 6.0, 7.0]
    assert not state["momentum_buffer"][back].any()


def test_each_row_gets_back_what_it_lost_when_the_fan_in_is_constant():
    topology = topology_of("xx.. .xx. x..x")
    move = SET(0.5).update(topology, signals([0.1, 0.2, 0.9, -0.8, 0.7, -0.05], pattern=FanIn()))
    assert drawing(move.new.keep(move.source >= 0)) == ["....", ".xx.", "x..."]
    assert move.new.fan_in.tolist() == [2, 2, 2]


def test_rows_longer_than_their_due_keep_their_largest_weights():
    # Two neurons are ablated. One of each sign goes: 0.1 and -0.2. Then rows 0 and 2 are cut to 2 as every row, and lose 0.3 and -0.4.
    topology = topology_of("xxxx .... xxxx ....")
    values = [0.1, 0.3, 0.9, -0.8, -0.2, -0.4, 0.7, -0.6]
    move = SET(0.25, grown_std=0.1).update(topology, signals(values, pattern=FanIn()))
    assert survivors_of(move) == ["..xx", "....", "..xx", "...."]
    assert move.new.fan_in.tolist() == [2, 2, 2, 2]
    assert move.grown_values.shape == (4,)


def test_a_block_counts_by_its_magnitudes_not_by_what_is_left_of_their_sum():
    topology = Block(2).random((4, 4), 12, torch.Generator().manual_seed(0))
    blocks = Block(2).units(topology)
    values = torch.where(topology.indices % 2 == 0, 10.0, -9.0)  # each block sums to 2 and weighs 38
    light = (topology.rows // 2 * 2 + topology.indices // 2).long() == blocks.keys[1]
    values[light] = 0.6  # this one sums to 2.4 and weighs 2.4
    move = SET(0.34).update(topology, signals(values.tolist(), pattern=Block(2), generator=torch.Generator().manual_seed(3)))
    assert move.source[~move.grown].tolist() == (~light).nonzero().squeeze(1).tolist()


def test_a_full_layer_has_nowhere_else_to_grow_and_keeps_its_weights():
    topology = topology_of("xx xx")
    move = SET().update(topology, signals([0.1, -0.2, 0.3, -0.4]))
    assert move.new is topology
    assert not bool(move.grown.any())


def test_settings():
    assert (SET().fraction, SET().grown_std) == (0.3, 0.0)
    for fraction in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=rf"fraction is a share of the connections and lies in \[0, 1\], got {fraction}"):
            SET(fraction)
    with pytest.raises(ValueError, match=r"grown_std is a standard deviation, at least 0, got -1"):
        SET(grown_std=-1)
    assert not getattr(SET, "replaces_step", False)


@pytest.mark.parametrize(("progress", "gone"), [(0.0, 4), (0.5, 2), (1.0, 0)])
def test_the_fraction_decays_along_a_cosine_if_wanted(progress, gone):
    topology = topology_of("xxxx.... ....xxxx")
    given = signals([1.0, 2.0, 3.0, 4.0, -1.0, -2.0, -3.0, -4.0], progress=progress, generator=torch.Generator().manual_seed(0))
    assert int((SET(0.5, decay=True).update(topology, given).source < 0).sum()) == gone
