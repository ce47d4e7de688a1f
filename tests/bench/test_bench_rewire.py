"""A change of topology is timed part by part, and not at all if it is wrong."""

import pytest
import torch

from truesparse import Move
from truesparse.bench import Conditions, RewireCase, measure_rewirings, rewire
from truesparse.bench.wrong import WrongResult
from truesparse.ops.cpu import MatrixKernels
from truesparse.runs import ConfigError
from truesparse.topology.geometry import Matrix
from truesparse.topology.patterns import Unstructured


@pytest.fixture(autouse=True)
def small_caches(monkeypatch):
    monkeypatch.setattr(rewire, "BYTES_OF_CACHES", 4096)


def measured(case=None, threads=(1,)):
    case = case or RewireCase(Matrix(40, 30), 0.8, batch=6)
    return list(measure_rewirings([case], Conditions(threads, seconds=0.01), lambda name: None))


def test_rows():
    before = torch.get_num_threads()
    first, second = measured(threads=(1, 2))
    assert torch.get_num_threads() == before
    assert (first.layer, first.connections, first.batch, first.threads, second.threads) == ("30 -> 40", 240, 6, 1, 2)
    assert list(first.parts) == ["drop", "grow", "follow", "move", "plans"]
    assert first.rewiring_seconds == pytest.approx(sum(first.parts.values()))
    assert first.top_gradients_over_dense == first.top_gradients_seconds / first.dense_forward_seconds


def test_a_layer_without_room_is_refused():
    with pytest.raises(ConfigError, match=r"--sparsity must leave room for 30% of the connections to grow elsewhere, got 0\.2"):
        RewireCase(Matrix(8, 8), 0.2, batch=1)


def drops_at_random(monkeypatch):
    monkeypatch.setattr(Unstructured, "drop", lambda self, topology, scores, count: topology.drop(torch.arange(count)))


def moves_the_wrong_values(monkeypatch):
    right = Move.values
    monkeypatch.setattr(Move, "values", lambda self, array: right(self, array).flip(0))


def finds_small_gradients(monkeypatch):
    right = MatrixKernels.top_gradients
    monkeypatch.setattr(
        MatrixKernels, "top_gradients", lambda self, samples, kept, k: right(self, [(dy, x.flip(1)) for dy, x in samples], kept, k)
    )


def finds_connections(monkeypatch):
    monkeypatch.setattr(MatrixKernels, "top_gradients", lambda self, samples, kept, k: kept.keys[:k])


@pytest.mark.parametrize(
    ("mutation", "says"),
    [
        (drops_at_random, "the connections dropped are not the smallest"),
        (moves_the_wrong_values, "after rewiring, connections or their values are not what they should be"),
        (finds_small_gradients, "the positions found miss a gradient of"),
        (finds_connections, "72 absent positions were wanted"),
    ],
)
def test_what_is_wrong_is_not_timed(monkeypatch, mutation, says):
    mutation(monkeypatch)
    with pytest.raises(WrongResult, match=says):
        measured()
