"""Layouts are chosen by measuring or by rule; what was measured is remembered, and what is wrong is never chosen."""

import json
from types import SimpleNamespace

import pytest
import torch

from truesparse import Topology, Unstructured, _core
from truesparse.inference import choice
from truesparse.inference.choice import Measured, Memory, by_rule, key_of, measure
from truesparse.inference.graph.layers import Weights
from truesparse.inference.layouts import Conditions, DenseCandidate, Finish, PairShape, Windows, WindowsCandidate, candidates
from truesparse.topology.geometry import Convolution, Matrix


def weights_of(rows, columns, sparsity, seed=0):
    generator = torch.Generator().manual_seed(seed)
    topology = Unstructured().random((rows, columns), round(rows * columns * (1 - sparsity)), generator)
    return Weights(Matrix(rows, columns), topology, torch.randn(topology.nnz, generator=generator), None)


def named(found):
    return [str(one) for one in found]


def vectors_of(monkeypatch, instruction_set):
    """As if the processor were another: which windows are tried, not which kernels run."""
    monkeypatch.setattr("truesparse.inference.layouts.windows._core", SimpleNamespace(**{**vars(_core), "isa": lambda: instruction_set}))


@pytest.fixture
def long_vectors(monkeypatch):
    vectors_of(monkeypatch, "avx512")


@pytest.fixture
def short_vectors(monkeypatch):
    vectors_of(monkeypatch, "avx2")


def test_windows_go_by_the_length_of_vectors(short_vectors):
    weights = weights_of(64, 640, 0.9)
    assert named(candidates(weights, Conditions((1, 640), 1))) == ["dense", "windows:4:2", "windows:4:4", "windows:16"]
    assert named(candidates(weights_of(64, 640, 0.98), Conditions((1, 640), 1))) == ["dense", "windows:4:4", "windows:16"]


@pytest.mark.parametrize(
    ("sparsity", "kinds"),
    [(0.5, {"windows:4:2", "windows:4:4"}), (0.8, {"windows:4:4"}), (0.9, {"windows:4:4"}), (0.99, {"windows:16"})],
)
def test_the_rule_for_short_vectors(short_vectors, sparsity, kinds):
    assert str(by_rule(weights_of(768, 3072, sparsity), Conditions((1, 3072), 1))) in kinds


def test_candidates_go_by_density_and_batch(long_vectors):
    every = ["dense", "windows:5", "windows:7", "windows:8", "windows:16"]
    assert named(candidates(weights_of(64, 640, 0.9), Conditions((1, 640), 1))) == every
    assert named(candidates(weights_of(64, 640, 0.98), Conditions((1, 640), 1))) == [name for name in every if name != "windows:5"]
    assert named(candidates(weights_of(64, 640, 0.999), Conditions((1, 640), 1))) == ["dense", "windows:16"]
    assert named(candidates(weights_of(64, 640, 0.9), Conditions((65, 640), 1))) == ["dense", "pairs:1:160:1"]
    assert named(candidates(weights_of(64, 640, 0.99), Conditions((16, 640), 2)))[:2] == ["dense", "pairs:2:640:2"]
    convolution = Convolution(4, 8, (3, 3))
    topology = Unstructured().random(convolution.shape, 30, torch.Generator().manual_seed(0))
    assert named(candidates(Weights(convolution, topology, torch.ones(30), None), Conditions((1, 4, 5, 5), 1))) == ["dense", "planes"]


@pytest.mark.parametrize(
    ("sparsity", "batch", "kinds"),
    [
        (0.0, 1, {"dense"}),
        (0.0, 256, {"dense"}),
        (0.8, 1, {"windows:7", "windows:8"}),
        (0.9, 1, {"windows:5", "windows:7"}),
        (0.99, 1, {"windows:16"}),
        (0.8, 4, {"windows:5"}),
        (0.99, 8, {"pairs:2:1024:1"}),
        (0.5, 16, {"pairs:2:624:1"}),
        (0.9, 64, {"pairs:1:160:1"}),
        (0.95, 256, {"pairs:1:160:1"}),
    ],
)
def test_the_rule(long_vectors, sparsity, batch, kinds):
    weights = weights_of(768, 3072, sparsity)
    assert str(by_rule(weights, Conditions((batch, 3072), 1))) in kinds


def test_a_guess_is_positive_and_grows_with_the_batch():
    for weights in (weights_of(64, 640, 0.9), weights_of(16, 16, 1.0), weights_of(33, 7, 0.5)):
        shapes = PairShape(2, 16), WindowsCandidate(4, 2), WindowsCandidate(4, 4), *(WindowsCandidate(bits) for bits in (5, 7, 8, 16))
        for candidate in (DenseCandidate(), *shapes):
            once, often = (candidate.guess(weights, Conditions((batch, weights.inputs), 1)) for batch in (1, 64))
            assert 0 <= once <= often


def test_measuring_times_every_candidate():
    weights = weights_of(48, 160, 0.8)
    measured = measure(weights, True, Conditions((2, 160), 1))
    assert set(measured.seconds) == {str(one) for one in candidates(weights, Conditions((2, 160), 1))}
    assert all(seconds > 0 for seconds in measured.seconds.values())
    assert measured.seconds[measured.fastest] == min(measured.seconds.values())


def test_a_layout_that_computes_something_else_is_never_chosen(monkeypatch):
    right = Windows.__call__
    monkeypatch.setattr(Windows, "__call__", lambda self, x: right(self, x) + 1e-2)
    with pytest.raises(RuntimeError, match=r"the layout windows:\S+ computes something else than dense; please report this"):
        measure(weights_of(48, 160, 0.8), False, Conditions((2, 160), 1))


def test_what_was_measured_is_remembered(tmp_path):
    path = tmp_path / "deep" / "layouts.json"
    memory = Memory(path)
    assert memory.recall("a") is None
    memory.keep("a", Measured({"dense": 2.0, "tiles": 1.0}))
    assert Memory(path).recall("a").fastest == "tiles"
    for damaged in ("", "[1]", "{", '{"a": 3}', json.dumps({"a": {"dense": "x"}})):
        path.write_text(damaged)
        assert Memory(path).known == {}
    (tmp_path / "file").write_text("")
    Memory(tmp_path / "file" / "layouts.json").keep("a", Measured({"dense": 1.0}))  # cannot be written, and need not be


def test_keys_tell_measurements_apart():
    weights, machine = weights_of(48, 160, 0.8), ("processor",)
    other = Weights(weights.geometry, Topology.from_mask(~weights.topology.mask()), torch.ones(48 * 160 - weights.topology.nnz), None)
    conditions = Conditions((2, 160), 1)
    keys = [
        key_of(weights, False, conditions, machine),
        key_of(weights, True, conditions, machine),
        key_of(other, False, conditions, machine),
        key_of(weights, False, Conditions((3, 160), 1), machine),
        key_of(weights, False, Conditions((2, 160), 2), machine),
        key_of(weights, False, Conditions((2, 160), 1, "int8"), machine),
        key_of(weights, False, conditions, ("another",)),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == key_of(weights_of(48, 160, 0.8), False, conditions, machine)


def test_the_usual_place_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(choice.platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    assert Memory().path == tmp_path / "truesparse" / "layouts.json"


def test_keys_tell_topologies_of_equal_row_lengths_apart():
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[:, 0] = True
    keys = set()
    for shift in range(3):
        topology = Topology.from_mask(mask.roll(shift, 1))
        keys.add(key_of(Weights(Matrix(4, 8), topology, torch.ones(4), None), False, Conditions((2, 8), 1), ("processor",)))
    assert len(keys) == 3


def test_keys_tell_a_bias_a_geometry_and_what_follows_apart():
    weights, conditions, machine = weights_of(16, 36, 0.8), Conditions((2, 4, 9, 9), 1), ("processor",)
    image = Convolution(4, 16, (3, 3))
    geometries, biases = (weights.geometry, image), (None, torch.ones(16))
    others = [Weights(geometry, weights.topology, weights.values, bias) for geometry in geometries for bias in biases]
    assert len({key_of(one, False, conditions, machine) for one in others}) == 4
    finishes = (Finish(), Finish(6.0), Finish(pool=True))
    assert len({key_of(others[2], False, Conditions((2, 4, 9, 9), 1, finish=finish), machine) for finish in finishes}) == 3
