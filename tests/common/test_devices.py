"""Time and memory of a device that works through a queue, against one that is made by hand."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from truesparse.bench import timing
from truesparse.common import devices
from truesparse.common.devices import (
    EventClock,
    HostClock,
    clock_of,
    elapsed,
    forget_peak,
    held_bytes,
    keep_busy,
    peak_bytes,
    seed_generator,
    tf32_allowed,
)

CUDA = torch.device("cuda", 0)


class Queue:
    """A device on which `call(seconds)` takes that long, and asking takes no time."""

    def __init__(self):
        self.now, self.asked, self.events, self.slept = 0.0, [], 0, 0.0
        queue = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing
                queue.events += 1

            def record(self, stream):
                assert stream == f"stream of {CUDA}"
                self.at = queue.now

            def synchronize(self):
                queue.asked.append("event")

            def elapsed_time(self, last):
                return (last.at - self.at) * 1e3

        self.module = SimpleNamespace(
            Event=Event,
            current_stream=lambda device: f"stream of {device}",
            synchronize=lambda device: self.asked.append(str(device)),
            _sleep=self._sleep,
            memory_allocated=lambda device: 100,
            max_memory_allocated=lambda device: 700,
            reset_peak_memory_stats=lambda device: self.asked.append("reset"),
            init=lambda: self.asked.append("init"),
            device=lambda device: nullcontext(self.asked.append(f"within {device}")),
            manual_seed=lambda seed: self.asked.append(f"seed {seed}"),
        )

    def _sleep(self, cycles):
        self.slept += cycles / devices.CYCLES

    def call(self, seconds):
        def call():
            self.now += seconds

        return call


@pytest.fixture
def queue(monkeypatch):
    made = Queue()
    monkeypatch.setattr(devices, "module_of", lambda device: made.module if device.type == "cuda" else torch.cpu)
    return made


def test_a_mark_waits_for_nothing(queue):
    clock = clock_of(CUDA)
    assert isinstance(clock, EventClock)
    first = clock.mark()
    queue.call(3.0)()
    last = clock.mark()
    assert queue.asked == []
    assert clock.seconds(first, last) == pytest.approx(3.0)
    assert queue.asked == ["event"]
    assert isinstance(clock_of(devices.CPU), HostClock)


def test_a_call_is_waited_for_before_and_after(queue):
    assert elapsed(queue.call(1.0), CUDA) < 1
    assert queue.asked == ["cuda:0", "cuda:0"]


def test_bytes(queue):
    forget_peak(CUDA)
    assert (held_bytes(CUDA), peak_bytes(CUDA), queue.asked) == (100, 700, ["init", "reset"])
    assert held_bytes(devices.CPU) is None
    forget_peak(devices.CPU)


def test_times_on_the_device_are_of_calls_queued_beforehand(queue):
    ways = {"dense": queue.call(0.25), "sparse": queue.call(0.5)}
    found = timing.interleaved_on_device(ways, 0.0, CUDA)
    assert found == pytest.approx({"dense": 0.25, "sparse": 0.5})
    assert queue.slept > 0
    before = queue.slept
    keep_busy(CUDA, 2.0)
    assert queue.slept - before == pytest.approx(2.0)
    assert queue.asked[-1] == "within cuda:0"


def test_a_generator_is_that_of_the_device(queue):
    seed_generator(CUDA, 7)
    assert queue.asked == ["within cuda:0", "seed 7"]


def test_a_turn_of_a_gpu_is_several_calls(queue, monkeypatch):
    monkeypatch.setattr(timing, "elapsed", lambda call, device: (call(), 1e-4)[1])
    counted = []
    timing.interleaved({"one": lambda: counted.append(1)}, 0.0, 3, device=CUDA)
    assert len(counted) == 1 + 3 * 20, "a call of 0.1 ms, 20 of them in a turn of 2 ms"
    counted.clear()
    timing.interleaved({"one": lambda: counted.append(1)}, 0.0, 3)
    assert len(counted) == 3


def test_tf32_is_known_however_it_was_said():
    matmul = torch.backends.cuda.matmul
    assert (tf32_allowed(), tf32_allowed(convolved=True)) == (False, True)  # torch's own defaults
    torch.set_float32_matmul_precision("high")
    assert tf32_allowed()
    torch.set_float32_matmul_precision("highest")
    if not hasattr(matmul, "fp32_precision"):
        return  # before torch 2.9
    matmul.fp32_precision = "tf32"
    try:
        with pytest.raises(RuntimeError):
            torch.get_float32_matmul_precision()
        assert tf32_allowed()
    finally:
        matmul.fp32_precision = "none"
    assert torch.get_float32_matmul_precision() == "highest"
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    assert not tf32_allowed(convolved=True)
    torch.backends.cudnn.allow_tf32 = before
