"""CUDA graphs of packed networks, with a stand-in for `torch.cuda.CUDAGraph`.

It records operations of torch and launches of kernels, and does them again on the same memory. What it cannot show: races on a device, and
what a driver refuses to capture. That no call waits for the device, which cannot be captured, is for `test_pretended_packing.py`.
"""

import contextlib
import copy
import os
import pickle
import threading
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

import truesparse as ts
from truesparse import ops
from truesparse.common.devices import EventClock
from truesparse.inference import captured, stopwatch
from truesparse.inference.captured import CapturedCall
from truesparse.inference.layouts import gpu
from truesparse.ops.triton import forms

pytest.importorskip("triton", reason="the extra gpu is not installed")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("make test runs these in a process of its own, with TRITON_INTERPRET=1", allow_module_level=True)


class Graph:
    """Stands for torch.cuda.CUDAGraph."""

    made: ClassVar[list["Graph"]] = []
    recording: ClassVar[list["Graph"]] = []

    def __init__(self):
        self.steps, self.replays = [], 0
        Graph.made.append(self)

    def replay(self):
        self.replays += 1
        log.append("replay")
        for step in self.steps:
            step()


class Recorder(TorchDispatchMode):
    def __init__(self, graph):
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))

        def again():
            for own, fresh in zip(tree_leaves(result), tree_leaves(func(*args, **(kwargs or {}))), strict=True):
                if isinstance(own, Tensor) and own is not fresh:
                    own.copy_(fresh)

        self.graph.steps.append(again)
        return result


@contextlib.contextmanager
def recording(graph, stream):
    Graph.recording.append(graph)
    with Recorder(graph):
        yield
    Graph.recording.remove(graph)


class Stream:
    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        log.append("wait for a stream")

    def wait_event(self, event):
        log.append("wait for the last call" if event.recorded else "wait for nothing")


class Event:
    def __init__(self, enable_timing=False):
        self.recorded = False

    def record(self, stream=None):
        self.recorded = True
        log.append("done")

    def synchronize(self):
        log.append("synchronise")

    def elapsed_time(self, end):
        return 20.0  # milliseconds


log: list[str] = []


@pytest.fixture(autouse=True)
def _device(monkeypatch):
    log.clear(), Graph.made.clear()
    for name, one in {"CUDAGraph": Graph, "graph": recording, "Stream": Stream, "Event": Event, "current_stream": Stream}.items():
        monkeypatch.setattr(torch.cuda, name, one)
    for name in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(captured, "DEVICES", ("cuda", "cpu"))
    launch = forms.launch

    def launched(*arguments, **named):
        with _disable_current_modes():
            launch(*arguments, **named)
        for graph in Graph.recording:
            graph.steps.append(lambda: launch(*arguments, **named))

    monkeypatch.setattr(forms, "launch", launched)
    with ops.use("triton"):
        yield


@pytest.fixture
def sparse_form(monkeypatch):
    """Where there is one it is chosen: by rule, layers as small as these are dense."""
    right = gpu.candidates
    monkeypatch.setattr(gpu, "candidates", lambda *given: right(*given)[-1:])


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    return ts.sparsify(model, 0.5, generator=torch.Generator().manual_seed(0)).eval()


def made(*shape):
    """(a network with a graph, one without, an input)"""
    model, x = network(), torch.randn(*(shape or (3, 6)))
    return ts.pack(model, x, tune=False).capture(x), ts.pack(model, x, tune=False), x


def replays():
    return sum(graph.replays for graph in Graph.made)


def test_calls_are_replays_that_give_what_the_network_gives(sparse_form):
    fast, plain, x = made()
    assert fast.explain().rows[0].layout == "triton (rows)"
    before = replays()
    with torch.inference_mode():
        for _ in range(3):
            x = torch.randn_like(x)
            torch.testing.assert_close(fast(x), plain(x))
    assert replays() == before + 3


def test_results_are_the_callers_own():
    fast, plain, x = made()
    others = torch.randn(4, *x.shape)
    results = [fast(one) for one in others]
    for one, y in zip(others, results, strict=True):
        torch.testing.assert_close(y, plain(one))
    results[0].zero_()
    given = others[1].clone()
    torch.testing.assert_close(fast(given), results[1])
    assert torch.equal(given, others[1])
    assert not results[1].requires_grad
    assert not results[1].is_inference()


def test_inference_mode_is_the_callers_affair():
    model = network()
    fast, plain = (ts.pack(model, torch.randn(3, 6), tune=False) for _ in range(2))
    with torch.inference_mode():
        x = torch.randn(3, 6)
        fast.capture(x)
        torch.testing.assert_close(fast(x), plain(x))
    torch.testing.assert_close(fast(x), plain(x))
    assert not fast(torch.randn(3, 6)).is_inference()


def test_inputs_of_any_strides():
    fast, plain, _ = made()
    x = torch.randn(6, 3).T
    before = replays()
    torch.testing.assert_close(fast(x), plain(x.contiguous()))
    assert replays() == before + 1


def test_other_shapes_go_as_before_until_they_are_captured():
    fast, plain, x = made()
    before, other = replays(), torch.randn(2, 6)
    torch.testing.assert_close(fast(other), plain(other))
    torch.testing.assert_close(fast(x[0]), plain(x[0]))
    assert replays() == before
    assert fast.capture(other) is fast
    before = replays()
    for one in (other, x, x[0]):
        torch.testing.assert_close(fast(one), plain(one))
    assert replays() == before + 2
    assert len(Graph.made) == 2


def test_what_a_replay_could_not_show_goes_as_before(monkeypatch):
    fast, plain, x = made()
    before, seen = replays(), []
    handle = fast.graph.get_submodule("3").register_forward_hook(lambda *given: seen.append(given))
    torch.testing.assert_close(fast(x), plain(x))
    assert len(seen) == 1
    handle.remove()
    with pytest.raises(RuntimeError, match="a packed network gives no gradients"):
        fast(x.clone().requires_grad_())
    with torch.no_grad():
        fast(x.clone().requires_grad_())
    assert replays() == before + 1
    with pytest.raises(TypeError, match=r"got an input of torch\.float64"):
        fast(x.double())
    with pytest.raises(TypeError, match="on meta"):
        fast(x.to("meta"))
    with torch.autocast("cpu"), pytest.raises(TypeError, match=r"got an input of torch\.bfloat16"):
        fast(x)  # as it was before: its first layer obeys autocast, its second computes in float32
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    fast(x)
    assert replays() == before + 1


def test_a_call_waits_for_the_one_before_on_whatever_stream_it_was():
    fast, _, x = made()
    log.clear()
    fast(x)
    assert log == ["wait for the last call", "replay", "done"]


def test_threads_take_turns():
    fast, plain, x = made()
    inputs = torch.randn(4, *x.shape)
    expected, wrong = [plain(one) for one in inputs], []

    def call(place):
        for _ in range(5):
            y = fast(inputs[place])
            if not torch.allclose(y, expected[place], atol=1e-5):
                wrong.append(place)

    threads = [threading.Thread(target=call, args=(place,)) for place in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_copies_and_pickles_have_none():
    fast, plain, x = made()
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        before = replays()
        torch.testing.assert_close(other(x), plain(x))
        assert replays() == before
        other.capture(x)
    before = replays()
    fast(x)
    assert replays() == before + 1


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, one, other):
        y = self.first(one)
        return {"sum": y + self.second(other), "largest": y.argmax(-1), "same": one, "none": None}


def test_inputs_and_outputs_by_name():
    model, a, b = Several().eval(), torch.randn(2, 6), torch.randn(2, 6)
    fast = ts.pack(model, {"one": a, "other": b}, tune=False).capture({"other": b, "one": a})
    before = replays()
    for one, other in ((a, b), (b, a)):
        found, expected = fast(other=other, one=one), model(one, other)
        torch.testing.assert_close(found["sum"], expected["sum"].detach())
        assert torch.equal(found["largest"], expected["largest"])
        assert torch.equal(found["same"], one)
        assert found["same"].data_ptr() != one.data_ptr()
        assert found["none"] is None
    assert replays() == before + 2
    positional = ts.pack(model, (a, b), tune=False).capture((a, b))
    before = replays()
    torch.testing.assert_close(positional(other=a, one=b)["sum"], model(b, a)["sum"].detach())
    assert replays() == before, "a graph takes its inputs in a row"


# What is refused.


def test_a_network_on_the_cpu(monkeypatch):
    monkeypatch.setattr(captured, "DEVICES", ("cuda",))
    x = torch.randn(2, 6)
    with pytest.raises(TypeError, match=r"CUDA graphs are for networks on a GPU, and this one is on cpu: pack model\.cuda\(\)"):
        ts.pack(network(), x, tune=False).capture(x)


def test_other_arguments():
    fast, _, x = made()
    with pytest.raises(TypeError, match=r"packed for input 0, got an example of input 0, input 1; capture with those"):
        fast.capture((x, x))
    with pytest.raises(RuntimeError, match="a CUDA graph needs dense inputs on cpu without gradients, no hooks on modules, no autocast"):
        fast.capture(x.clone().requires_grad_())
    with pytest.raises(RuntimeError, match="a CUDA graph needs dense inputs on cpu"), torch.autocast("cpu"):
        fast.capture(x)


def test_a_network_that_is_no_graph():
    class Deciding(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x):
            return self.layer(x if x.sum() > 0 else -x)

    x = torch.randn(2, 6)
    with pytest.raises(RuntimeError, match="a network whose Python decides what is computed is no CUDA graph: cannot trace"):
        ts.pack(Deciding().eval(), x, tune=False).capture(x)


def test_what_writes_into_its_input():
    with pytest.raises(RuntimeError, match="the network writes into its inputs, which a CUDA graph could not show its caller"):
        CapturedCall(lambda x: x.relu_() + 1, [torch.randn(3)])


def test_what_decides_by_values():
    x = torch.randn(2, 5) + 1
    CapturedCall(lambda x: x * x.sum(), [x])
    with pytest.raises(RuntimeError, match="a replay of the CUDA graph gives something else than the network: something in it that pack"):
        CapturedCall(lambda x: x * float(x[0, 0]), [x])
    with pytest.raises(RuntimeError, match="a replay of the CUDA graph gives something else"):
        CapturedCall(lambda x: (x > 0) if float(x[0, 0]) > 1 else (x > 9), [x])


def test_places_are_captured_as_they_are():
    """Other places might be none."""
    offsets, x = torch.tensor([0, 2, 5]), torch.randn(5)
    seen = []
    call = CapturedCall(lambda x, offsets: seen.append(offsets.clone()) or x.cumsum(0)[offsets[1:] - 1], [x, offsets])
    assert all(torch.equal(one, offsets) for one in seen)
    torch.testing.assert_close(call([x, offsets - offsets + torch.tensor([0, 1, 4])]), x.cumsum(0)[torch.tensor([0, 3])])


def test_what_holds_tensors_out_of_sight():
    class Holder:
        def __init__(self, y):
            self.y = y

    with pytest.raises(RuntimeError, match="the network gives Holder, which may hold memory of the graph: let it give tensors"):
        CapturedCall(lambda x: Holder(x + 1), [torch.randn(3)])


def test_numbers_that_are_none_are_alike():
    x = torch.tensor([-1.0, 2.0, torch.inf])
    assert CapturedCall(lambda x: x.sqrt() - x, [x])([x]).isnan().tolist() == [True, False, True]


# Layouts on a GPU are timed as they run: in a graph.


def test_layouts_are_timed_by_events_around_replays(monkeypatch):
    monkeypatch.setattr(stopwatch, "STOPWATCHES", {"cpu": stopwatch.by_events})
    monkeypatch.setattr(stopwatch, "clock_of", lambda device: EventClock(torch.device("cuda")))
    calls, x = [], torch.randn(2, 3)

    def layout(given):
        calls.append(given)
        return given + 1

    seconds = stopwatch.stopwatch(layout, [x])
    assert len(calls) == stopwatch.IN_A_GRAPH * (captured.WARM_UPS + 1)
    log.clear()
    assert seconds(0) == pytest.approx(0.02 / stopwatch.IN_A_GRAPH)
    assert log == ["replay", "done", "replay", "done", "synchronise"]
