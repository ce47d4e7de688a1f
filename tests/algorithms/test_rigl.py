"""RigL against a table drawn by hand: which connections go, which come, and which keep what they have."""

import pytest
import torch
from oracles import drawing, signals, topology_of

from truesparse import FanIn, Move, RigL, SparseLinear, rewire

BEFORE = "xx.x x.xx .xx."
VALUES = [0.9, -0.1, 0.2, -0.8, 0.05, -0.3, 0.5, -0.02]
# Half of 8 go, the smallest: 0.02, 0.05, 0.1, 0.2. What stays:
#   x...
#   x..x
#   .x..
# The gradients, those of survivors large on purpose:
GRADIENT = [[9.0, 0.7, -0.3, 0.1], [9.0, -0.8, 0.2, 9.0], [0.0, -9.0, 0.6, -0.05]]
# The 4 largest of the rest: -0.8 and -0.3, which are new, and 0.7 and 0.6, which were just dropped.
AFTER = ["xxx.", "xx.x", ".xx."]
WEIGHTS_AFTER = [0.9, -0.1, 0.0, -0.8, 0.0, -0.3, 0.5, -0.02]


def hold_to_the_table(algorithm):
    topology = topology_of(BEFORE)
    new = algorithm.update(topology, signals(VALUES, GRADIENT))
    move = new if isinstance(new, Move) else Move.between(topology, new)
    assert drawing(move.new) == AFTER
    assert move.values(torch.tensor(VALUES)).tolist() == pytest.approx(WEIGHTS_AFTER)


def test_the_table():
    hold_to_the_table(RigL(0.5))


def forgetting_what_was_just_dropped(topology, kept, given):
    """The mistake: growth only where there was no connection before the update."""
    dense = given.absent.dense.abs().flatten().clone()
    dense[topology.keys] = -1
    return kept.grow(dense.topk(topology.nnz - kept.nnz).indices)


def starting_anew(topology, kept, given):
    """The mistake: a connection dropped and grown in one update loses its weight."""
    return Move.through(topology, kept, given.pattern.grow_highest(kept, topology.nnz, given.absent))


def by_signed_gradient(topology, kept, given):
    """The mistake: the largest gradient instead of the largest magnitude."""
    dense = given.absent.dense.flatten().clone()
    dense[kept.keys] = -99
    return kept.grow(dense.topk(topology.nnz - kept.nnz).indices)


@pytest.mark.parametrize("mistake", [forgetting_what_was_just_dropped, starting_anew, by_signed_gradient])
def test_the_table_catches_mistakes(mistake):
    class Wrong:
        def update(self, topology, given):
            return mistake(topology, given.pattern.drop(topology, given.values.abs(), 4), given)

    with pytest.raises(AssertionError):
        hold_to_the_table(Wrong())


@pytest.mark.parametrize(
    ("fraction", "progress", "dropped"),
    # f = alpha / 2 (1 + cos(pi progress)), k = int(8 f)
    [(0.5, 0.0, 4), (0.5, 1 / 3, 3), (0.5, 0.5, 2), (0.5, 0.75, 0), (0.5, 1.0, 0), (0.3, 0.0, 2), (1.0, 0.0, 8), (0.0, 0.0, 0)],
)
def test_how_many_go(fraction, progress, dropped):
    topology = topology_of(BEFORE)
    asked = []

    class Counted:
        def top(self, kept, count):
            asked.append((kept, count))
            return torch.tensor(sorted(set(range(12)) - set(kept.keys.tolist()))[:count])

    given = signals(VALUES, GRADIENT, progress)
    object.__setattr__(given, "absent", Counted())
    new = RigL(fraction).update(topology, given)
    assert new.nnz == 8
    if dropped:
        ((kept, count),) = asked
        assert count == dropped
        order = sorted(range(8), key=lambda index: abs(VALUES[index]))
        assert kept.keys.tolist() == topology.keys[sorted(order[dropped:])].tolist()
    else:
        assert new.equal(topology)


def test_ties_are_dropped_and_grown_by_position():
    new = RigL(0.5).update(topology_of("xxxx...."), signals([1.0, 1.0, 1.0, 1.0], torch.zeros(1, 8)))
    assert drawing(new) == ["xxxx...."], "the first two go, and come back: they are the first of equals again"
    new = RigL(0.5).update(topology_of("xxxx...."), signals([1.0, -1.0, 1.0, 1.0], [[0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]]))
    assert drawing(new) == ["..xxxx.."]


def test_optimizer_state_and_weights_through_rewire():
    layer = SparseLinear.from_dense(torch.nn.Linear(4, 3), topology_of(BEFORE), values=torch.tensor(VALUES))
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        layer.values.copy_(torch.tensor(VALUES))
    state = optimizer.state[layer.values]
    state["exp_avg"], state["exp_avg_sq"] = torch.arange(1.0, 9.0), torch.arange(11.0, 19.0)
    rewire(layer, optimizer, RigL(0.5).update(layer.topology, signals(layer.values.detach(), GRADIENT)))
    assert drawing(layer.topology) == AFTER
    assert layer.values.tolist() == pytest.approx(WEIGHTS_AFTER)
    # In the old order 1 2 3 / 4 5 6 / 7 8: those at 3 and 5 are gone.
    assert state["exp_avg"].tolist() == [1.0, 2.0, 0.0, 4.0, 0.0, 6.0, 7.0, 8.0]
    assert state["exp_avg_sq"].tolist() == [11.0, 12.0, 0.0, 14.0, 0.0, 16.0, 17.0, 18.0]
    assert float(state["step"]) == 1.0


def test_each_row_gets_back_what_it_lost_when_the_fan_in_is_constant():
    # 3 of 6 go: 0.05, 0.1 and 0.2. Row 0 grows two, row 2 one, though row 1 has larger gradients.
    topology = topology_of("xx.. .xx. x..x")
    gradient = [[1.0, 2.0, 3.0, 0.0], [9.0, 9.0, 9.0, 9.0], [9.0, 1.0, -5.0, 4.0]]
    new = RigL(0.5).update(topology, signals([0.1, 0.2, 0.9, -0.8, 0.7, -0.05], gradient, pattern=FanIn()))
    assert drawing(new) == [".xx.", ".xx.", "x.x."]


def test_settings():
    assert RigL().fraction == 0.3
    assert RigL.replaces_step is True
    assert RigL(0.5) == RigL(fraction=0.5)
    for fraction in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"fraction is a share of the connections and lies in \[0, 1\], got {fraction}"):
            RigL(fraction)
