"""Neurons cut off at one end: drawn by hand, and against removing one after the other until none is left."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from oracles import drawing, topology_of
from oracles.cht import without_cut_off

from truesparse import Block, FanIn, Topology, Unstructured
from truesparse.topology.percolation import check_chain, percolated


def after(drawings, chain="sequential", names=None, pattern=None):
    """The drawings of layers `0`, `1`, ... (or of these names) after percolation."""
    names = names or [str(index) for index in range(len(drawings))]
    topologies = dict(zip(names, map(topology_of, drawings), strict=True))
    return [drawing(left) for left in percolated(topologies, dict.fromkeys(names, pattern or Unstructured()), chain).values()]


FIRST, SECOND, THIRD = "xx. .x. ..x ...", ".xxx .x.. x...", "x.x .x."
# Neuron 3 between the first two has no input, 2 has an input and is read. In the third, column 2 is read: it is fed by neuron 0 of the
# first. All of row 0 of the second: its inputs 1 and 2 stay, 3 goes.
LEFT = [["xx.", ".x.", "..x", "..."], [".xx.", ".x..", "x..."], ["x.x", ".x."]]


def test_what_comes_from_a_neuron_without_inputs_goes():
    assert after([FIRST, SECOND, THIRD]) == LEFT


def test_what_leads_to_a_neuron_without_outputs_goes_all_the_way_back():
    # Nothing reads neuron 1 of the middle, the only reader of neuron 1 before it.
    assert after(["xx xx", "x. .x", "x. x."]) == [["xx", ".."], ["x.", ".."], ["x.", "x."]]
    # And forward: neuron 0 has no input, so what it alone feeds has none either.
    assert after([".. .x", "x. .x", "x. xx"]) == [["..", ".x"], ["..", ".x"], ["..", ".x"]]


def test_inputs_of_the_first_and_outputs_of_the_last_are_not_cut_off():
    assert after([".x .x", "xx .."]) == [[".x", ".x"], ["xx", ".."]]


def test_a_channel_is_read_in_all_its_pixels():
    # Two rows, six columns: three for each row. Row 1 is not read, row 0 in its last pixel only.
    assert after(["xx xx", "..x... ......"]) == [["xx", ".."], ["..x...", "......"]]
    assert after([".. xx", ".xx.x. x....."]) == [["..", "xx"], ["....x.", "......"]]


@pytest.mark.parametrize(
    ("names", "chain", "joined"),
    [
        (["0", "2"], "sequential", True),
        (["head.mlp.0", "head.mlp.3"], "sequential", True),
        (["0.mlp.2", "1.mlp.0"], "sequential", False),
        (["block.query", "block.key"], "sequential", False),
        (["query", "key"], "neighbours", True),
        (["0", "2"], "none", False),
    ],
)
def test_which_layers_read_one_another(names, chain, joined):
    assert after(["xx ..", ".x .x"], chain, names) == ([["..", ".."], ["..", ".."]] if joined else [["xx", ".."], [".x", ".x"]])


def test_layers_whose_sizes_do_not_fit_are_left_alone():
    assert after(["xx ..", ".x. .x."]) == [["xx", ".."], [".x.", ".x."]]
    empty = {"0": Topology.from_mask(torch.ones(0, 3)), "1": Topology.from_mask(torch.ones(3, 0))}
    assert percolated(empty, dict.fromkeys(empty, Unstructured()), "sequential") == empty


def test_patterns_are_kept():
    # Neuron 1 is not read, but 0 of the same block is: a block goes when all of it is useless.
    assert after(["xx.. xx.. ..xx ..xx", "x... x... .... ...."], pattern=Block(2))[0] == ["xx..", "xx..", "....", "...."]
    assert after(["x. .x", "x. x."], pattern=FanIn())[0] == ["x.", ".."], "growth gives the row its due again"


@pytest.mark.parametrize("seed", range(30))
def test_two_passes_remove_all_that_removing_one_by_one_does(seed):
    draw = np.random.default_rng(seed)
    sizes = draw.integers(1, 8, 5)
    masks = [draw.random((rows, columns * draw.integers(1, 3))) < 0.25 for columns, rows in pairwise(sizes)]
    topologies = {str(index): Topology.from_mask(torch.tensor(mask)) for index, mask in enumerate(masks)}
    left = percolated(topologies, dict.fromkeys(topologies, Unstructured()), "sequential")
    for ours, expected in zip(left.values(), without_cut_off(masks), strict=True):
        assert np.array_equal(ours.mask().numpy(), expected)


def test_chains_are_named():
    with pytest.raises(ValueError, match=r"chain is one of sequential, neighbours, none, got 'all'"):
        check_chain("all")
