"""Packed layers and networks are compared with ways that compute the same, and not timed where one does not."""

import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from truesparse.bench import Conditions, InferenceCase, LinearCase, NetworkCase, WrongResult, inference, measure_inference
from truesparse.bench.csr import csr_network
from truesparse.bench.inference_cases import subject_of
from truesparse.bench.inference_tables import ABLATED, SRIGL_BATCHES, TABLES
from truesparse.bench.networks import Density
from truesparse.inference import PackedNetwork
from truesparse.inference.layouts import Windows
from truesparse.runs import ConfigError
from truesparse.topology.geometry import Matrix
from truesparse.topology.patterns import NM, FanIn, Neurons, Unstructured

QUICK = Conditions((1,), seconds=0.01)
LAYER = LinearCase(Matrix(48, 64), 0.75, Unstructured())


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr("truesparse.inference.choice.SECONDS", 0.001)
    subject_of.cache_clear()


def measured(*cases, conditions=QUICK):
    return list(measure_inference(cases, conditions, lambda name: None))


def test_a_layer(monkeypatch):
    monkeypatch.setattr("truesparse.runs.machine.cores", lambda: 2)  # slow on fewer, and right
    before = torch.get_num_threads()
    first, second = measured(InferenceCase(LAYER, 5), conditions=Conditions((1, 2), seconds=0.01))
    assert torch.get_num_threads() == before
    assert (first.kind, first.model, first.pattern, first.sparsity, first.connections) == ("layer", "64 -> 48", "Unstructured()", 0.75, 768)
    assert (first.batch, first.threads, second.threads, first.values, first.ablated) == (5, 1, 2, "float32", 0.0)
    assert first.seconds.keys() == {"dense", "csr", "csr_features_first", "packed"}
    assert first.times_as_fast == {way: first.seconds["dense"] / own for way, own in first.seconds.items() if way != "dense"}
    assert first.csr in {"F.linear", "addmm"}
    assert sum(first.layouts.values()) == 1
    assert first.dense_bytes == 4 * (48 * 64 + 48)
    assert first.dense_bytes < first.dense_file_bytes < first.dense_bytes + 1000, "a file of tensors has a head"
    assert 768 * 5 + 48 * 4 < first.file_bytes < 768 * 5 + 48 * 4 + 1000, "a value and a gap to the next column a connection"
    assert 0 < first.largest_error < 1e-5
    assert 0 < first.rms_error < 1e-5


@pytest.mark.parametrize("values", ["bfloat16", "int8"])
def test_the_error_is_that_of_the_narrow_values(values):
    (row,) = measured(InferenceCase(LAYER, 3, values, tune=False))
    subject = subject_of(LAYER)
    x = subject.example(3)
    weight = subject.sparse.to_dense().detach()
    scale = weight.abs().amax(1, keepdim=True) / 127
    held = weight.bfloat16().float() if values == "bfloat16" else (weight / scale).round() * scale
    exact, rounded = (x.double() @ own.double().t() + subject.sparse.bias.detach().double() for own in (weight, held))
    assert values in next(iter(row.layouts))
    assert row.rms_error == pytest.approx(float((rounded - exact).norm() / exact.norm()), rel=1e-2)
    assert row.largest_error == pytest.approx(float((rounded - exact).abs().max() / exact.abs().max()), rel=1e-2)


def test_ablated_neurons():
    case = LinearCase(Matrix(20, 32), 0.75, FanIn(), ablated=0.4)
    subject = subject_of(case)
    assert sorted(subject.sparse.topology.fan_in.tolist()) == [0] * 8 + [13] * 8 + [14] * 4, "160 connections of 12 neurons"
    fewer = subject.rivals(subject.example(4))["ablated"]
    assert fewer.call().shape == (4, 12)
    (row,) = measured(InferenceCase(case, 4))
    assert row.ablated == 0.4
    assert "ablated" in row.seconds


def test_whole_neurons_have_an_ablated_rival_too():
    (row,) = measured(InferenceCase(LinearCase(Matrix(20, 32), 0.8, Neurons()), 2))
    assert "ablated" in row.seconds


@pytest.mark.parametrize("case", [LAYER, LinearCase(Matrix(20, 32), 0.8, FanIn(), ablated=0.4)], ids=["all", "ablated"])
def test_every_rival_computes_the_layer(case):
    subject = subject_of(case)
    x = subject.example(7)
    expected = x @ subject.sparse.to_dense().t() + subject.sparse.bias
    with torch.no_grad():
        for name, way in {**subject.rivals(x)}.items():
            torch.testing.assert_close(way.call(), way.part(expected), msg=lambda text, name=name: f"{name}: {text}")


def test_the_fastest_of_a_kind_counts():
    calls = {"dense": int, "csr, a": lambda: time.sleep(4e-3), "csr, b": lambda: time.sleep(1e-3), "csr, c": lambda: time.sleep(2e-2)}
    fastest = calls["csr, b"]
    assert inference._keep_fastest(calls, "csr, ", seconds=0.01) == "b"
    assert calls == {"dense": int, "csr": fastest}
    assert inference._keep_fastest(calls, "other, ", seconds=0.01) == ""


def test_accuracies_are_of_the_model_and_of_what_was_packed():
    subject = replace(subject_of(LAYER), accuracy=lambda model: 0.75 if model is subject.sparse else 0.5)
    assert inference._accuracies(subject, nn.Identity()) == {"before": 0.75, "packed": 0.5}
    assert inference._accuracies(replace(subject, accuracy=lambda model: None), nn.Identity()) == {}


def test_without_rivals():
    (row,) = measured(InferenceCase(LAYER, 1, rivals=False))
    assert (row.seconds.keys(), row.csr) == ({"dense", "packed"}, "")


def test_a_network(tiny_network):
    (row,) = measured(InferenceCase(NetworkCase(tiny_network, Density(0.5)), 3))
    assert (row.kind, row.model, row.batch, row.accuracy) == ("network", "tiny, 50 %", 3, {})
    assert row.seconds.keys() == {"dense", "masked", "csr", "packed"}
    assert sum(row.layouts.values()) == 2
    subject = subject_of(NetworkCase(tiny_network, Density(0.5)))
    norms = [module for module in subject.dense.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not any(torch.equal(norm.running_mean, torch.zeros(4)) for norm in norms), "there is something to fold"


def test_csr_in_a_network():
    dense = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4, bias=False)).eval()
    csr = csr_network(dense)
    assert csr is not None
    assert [module.weight.layout for module in csr.modules() if isinstance(module, nn.Linear)] == [torch.sparse_csr] * 2
    with torch.no_grad():
        for shape in ((6,), (1, 6), (3, 6), (2, 3, 6)):
            x = torch.randn(shape)
            torch.testing.assert_close(csr(x), dense(x))
    assert csr_network(nn.Sequential(nn.Conv2d(1, 1, 1))) is None


@pytest.mark.parametrize("wrong", [lambda y: y * 1.001, lambda y: y.index_fill(0, torch.tensor([0]), float("nan"))], ids=["off", "nan"])
def test_a_wrong_packed_layer_is_not_timed(wrong, monkeypatch):
    forward = PackedNetwork.forward
    monkeypatch.setattr(PackedNetwork, "forward", lambda self, x: wrong(forward(self, x)))
    monkeypatch.setattr(inference, "interleaved", None)  # whoever times fails
    with pytest.raises(WrongResult, match=r"64 -> 48, 75\.0% sparse: the output of packed is wrong: off by .*; nothing is timed"):
        measured(InferenceCase(LAYER, 5))


def test_a_wrong_packed_network_is_not_timed(tiny_network, monkeypatch):
    forward = PackedNetwork.forward
    monkeypatch.setattr(PackedNetwork, "forward", lambda self, x: forward(self, x) * 1.001)
    with pytest.raises(WrongResult, match=r"tiny, 50 %: the output of packed is wrong: off by"):
        measured(InferenceCase(NetworkCase(tiny_network, Density(0.5)), 3))


def test_a_wrong_rival_is_not_timed(monkeypatch):
    monkeypatch.setattr("truesparse.bench.inference_cases.csr_addmm", lambda layer, x: torch.zeros(48, x.shape[1]))
    with pytest.raises(WrongResult, match=r"the output of csr, addmm is wrong"):
        measured(InferenceCase(LAYER, 5))


def test_a_wrong_layout_is_not_timed(monkeypatch):
    call = Windows.__call__
    monkeypatch.setattr(Windows, "__call__", lambda self, x: call(self, x) + 1)
    with pytest.raises(
        WrongResult, match=r"64 -> 48, 75\.0% sparse: the layout windows.* computes something else than dense.*; nothing is timed"
    ):
        measured(InferenceCase(LAYER, 1))


def test_a_network_that_cannot_be_packed(tiny_network):
    def make():
        network = nn.Sequential(nn.Flatten(), nn.Linear(50, 10))
        network.register_parameter("wide", nn.Parameter(torch.zeros(1, dtype=torch.float64)))
        return network

    network = replace(tiny_network, make=make)
    with pytest.raises(ConfigError, match=r"tiny, 50 % cannot be packed: "):
        measured(InferenceCase(NetworkCase(network, Density(0.5)), 3))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LinearCase(Matrix(8, 10), 0.5, NM(2, 4)), r"10 -> 8: NM\(n=2, m=4\) needs columns divisible by 4"),
        (lambda: LinearCase(Matrix(8, 16), 0.5, Unstructured(), 0.5), r"--ablated needs --pattern fan-in, .* got Unstructured\(\)"),
        (lambda: LinearCase(Matrix(8, 16), 0.5, FanIn(), 1.0), r"--ablated must be in \[0, 1\), got 1\.0"),
        (lambda: LinearCase(Matrix(8, 16), 0.5, FanIn(), 0.75), r"2 neurons of 16 inputs cannot hold the 64 connections of 50% sparsity"),
    ],
)
def test_what_cannot_be_is_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_the_tables_have_the_lines_they_promise():
    lines = {name: table(None) for name, table in TABLES.items()}
    assert {(case.of.sparsity, case.of.ablated, case.batch) for case in lines["srigl"]} == {
        (sparsity, ablated, batch) for sparsity, ablated in ABLATED.items() for batch in SRIGL_BATCHES
    }
    assert {case.batch for case in TABLES["srigl"]((3,))} == {3}
    assert {case.values for case in lines["values"]} == {"float32", "bfloat16", "int8"}
    assert not any(case.tune for case in lines["values"])
    assert {case.of.sparsity for case in lines["break-even"]} == {0.2, 0.3, 0.4, 0.5, 0.6, 0.7}
    assert {str(case.of.pattern) for case in lines["one-sample"]} >= {"Unstructured()", "FanIn()", "NM(n=3, m=32)"}
