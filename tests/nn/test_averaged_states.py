"""Averages of models are of one topology, or they are refused: buffers written in place, and states averaged entry by entry."""

import copy
import pickle
import random
import zlib

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import truesparse as ts
from truesparse.topology.identity import FINGERPRINTS, fingerprint

WRITTEN = r"something wrote another topology, or none, into the buffers of a SparseLinear .*load_state_dict.*ts\.stability\.Average"
AVERAGED = r"the topology is not the one that was saved with these values.*ts\.stability\.Average"


def layer(seed, pattern=None, sizes=(24, 16)):
    torch.manual_seed(seed)
    return ts.SparseLinear(*sizes, sparsity=0.7, pattern=pattern, generator=torch.Generator().manual_seed(seed))


def another(one, seed=9):
    """A topology of the same size."""
    generator = torch.Generator().manual_seed(seed)
    return one.pattern.random(one.topology.shape, one.topology.nnz, generator)


def average_of(states, weights, dtype=torch.float32):
    """Entry by entry, in `dtype`, each back in its own: as federated averaging does."""
    mixed = {}
    for name, entry in states[0].items():
        total = sum(weight * state[name].to(dtype) for weight, state in zip(weights, states, strict=True))
        mixed[name] = total.to(entry.dtype)
    return mixed


USES = {
    "forward": lambda one: one(torch.randn(3, 24)),
    "to_dense": lambda one: one.to_dense(),
    "state_dict": lambda one: one.state_dict(),
    "deepcopy": lambda one: copy.deepcopy(one)(torch.randn(3, 24)),
    "another place": lambda one: one.share_memory()(torch.randn(3, 24)),
}
uses = pytest.mark.parametrize("use", USES.values(), ids=USES)


@uses
@pytest.mark.parametrize("pattern", [None, ts.FanIn()])
def test_a_topology_that_is_written_in_place_is_refused_when_it_is_next_used(use, pattern):
    one = layer(1, pattern)
    one(torch.randn(3, 24))
    new = another(one)
    one.indptr.copy_(new.indptr)
    one.indices.copy_(new.indices)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=WRITTEN):
            use(one)


@uses
def test_nonsense_that_is_written_in_place_is_refused(use):
    one = layer(1)
    one.indices.fill_(1000)
    with pytest.raises(RuntimeError, match=WRITTEN):
        use(one)


def test_an_exchanged_buffer_is_refused():
    one = layer(1, ts.FanIn())
    one.indices = another(one).indices
    with pytest.raises(RuntimeError, match=WRITTEN):
        one(torch.randn(3, 24))


def test_the_same_content_in_any_memory_passes_and_keeps_what_was_derived():
    one, x = layer(1), torch.randn(3, 24)
    expected, topology = one(x), one.topology
    one.indptr.copy_(one.indptr.clone())  # a broadcast among equals
    one.indices.copy_(one.indices.clone())
    assert torch.equal(one(x), expected)
    one.indices = one.indices.clone()
    assert torch.equal(one(x), expected)
    assert one.topology is not topology
    for other in (copy.deepcopy(one), one.double().float(), one.share_memory()):
        assert torch.equal(other(x), expected)


def trained(average_buffers, rewires):
    """A model under RigL, or with a static topology, and torch's average of it; and the average of the dense weights by hand."""
    torch.manual_seed(0)
    model = ts.sparsify(nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 5)), 0.8, pattern="fan-in")
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    rewirer = ts.Rewirer(model, optimizer, ts.RigL() if rewires else ts.Static(), every=2)
    average = AveragedModel(model, use_buffers=average_buffers)
    dense = torch.zeros(24, 20)
    for step in range(6):
        model(torch.randn(16, 20)).pow(2).sum().backward()
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        dense += (model[0].to_dense().detach() - dense) / (step + 1)
    return average, dense


def test_averages_over_rewirings_are_refused():
    average, _ = trained(False, rewires=True)
    with pytest.raises(RuntimeError, match=WRITTEN):
        average(torch.randn(3, 20))
    with pytest.raises(RuntimeError, match=WRITTEN):
        average.state_dict()


def test_averages_of_one_topology_are_exact():
    average, dense = trained(False, rewires=False)
    torch.testing.assert_close(average.module[0].to_dense().detach(), dense)
    average(torch.randn(3, 20))


PATTERNS = [None, ts.FanIn(), ts.NM(2, 4)]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.25, 0.75), (0.125, 0.875)])
@pytest.mark.parametrize("assign", [False, True])
def test_states_of_one_topology_average_exactly(pattern, weights, assign):
    one = layer(1, pattern)
    two = copy.deepcopy(one)
    two.reset_parameters()
    target = layer(3, pattern)
    target.load_state_dict(average_of([one.state_dict(), two.state_dict()], weights), assign=assign)
    torch.testing.assert_close(target.to_dense(), weights[0] * one.to_dense() + weights[1] * two.to_dense())
    assert target.topology.equal(one.topology)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("strict", [True, False])
def test_states_of_other_topologies_are_refused_and_nothing_changes(seed, strict):
    one, two, target = layer(1, ts.FanIn()), layer(100 + seed, ts.FanIn()), layer(3, ts.FanIn())
    before, topology = target.values.detach().clone(), target.topology
    mixed = average_of([one.state_dict(), two.state_dict()], (0.5, 0.5))
    refusal = r"(the topology is not the one|columns must ascend)"
    with pytest.raises(RuntimeError, match=rf"SparseLinear: {refusal}"):
        target.load_state_dict(mixed, strict=strict)
    assert target.topology is topology
    assert torch.equal(target.values, before)


@pytest.mark.parametrize(("rows", "columns"), [(16, 9), (4, 27), (8, 64)])
def test_fingerprints_of_topologies_that_hardly_differ_do_not_average(rows, columns):
    """One or two connections have moved by a few columns, as in a rewiring of a small convolution."""
    draw = random.Random(0)
    for _ in range(300):
        fan_in, moved = columns // 4, draw.choice([1, 2])
        before = [sorted(draw.sample(range(columns), fan_in)) for _ in range(rows)]
        after = [list(row) for row in before]
        for row in draw.sample(after, moved):
            row[draw.randrange(fan_in)] = draw.choice([column for column in range(columns) if column not in row])
            row.sort()
        one, two = (torch.tensor(entries, dtype=torch.int32).flatten() for entries in (before, after))
        mean, indptr = (one + two) // 2, torch.arange(0, rows * fan_in + 1, fan_in, dtype=torch.int32)
        if not torch.equal(mean, one):  # else it is not an average that came out
            of_both = int(fingerprint(indptr, one)) + int(fingerprint(indptr, two))
            assert abs(2 * int(fingerprint(indptr, mean)) - of_both) > 1


def test_a_legal_average_of_two_topologies_is_refused_for_what_it_is():
    rows = [torch.tensor([[1, 0, 0, 1, 0, 0]] * 3), torch.tensor([[0, 0, 1, 0, 0, 1]] * 3)]
    ones = [ts.SparseLinear.from_dense(nn.Linear(6, 3), ts.Topology.from_mask(mask)) for mask in rows]
    mixed = average_of([one.state_dict() for one in ones], (0.5, 0.5))
    assert mixed["indices"].tolist() == [1, 4] * 3, "legal"
    with pytest.raises(RuntimeError, match=rf"inner: {AVERAGED}"):
        nn.ModuleDict({"inner": ones[0]}).load_state_dict({f"inner.{name}": entry for name, entry in mixed.items()})
    swapped = {**ones[0].state_dict(), "indices": ones[1].state_dict()["indices"]}
    with pytest.raises(RuntimeError, match=AVERAGED):
        ones[0].load_state_dict(swapped)


def test_states_from_before_there_were_fingerprints_load():
    state = layer(1).state_dict()
    del state["fingerprint"]
    for assign in (False, True):
        target = layer(2)
        assert target.load_state_dict(copy.deepcopy(state), assign=assign) == ([], [])
        assert torch.equal(target.to_dense(), layer(1).to_dense())
        assert int(target.fingerprint) == int(layer(1).fingerprint)


def crc(*buffers):
    """The first fingerprint: written here a second time, for files have it."""
    return zlib.crc32(b"".join(buffer.numpy().tobytes() for buffer in buffers)) % FINGERPRINTS


def test_states_and_pickles_with_the_first_fingerprint_load():
    one, target = layer(1), layer(2)
    state = one.state_dict()
    assert crc(one.indptr, one.indices) != int(one.fingerprint)
    state["fingerprint"] = torch.tensor(crc(one.indptr, one.indices), dtype=torch.int32)
    for assign in (False, True):
        target.load_state_dict(copy.deepcopy(state), assign=assign)
        assert torch.equal(target.to_dense(), one.to_dense())
        assert torch.equal(target.fingerprint, one.fingerprint)
    with pytest.raises(RuntimeError, match=AVERAGED):
        target.load_state_dict({**state, "indptr": another(one).indptr, "indices": another(one).indices})

    x, expected = torch.randn(3, 24), one(torch.zeros(3, 24))
    one._installed, one.fingerprint = crc(one.indptr, one.indices), state["fingerprint"]  # as a pickle of those days is read
    read = pickle.loads(pickle.dumps(one))
    assert torch.equal(read(torch.zeros(3, 24)), expected)
    target.load_state_dict(read.state_dict())
    assert torch.equal(target(x), read(x))
    read.indices.copy_(another(one).indices)
    with pytest.raises(RuntimeError, match=WRITTEN):
        read(x)


def test_fingerprints_are_exact_in_float32_and_differ():
    codes = [int(layer(1).fingerprint)]
    one = layer(1)
    for seed in range(1000, 1200):
        ts.rewire(one, None, another(one, seed))
        codes.append(int(one.fingerprint))
        assert codes[-1] == fingerprint(one.indptr, one.indices)
    assert len(set(codes)) == len(codes)
    assert 0 <= min(codes) <= max(codes) < FINGERPRINTS == 2**24
    assert float(torch.tensor(FINGERPRINTS - 1, dtype=torch.float32)) == FINGERPRINTS - 1


def test_a_fingerprint_sees_where_rows_end():
    arrays = [(torch.tensor([0, 1, 2], dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32))]
    arrays.append((torch.tensor([0, 2, 2], dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32)))
    assert fingerprint(*arrays[0]) != fingerprint(*arrays[1])


@pytest.mark.parametrize("make", [lambda: layer(1), lambda: ts.SparseConv2d(2, 4, 3, sparsity=0.5)])
def test_a_layer_that_was_on_meta_computes_after_it_is_loaded(make):
    source = make()
    x = torch.randn(3, 24) if isinstance(source, ts.SparseLinear) else torch.randn(3, 2, 5, 5)
    state, expected = copy.deepcopy(source.state_dict()), source(x)
    for empty, assign in ((True, False), (True, True), (False, True)):
        one = make().to("meta")
        if empty:
            one.to_empty(device="cpu")
            with pytest.raises(ValueError, match="holds no topology since it was on the meta device: call load_state_dict"):
                one(x)
        one.load_state_dict(state, assign=assign)
        assert torch.equal(one(x), expected)
        one(x).sum().backward()
        assert one.values.grad.shape == one.values.shape


def test_states_on_meta_are_refused():
    with pytest.raises(RuntimeError, match="SparseLinear: the state is on the meta device, which holds no numbers"):
        layer(1).load_state_dict(layer(1).to("meta").state_dict(), assign=True)


def test_a_file_of_ts_save_has_no_fingerprint_and_loads(tmp_path):
    one = layer(1)
    ts.save(one, tmp_path / "one.safetensors")
    saved = ts.load(tmp_path / "one.safetensors")
    assert "fingerprint" not in {*saved.tensors, *saved.state_dict()}
    target = layer(2)
    ts.load(tmp_path / "one.safetensors", target)
    assert torch.equal(target.to_dense(), one.to_dense())
    assert int(target.fingerprint) == int(one.fingerprint)
