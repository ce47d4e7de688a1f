"""Which topologies a pattern calls legal, draws, and drops from: against plain loops over units and groups."""

import math
from contextlib import nullcontext

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from oracles import Held, made, pairs_of
from oracles.patterns import ablated_layers, connections_due, connections_of_a_unit, layers, members, of_fan_in, partly, unit_of

import truesparse as ts
from truesparse import NM, Block, FanIn, Neurons, SharedFanIn, SparseConv2d, Topology, Unstructured, sparsify
from truesparse.topology.patterns import pattern as named_pattern

DUE = {Unstructured: 20, FanIn: 5, SharedFanIn: 5, NM: 2, Block: 5, Neurons: 3}  # units of a group of a layer of 4 x 8


def assert_legal(pattern, topology, due):
    pairs = pairs_of(topology)
    for units in members(pattern, topology.shape).values():
        whole = [unit for unit, connections in units.items() if set(connections) <= pairs]
        touched = [unit for unit, connections in units.items() if set(connections) & pairs]
        assert whole == touched, "a unit is half connected"
        assert len(whole) == due


@given(layers(), st.integers(0, 3))
def test_random_is_legal_and_repeatable(layer, seed):
    pattern, shape, due = layer
    nnz = connections_due(pattern, shape, due)
    topology = pattern.random(shape, nnz, torch.Generator().manual_seed(seed))
    assert topology.nnz == nnz
    assert_legal(pattern, topology, due)
    pattern.check(topology)
    Topology(topology.shape, topology.indptr, topology.indices)
    assert pattern.random(shape, nnz, torch.Generator().manual_seed(seed)).equal(topology)


@pytest.mark.parametrize("pattern", [Unstructured(), FanIn(), SharedFanIn(2), NM(2, 4), Block(2), Neurons()], ids=str)
def test_random_is_uniform(pattern):
    shape, draws = (4, 8), 800
    nnz = pattern.round(shape, 16)
    hits, generator = torch.zeros(shape), torch.Generator().manual_seed(0)
    for _ in range(draws):
        hits += pattern.random(shape, nnz, generator).mask()
    expected = draws * nnz / 32
    assert float(hits.sum()) == draws * nnz
    worst = float((hits - expected).abs().max()) / math.sqrt(expected)
    assert worst < 4, f"a position is drawn {worst:.1f} standard deviations too often or too seldom"


@given(layers(), st.data())
def test_random_growth_keeps_what_is_kept(layer, data):
    pattern, _, due = layer
    kept, nnz = partly(layer, data)
    before = kept.keys
    grown = pattern.grow_random(kept, nnz, torch.Generator().manual_seed(2))
    assert grown.nnz == nnz
    assert_legal(pattern, grown, due)
    assert pairs_of(kept) <= pairs_of(grown)
    assert torch.equal(kept.keys, before)


@given(layers(), st.randoms(use_true_random=False), st.data())
def test_drop_takes_the_units_of_lowest_sum(layer, random, data):
    pattern, shape, due = layer
    topology = pattern.random(shape, connections_due(pattern, shape, due), torch.Generator().manual_seed(1))
    scores = torch.tensor([float(random.randint(0, 3)) for _ in range(topology.nnz)], dtype=torch.float64)
    sums = {}
    for (row, column), score in zip(sorted(pairs_of(topology)), scores.tolist(), strict=True):
        sums[unit_of(pattern, row, column)] = sums.get(unit_of(pattern, row, column), 0.0) + score
    assert pattern.pool(topology, scores).tolist() == [sums[unit] for unit in sorted(sums)]

    unit_connections = connections_of_a_unit(pattern, shape) or 1
    count = data.draw(st.integers(0, topology.nnz))
    gone = sorted(sums, key=lambda unit: (sums[unit], unit))[: count // unit_connections]
    survivors = pattern.drop(topology, scores, count)
    assert pairs_of(survivors) == {pair for pair in pairs_of(topology) if unit_of(pattern, *pair) not in gone}


@given(ablated_layers(), st.randoms(use_true_random=False), st.data())
def test_drop_leaves_no_row_above_its_due_where_neurons_are_ablated(layer, random, data):
    shape, fan_in = layer
    topology = of_fan_in(shape[1], fan_in)
    FanIn().check(topology)
    scores = [float(random.randint(0, 3)) for _ in range(topology.nnz)]
    weakest = sorted(range(topology.nnz), key=lambda index: (scores[index], index))
    due = topology.nnz // shape[0]
    count = data.draw(st.integers(0, topology.nnz))
    pairs = sorted(pairs_of(topology))
    expected = {pairs[index] for index in weakest[count:]}
    for row in range(shape[0]):
        own = [index for index in weakest if pairs[index][0] == row]
        expected -= {pairs[index] for index in own[: max(len(own) - due, 0)]}
    survivors = FanIn().drop(topology, torch.tensor(scores), count)
    assert pairs_of(survivors) == expected
    for grown in (
        FanIn().grow_random(survivors, topology.nnz, torch.Generator().manual_seed(0)),
        FanIn().grow_highest(survivors, topology.nnz, Held(torch.rand(shape))),
    ):
        assert grown.fan_in.tolist() == [due] * shape[0], "ablated neurons are back"
        assert pairs_of(survivors) <= pairs_of(grown)


@given(ablated_layers())
def test_growth_alone_makes_room_in_rows_above_their_due(layer):
    shape, fan_in = layer
    topology = of_fan_in(shape[1], fan_in)
    due = topology.nnz // shape[0]
    stay = {
        (row, column)
        for row, column in pairs_of(topology)
        if sum(pair < (row, column) for pair in pairs_of(topology) if pair[0] == row) < due
    }
    nothing = made(shape, set())
    for grown in (
        FanIn().grow_random(topology, topology.nnz, torch.Generator().manual_seed(0)),
        FanIn().grow_highest(topology, topology.nnz, Held(torch.rand(shape))),
        FanIn().grow_scored(topology, topology.nnz, nothing, torch.empty(0), torch.Generator().manual_seed(0)),
    ):
        assert grown.fan_in.tolist() == [due] * shape[0]
        assert stay <= pairs_of(grown)


def test_dropping_for_fewer_connections_makes_room_for_them():
    topology = FanIn().random((6, 8), 24)
    scores = torch.arange(24.0)  # the first rows are the weakest
    assert FanIn().drop(topology, scores, 4).fan_in.tolist() == [0, 4, 4, 4, 4, 4]
    assert FanIn().drop(topology, scores, 4, nnz=12).fan_in.tolist() == [0, 2, 2, 2, 2, 2]
    assert FanIn().drop(FanIn().drop(topology, scores, 4), scores[4:], 5).fan_in.tolist() == [0, 0, 3, 4, 4, 4], (
        "between a drop and a growth"
    )
    with pytest.raises(ValueError, match=r"FanIn\(\) cannot have 13 connections in shape \(6, 8\); the nearest legal count is 12"):
        FanIn().drop(topology, scores, 4, nnz=13)


@given(ablated_layers(), st.data())
def test_constant_fan_in_lets_neurons_be_ablated(layer, data):
    shape, fan_in = layer
    FanIn().check(of_fan_in(shape[1], fan_in))
    other = [data.draw(st.integers(0, shape[1])) for _ in fan_in]
    held = [count for count in other if count]
    legal = not held or (max(held) - min(held) <= 1 and sum(held) % shape[0] == 0)
    with nullcontext() if legal else pytest.raises(ValueError, match="FanIn"):
        FanIn().check(of_fan_in(shape[1], other))


@given(layers(), st.randoms(use_true_random=False))
def test_strongest(layer, random):
    pattern, shape, due = layer
    scores = torch.tensor([float(random.randint(0, 4)) for _ in range(shape[0] * shape[1])]).view(shape)
    expected = set()
    for units in members(pattern, shape).values():
        sums = {unit: sum(float(scores[pair]) for pair in connections) for unit, connections in units.items()}
        for unit in sorted(sums, key=lambda unit: (-sums[unit], unit))[:due]:
            expected.update(units[unit])
    assert pairs_of(pattern.strongest(scores, connections_due(pattern, shape, due))) == expected


@pytest.mark.parametrize(
    ("pattern", "shape", "nnz", "rounded"),
    [
        (Unstructured(), (7, 9), 0, 0),
        (Unstructured(), (7, 9), 13, 13),
        (Unstructured(), (7, 9), 100, 63),
        (Unstructured(), (0, 9), 5, 0),
        (FanIn(), (10, 20), 33, 30),
        (FanIn(), (10, 20), 36, 40),
        (FanIn(), (10, 20), 1, 10),
        (FanIn(), (10, 20), 0, 0),
        (FanIn(), (10, 20), 500, 200),
        (SharedFanIn(5), (10, 20), 33, 30),
        (SharedFanIn(5), (10, 20), 36, 40),
        (SharedFanIn(5), (10, 20), 1, 10),
        (SharedFanIn(10), (10, 20), 500, 200),
        (SharedFanIn(4), (0, 20), 9, 0),
        (SharedFanIn(4), (8, 0), 9, 0),
        (NM(2, 4), (3, 8), 1, 12),
        (NM(2, 4), (3, 8), 24, 12),
        (Block(2), (4, 6), 9, 8),
        (Block(2), (4, 6), 11, 12),
        (Block(2), (4, 6), 1, 4),
        (Neurons(), (4, 6), 1, 6),
        (Neurons(), (4, 6), 14, 12),
        (Neurons(), (4, 6), 16, 18),
        (Neurons(), (4, 6), 99, 24),
        (Neurons(), (4, 0), 99, 0),
        (Neurons(), (0, 6), 9, 0),
    ],
)
def test_round(pattern, shape, nnz, rounded):
    assert pattern.round(shape, nnz) == rounded
    assert pattern.random(shape, rounded).nnz == rounded


@pytest.mark.parametrize(
    ("pattern", "pairs", "says"),
    [
        (
            FanIn(),
            {(0, 0), (0, 1), (0, 2), (1, 0)},
            r"FanIn\(\) needs the same count, give or take one, in every row that is not empty; .* has 1 to 3",
        ),
        (FanIn(), {(0, 0), (0, 1), (1, 0)}, r"FanIn\(\) cannot have 3 connections in shape \(4, 4\); the nearest legal count is 4"),
        (
            SharedFanIn(2),
            {(0, 0), (1, 1), (2, 0), (3, 0)},
            r"SharedFanIn\(rows=2\) needs whole blocks of 2 x 1; some blocks of .* are not full",
        ),
        (SharedFanIn(2), {(1, 0), (2, 0)}, "needs whole blocks of 2 x 1"),
        (
            SharedFanIn(2),
            {(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 0), (3, 0)},
            r"SharedFanIn\(rows=2\) needs the same count, give or take one, in every row that is not empty; .* has 1 to 3",
        ),
        (SharedFanIn(3), set(), r"SharedFanIn\(rows=3\) needs rows divisible by 3, got shape \(4, 4\); exclude this layer or use another"),
        (Neurons(), {(1, 0), (1, 1), (1, 2)}, r"Neurons\(\) needs whole blocks of 1 x 4; some blocks of .* are not full"),
        (NM(1, 2), {(0, 0), (0, 1)}, r"NM\(n=1, m=2\) needs the same count in every group, .* has 0 to 2"),
        (NM(1, 2), {(row, column) for row in range(4) for column in range(4)}, r"NM\(n=1, m=2\) cannot have 16 connections"),
        (Block(2), {(0, 0), (0, 1), (1, 0)}, r"Block\(size=2\) needs whole blocks of 2 x 2; some blocks of .* are not full"),
        (Block(2), {(0, 1), (0, 2), (1, 1), (1, 2)}, "needs whole blocks of 2 x 2"),
        (Block(3), set(), r"Block\(size=3\) needs rows divisible by 3, got shape \(4, 4\); exclude this layer or use another pattern"),
        (NM(2, 3), set(), r"needs columns divisible by 3, got shape \(4, 4\); exclude"),
        (NM(2, 8), set(), r"needs columns divisible by 8, got shape \(4, 4\); exclude"),
        (NM(2, 16), set(), r"needs columns divisible by 16, got shape \(4, 4\); exclude"),
    ],
)
def test_check_refuses(pattern, pairs, says):
    with pytest.raises(ValueError, match=says):
        pattern.check(made((4, 4), pairs))


@pytest.mark.parametrize(
    ("pattern", "shape", "nnz", "says"),
    [
        (Unstructured(), (4, 4), 17, r"Unstructured\(\) cannot have 17 connections in shape \(4, 4\); the nearest legal count is 16"),
        (Unstructured(), (4, 4), -1, "cannot have -1 connections"),
        (FanIn(), (4, 4), 6, r"FanIn\(\) cannot have 6 connections in shape \(4, 4\); the nearest legal count is 8"),
        (SharedFanIn(2), (4, 4), 6, r"SharedFanIn\(rows=2\) cannot have 6 connections in shape \(4, 4\); the nearest legal count is 8"),
        (SharedFanIn(8), (4, 4), 8, "needs rows divisible by 8"),
        (NM(2, 4), (4, 4), 4, r"NM\(n=2, m=4\) cannot have 4 connections in shape \(4, 4\); the nearest legal count is 8"),
        (Block(2), (4, 4), 6, r"Block\(size=2\) cannot have 6 connections in shape \(4, 4\); the nearest legal count is 8"),
        (Block(3), (4, 4), 9, "needs rows divisible by 3"),
        (Block(2), (4, 3), 4, "needs columns divisible by 2"),
        (NM(2, 8), (3, 4), 2, "needs columns divisible by 8"),
        (Neurons(), (4, 4), 6, r"Neurons\(\) cannot have 6 connections in shape \(4, 4\); the nearest legal count is 8"),
    ],
)
def test_counts_that_cannot_be(pattern, shape, nnz, says):
    for make in (lambda: pattern.random(shape, nnz), lambda: pattern.strongest(torch.rand(shape), nnz)):
        with pytest.raises(ValueError, match=says):
            make()


def test_growing_onto_too_much_is_refused():
    kept = made((2, 4), {(0, 0), (0, 1), (0, 2)})
    with pytest.raises(ValueError, match=r"FanIn\(\) cannot grow 3 connections in shape \(2, 4\) to 2: drop before growing"):
        FanIn().grow_random(kept, 2, None)


@pytest.mark.parametrize("pattern", [Unstructured(), FanIn(), SharedFanIn(3), NM(2, 3), Block(3), Neurons()], ids=str)
def test_convolutions(pattern):
    layer = SparseConv2d(6, 12, 3, groups=2, sparsity=2 / 3 if pattern != NM(2, 3) else 0, pattern=pattern)
    assert layer.topology.shape == (12, 27)
    layer.pattern.check(layer.topology)
    assert layer.pattern == (NM(2, 3, apart=9) if pattern == NM(2, 3) else pattern)
    assert layer.topology.nnz == pattern.round((12, 27), 108)
    if pattern == Neurons():
        assert sorted(layer.topology.fan_in.tolist()) == [0] * 8 + [27] * 4


def windows_of(weight, m):
    """Connections of each window of `m` input channels at one position of the kernel, by loops over the dense weight."""
    rows, channels, height, width = weight.shape
    return [
        sum(bool(weight[row, first + channel, down, across]) for channel in range(m))
        for row in range(rows)
        for first in range(0, channels, m)
        for down in range(height)
        for across in range(width)
    ]


@pytest.mark.parametrize(("kernel", "groups"), [((3, 2), 1), (1, 1), ((1, 3), 2)])
@pytest.mark.parametrize("masked", [False, True])
def test_windows_of_a_convolution_are_input_channels_at_one_position_of_its_kernel(kernel, groups, masked):
    torch.manual_seed(0)
    dense = torch.nn.Conv2d(8 * groups, 4, kernel, groups=groups)
    weight = dense.weight.detach().clone()
    layer = sparsify(dense, pattern="nm:2:4", from_weights=True, masked=masked)
    strongest = layer.to_dense().detach()
    assert windows_of(strongest, 4) == [2] * (weight.numel() // 4)
    largest = weight.view(4, 2, 4, *weight.shape[2:]).abs().topk(2, 2).indices
    expected = torch.zeros_like(weight).view(4, 2, 4, *weight.shape[2:]).scatter(2, largest, 1.0).view_as(weight)
    assert torch.equal(strongest, weight * expected)

    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for algorithm in (ts.RigL(fraction=0.9), ts.SET(fraction=0.9), ts.algorithms.GSE(fraction=0.9)):
        rewirer = ts.Rewirer(layer, optimizer, algorithm, every=1)
        before = layer.topology
        y = layer(torch.randn(4, 8 * groups, 5, 5))
        (y * torch.randn_like(y)).sum().backward()
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
        rewirer.detach()
        assert not layer.topology.equal(before)
        assert windows_of(layer.topology.mask().view_as(weight), 4) == [2] * (weight.numel() // 4)


def test_growth_in_the_windows_of_a_convolution_takes_the_largest_gradient_of_each():
    # Four channels, two taps: columns are a0 a1 b0 b1 c0 c1 d0 d1, and the windows a0 b0 c0 d0 and a1 b1 c1 d1.
    pattern = NM(2, 4, apart=2)
    gradient = torch.tensor([[1.0, 8.0, 3.0, 7.0, 4.0, 6.0, 2.0, 5.0]])
    kept = made((1, 8), {(0, 4), (0, 7)})
    assert pairs_of(pattern.grow_highest(kept, 4, Held(gradient))) == {(0, 4), (0, 2), (0, 7), (0, 1)}
    assert pairs_of(pattern.strongest(gradient, 4)) == {(0, 2), (0, 4), (0, 1), (0, 3)}
    with pytest.raises(ValueError, match=r"needs the same count in every group, .* has 1 to 3"):
        pattern.check(made((1, 8), {(0, 0), (0, 2), (0, 4), (0, 1)}))
    NM(2, 4).check(made((1, 8), {(0, 0), (0, 2), (0, 4), (0, 6)}))


def test_a_convolution_whose_input_channels_the_window_does_not_divide_is_refused():
    says = r"NM\(n=2, m=4, apart=4\) needs input channels \(columns / 4\) divisible by 4, got shape \(8, 24\); exclude this layer"
    with pytest.raises(ValueError, match=says):
        SparseConv2d(6, 8, 2, pattern=NM(2, 4))
    with pytest.raises(ValueError, match=says):
        sparsify(torch.nn.Sequential(torch.nn.Conv2d(12, 8, 2, groups=2)), pattern="nm:2:4")


def test_the_distance_in_a_window_is_shown_where_it_matters_and_survives_files(tmp_path):
    assert (str(NM(2, 4)), str(NM(2, 4, apart=9))) == ("NM(n=2, m=4)", "NM(n=2, m=4, apart=9)")
    with pytest.raises(ValueError, match="the columns of a window stand at least 1 apart, got apart=0"):
        NM(2, 4, apart=0)
    model = sparsify(torch.nn.Sequential(torch.nn.Conv2d(8, 4, 3), torch.nn.Conv2d(4, 8, 1)), pattern="2:4")
    assert [layer.pattern for layer in model] == [NM(2, 4, apart=9), NM(2, 4)]
    ts.save(model, tmp_path / "net.safetensors")
    again = sparsify(torch.nn.Sequential(torch.nn.Conv2d(8, 4, 3), torch.nn.Conv2d(4, 8, 1)), pattern="2:4")
    ts.load(tmp_path / "net.safetensors", again)
    assert all(new.topology.equal(old.topology) and new.pattern == old.pattern for new, old in zip(again, model, strict=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unstructured", Unstructured()),
        ("fan-in", FanIn()),
        ("shared-fan-in", SharedFanIn(16)),  # 32 do not divide 48
        ("shared-fan-in:24", SharedFanIn(24)),
        ("nm:2:4", NM(2, 4)),
        ("1:16", NM(1, 16)),
        ("block", Block(4)),
        ("block:8", Block(8)),
        ("neurons", Neurons()),
        (Block(3), Block(3)),
    ],
)
def test_patterns_by_name(text, expected):
    assert named_pattern(text) == (SharedFanIn(32) if text == "shared-fan-in" else expected)
    layer = sparsify(torch.nn.Linear(48, 48), 0.5, pattern=text)
    assert layer.pattern == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fanin",
        "nm",
        "nm:2",
        "nm:2:4:8",
        "nm:two:4",
        "2",
        "block:",
        "block:2:2",
        "block:-1",
        "neurons:3",
        "fan-in:3",
        "shared-fan-in:2:2",
    ],
)
def test_names_of_no_pattern(text):
    with pytest.raises(ValueError, match=f"unknown pattern {text!r}; known: unstructured, fan-in, shared-fan-in:ROWS .*, nm:N:M"):
        named_pattern(text)


def test_names_of_patterns_with_settings_that_cannot_be():
    with pytest.raises(ValueError, match="NM needs 0 < n <= m, got n=5, m=4"):
        named_pattern("nm:5:4")
    with pytest.raises(ValueError, match="a block has at least 1 x 1 connections, got size=0"):
        named_pattern("block:0")


def test_settings_that_cannot_be():
    for n, m in ((0, 4), (5, 4), (-1, 2)):
        with pytest.raises(ValueError, match=f"NM needs 0 < n <= m, got n={n}, m={m}"):
            NM(n, m)
    with pytest.raises(ValueError, match="a block has at least 1 x 1 connections, got size=0"):
        Block(0)
    with pytest.raises(ValueError, match="a group has at least 1 row, got rows=0"):
        SharedFanIn(0)


@pytest.mark.parametrize(
    ("pattern", "shape", "held", "due"),
    [(Unstructured(), (5, 7), 20, 9), (FanIn(), (4, 8), 6, 3), (SharedFanIn(2), (4, 8), 6, 3), (Block(2), (6, 8), 9, 4)],
    ids=str,
)
@pytest.mark.parametrize("seed", range(5))
def test_prune_leaves_each_group_its_best(pattern, shape, held, due, seed):
    draw = torch.Generator().manual_seed(seed)
    topology = pattern.random(shape, connections_due(pattern, shape, held), draw)
    scores = torch.randint(4, (topology.nnz,), generator=draw).float()  # many ties
    score_of = dict(zip(sorted(pairs_of(topology)), scores.tolist(), strict=True))
    expected = set()
    for units in members(pattern, shape).values():
        there = {unit: sum(score_of[pair] for pair in pairs) for unit, pairs in units.items() if set(pairs) <= score_of.keys()}
        assert len(there) == held
        for unit in sorted(there, key=lambda unit: (-there[unit], unit))[:due]:
            expected.update(units[unit])
    nnz = connections_due(pattern, shape, due)
    assert pairs_of(pattern.prune(topology, scores, nnz)) == expected
    assert pattern.prune(topology, scores, topology.nnz) is topology


@given(layers(), st.data())
def test_complement_and_absent_units(layer, data):
    pattern, shape, due = layer
    topology = pattern.random(shape, connections_due(pattern, shape, due), torch.Generator().manual_seed(1))
    units = {unit: set(pairs) for group in members(pattern, shape).values() for unit, pairs in group.items()}
    absent = {unit for unit, pairs in units.items() if not pairs & pairs_of(topology)}
    assert pairs_of(pattern.complement(topology)) == {pair for unit in absent for pair in units[unit]}
    wanted = data.draw(st.lists(st.sampled_from(sorted(units)), max_size=8)) if units else []
    row, column = torch.tensor(wanted, dtype=torch.int32).view(-1, 2).unbind(1)
    drawn = Topology._collected(pattern.units(topology).shape, row, column)
    assert pairs_of(pattern.absent_units(topology, drawn)) == {pair for unit in absent & set(wanted) for pair in units[unit]}


def test_only_windows_fix_the_count():
    assert [pattern.fixes_count for pattern in (Unstructured(), FanIn(), SharedFanIn(2), NM(2, 4), Block(2), Neurons())] == [
        False,
        False,
        False,
        True,
        False,
        False,
    ]


def test_what_couples_connections():
    kinds = (Unstructured(), FanIn(), SharedFanIn(1), NM(2, 4), Block(1), Block(2), SharedFanIn(2), Neurons())
    assert [pattern.couples for pattern in kinds] == [False] * 5 + [True] * 3
    assert [pattern.unit((4, 8)) != (1, 1) for pattern in kinds] == [pattern.couples for pattern in kinds]


@pytest.mark.parametrize("pattern", [Unstructured(), FanIn(), SharedFanIn(2), NM(2, 4), Block(2), Neurons()], ids=str)
@pytest.mark.parametrize("seed", range(10))
def test_trim(pattern, seed):
    """Each group keeps its strongest units up to its due, and what has fewer keeps all it has."""
    draw, shape, due = torch.Generator().manual_seed(seed), (4, 8), DUE[type(pattern)]
    whole = pattern.random(shape, connections_due(pattern, shape, due), draw)
    units = pattern.units(whole).nnz
    topology = pattern.drop_units(whole, torch.randperm(units, generator=draw)[: units // 5])
    scores = torch.randint(5, (topology.nnz,), generator=draw).float()
    fewer = due if isinstance(pattern, NM) else (due, due - 1, due // 2, 0)[seed % 4]
    score_of = dict(zip(sorted(pairs_of(topology)), scores.tolist(), strict=True))
    expected = set()
    for group in members(pattern, shape).values():
        held = [unit for unit, connections in group.items() if set(connections) <= pairs_of(topology)]
        # Of equal ones the first go, as in drop.
        strongest = sorted(held, key=lambda unit: (-sum(score_of[pair] for pair in group[unit]), [-place for place in unit]))
        expected.update(pair for unit in strongest[:fewer] for pair in group[unit])
    assert pairs_of(pattern.trim(topology, scores, connections_due(pattern, shape, fewer))) == expected


@given(layers())
def test_step(layer):
    pattern, shape, due = layer
    groups = len(members(pattern, shape))
    assert pattern.step(shape) == max(groups, 1) * (connections_of_a_unit(pattern, shape) or 1)
    assert connections_due(pattern, shape, due) % pattern.step(shape) == 0
    assert pattern.fixes_count == isinstance(pattern, NM)


def test_trim_refuses_a_count_that_the_pattern_cannot_have():
    with pytest.raises(ValueError, match="cannot have 3 connections in shape"):
        FanIn().trim(made((2, 4), {(0, 0), (0, 1), (1, 0), (1, 1)}), torch.ones(4), 3)


@given(ablated_layers(), st.randoms(use_true_random=False), st.data())
def test_trim_leaves_ablated_neurons_as_they_are(layer, random, data):
    shape, fan_in = layer
    topology = of_fan_in(shape[1], fan_in)
    scores = [float(random.randint(0, 3)) for _ in range(topology.nnz)]
    nnz = shape[0] * data.draw(st.integers(0, topology.nnz // shape[0]))
    trimmed = FanIn().trim(topology, torch.tensor(scores), nnz)
    FanIn().check(trimmed)
    assert trimmed.nnz == nnz
    active = [row for row, count in enumerate(fan_in) if count]
    pairs, counts = sorted(pairs_of(topology)), trimmed.fan_in.tolist()
    assert not active or max(counts[row] for row in active) - min(counts[row] for row in active) <= 1
    for row in active:
        own = sorted((index for index, pair in enumerate(pairs) if pair[0] == row), key=lambda index: (scores[index], index))
        assert {pairs[index] for index in own[len(own) - counts[row] :]} == {pair for pair in pairs_of(trimmed) if pair[0] == row}


@given(ablated_layers(), st.integers(1, 3), st.randoms(use_true_random=False), st.data())
def test_groups_of_rows_are_the_rows_of_constant_fan_in(layer, height, random, data):
    """Each operation on groups of rows that share columns is that of one row each, on the sums of the groups."""
    (rows, columns), fan_in = layer
    one, pattern = of_fan_in(columns, fan_in), SharedFanIn(height)
    shared = Topology.from_mask(one.mask().repeat_interleave(height, 0))
    pattern.check(shared)
    scores = torch.tensor([float(random.randint(0, 3)) for _ in range(shared.nnz)], dtype=torch.float64)
    dense = torch.tensor([float(random.randint(0, 3)) for _ in range(shared.size)], dtype=torch.float64).view(shared.shape)
    summed = shared.scatter(scores).view(rows, height, columns).sum(1).flatten()[one.keys]
    gradients = Held(dense.view(rows, height, columns).sum(1))
    count, nnz = data.draw(st.integers(0, one.nnz)), rows * data.draw(st.integers(0, one.nnz // rows))

    def same(found, expected):
        assert torch.equal(found.mask(), expected.mask().repeat_interleave(height, 0))

    kept = FanIn().drop(one, summed, count)
    same(pattern.drop(shared, scores, count * height), kept)
    same(pattern.trim(shared, scores, nnz * height), FanIn().trim(one, summed, nnz))
    if min(fan_in) * rows >= nnz:  # else it draws
        same(pattern.prune(shared, scores, nnz * height), FanIn().prune(one, summed, nnz))
    same(
        pattern.grow_highest(pattern.drop(shared, scores, count * height), shared.nnz, Held(dense)),
        FanIn().grow_highest(kept, one.nnz, gradients),
    )


@pytest.mark.parametrize(("rows", "group"), [(64, 32), (96, 32), (48, 16), (1000, 8), (10, 2), (33, 1), (7, 1)])
def test_a_layer_has_groups_that_divide_its_rows_and_says_so(rows, group):
    model = torch.nn.Sequential(torch.nn.Linear(8, rows), torch.nn.Conv2d(2, rows, 3))
    sparsify(model, 0.5, pattern="shared-fan-in:32")
    assert [layer.pattern for layer in model] == [SharedFanIn(group)] * 2
    assert {layer.pattern for layer in ts.summary(model).layers} == {f"SharedFanIn(rows={group})"}
    for layer in model:
        layer.pattern.check(layer.topology)
        columns = layer.topology.mask().view(rows // group, group, -1)
        assert torch.equal(columns, columns[:, :1].expand_as(columns))


def test_one_row_that_shares_is_constant_fan_in():
    shape, scores = (5, 8), torch.rand(5, 8)
    shared, plain = (p.random(shape, 15, torch.Generator().manual_seed(0)) for p in (SharedFanIn(1), FanIn()))
    assert shared.equal(plain)
    assert SharedFanIn(1).strongest(scores, 15).equal(FanIn().strongest(scores, 15))
    assert isinstance(SharedFanIn(4), FanIn), "rows that share columns have equally many"
