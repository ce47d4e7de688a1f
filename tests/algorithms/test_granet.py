"""GraNet against a table drawn by hand, and a dense transcription of its paper."""

import numpy as np
import pytest
from oracles import drawing
from oracles.granet import updated
from oracles.networks import masks_of, moves_of, random_network, signals_of, weights_of

from truesparse import NM, Block, FanIn, Move
from truesparse.algorithms import GraNet

# Small layers: what is left of them is often less than they have rows.
pytestmark = pytest.mark.filterwarnings("ignore:layer .* is nearly pruned away")

NETWORK = [
    {
        "mask": np.ones((2, 4), bool),
        "weight": np.array([[0.9, -0.1, 0.4, -0.3], [0.05, 0.8, -0.2, 0.6]]),
        "gradient": np.array([[9.0, -0.7, 0.6, 0.1], [0.2, 9.0, 0.3, 9.0]]),
    },
    {
        "mask": np.ones((2, 3), bool),
        "weight": np.array([[0.5, -0.15, 0.25], [-0.7, 0.1, 0.35]]),
        "gradient": np.array([[9.0, 0.1, -0.8], [9.0, 0.2, 0.3]]),
    },
]
# Half of the way from all 14 to 7 is 8, as for GMP:
#   x.xx  x..
#   .x.x  x.x
# A share of 1 is half by then: int(0.5 x 5) = 2 go, 0.3 and 0.4; and int(0.5 x 3) = 1, 0.35:
#   x...  x..
#   .x.x  x..
# The gradients of the rest: 0.7 (pruned) and 0.6 (just dropped); -0.8 (pruned).
AFTER = [["xxx.", ".x.x"], ["x.x", "x.."]]
WEIGHTS_AFTER = [[[0.9, 0.0, 0.4, 0.0], [0.0, 0.8, 0.0, 0.6]], [[0.5, 0.0, 0.0], [-0.7, 0.0, 0.0]]]


def hold_to_the_table(algorithm):
    layers = signals_of(NETWORK, progress=0.5)
    moves = moves_of(algorithm.update_network(layers, {})[0], layers)
    assert [drawing(move.new) for move in moves] == AFTER
    assert [weight.tolist() for weight in weights_of(moves, layers)] == WEIGHTS_AFTER


def test_the_table():
    hold_to_the_table(GraNet(0.5, 1.0, 0.0))


class KeepsWhatIsPrunedAndGrown(GraNet):
    """The mistake: what the pruning took comes back with its weight."""

    def _renewed(self, layer, count):
        return Move.between(layer.topology, super()._renewed(layer, count).new)


class StartsWhatIsDroppedAndGrown(GraNet):
    """The mistake: what the renewal drops and grows again loses its weight."""

    def _renewed(self, layer, count):
        pruned = layer.pattern.trim(layer.topology, layer.values.abs(), count)
        kept = layer.pattern.trim(layer.topology, layer.values.abs(), count - count // 2)
        return Move.through(layer.topology, kept, layer.pattern.grow_highest(kept, pruned.nnz, layer.absent))


class RenewsWithoutPruning(GraNet):
    """The mistake: the layers stay as large as they are."""

    def _renewed(self, layer, count):
        return super()._renewed(layer, layer.topology.nnz)


@pytest.mark.parametrize("mistake", [KeepsWhatIsPrunedAndGrown, StartsWhatIsDroppedAndGrown, RenewsWithoutPruning])
def test_the_table_catches_mistakes(mistake):
    with pytest.raises(AssertionError):
        hold_to_the_table(mistake(0.5, 1.0, 0.0))


@pytest.mark.parametrize("seed", range(80))
def test_equals_the_dense_transcription(seed):
    draw = np.random.default_rng(seed)
    network = random_network(draw)
    budgets = [int(draw.integers(layer["mask"].sum(), layer["mask"].size + 1)) for layer in network]
    start = 1 - sum(budgets) / sum(layer["mask"].size for layer in network)
    sparsity = start + (1 - start) * float(draw.choice([0.0, 0.5, 0.9, 1.0]))
    fraction, progress, last = float(draw.choice([0.0, 0.5, 1.0])), float(draw.choice([0.0, 0.2, 0.7, 0.95])), bool(draw.integers(2))
    layers = signals_of(network, progress, last, budgets=budgets)
    moves = moves_of(GraNet(sparsity, fraction, 0.0).update_network(layers, {})[0], layers)
    masks, weights = updated(network, budgets, sparsity, fraction, progress, last)
    for ours, theirs in zip((*masks_of(moves), *weights_of(moves, layers)), (*masks, *weights), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("pattern", [FanIn(), Block(2)], ids=str)
def test_each_row_or_block_gets_back_what_it_lost(pattern):
    draw = np.random.default_rng(0)
    network = [{"mask": np.ones((4, 8), bool), "weight": draw.normal(size=(4, 8)), "gradient": draw.normal(size=(4, 8))}] * 2
    for progress in (0.0, 0.3, 0.9):
        layers = signals_of(network, progress, progress == 0.9, pattern)
        moves = moves_of(GraNet(0.75, 1.0).update_network(layers, {})[0], layers)
        for move in moves:
            pattern.check(move.new)
        assert sum(move.new.nnz for move in moves) == (16 if progress == 0.9 else pytest.approx(64 - 48 * (1 - (1 - progress) ** 3), abs=4))


def test_what_is_refused():
    with pytest.raises(ValueError, match="GraNet changes how many connections a layer has, and NM"):
        GraNet().check_pattern(NM(2, 4))
    for name in ("sparsity", "fraction", "start_sparsity"):
        with pytest.raises(ValueError, match=rf"{name} is a share of the connections and lies in \[0, 1\], got 1.5"):
            GraNet(**{name: 1.5})
    with pytest.raises(ValueError, match=r"pruning goes from start_sparsity up to sparsity, got 0\.5 and 0\.3"):
        GraNet(0.3)
