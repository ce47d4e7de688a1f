"""Medians, ratios, amortised steps and break-even points, against numbers worked out by hand."""

import pytest

from truesparse.bench.timing import amortised, break_even, interleaved, times_as_fast


def test_ratios_are_those_of_the_medians():
    assert times_as_fast({"dense": 6.0, "masked": 8.0, "sparse": 1.5}) == {"masked": 0.75, "sparse": 4.0}


def test_ways_take_turns_and_the_median_counts(monkeypatch):
    clock, calls = [0.0], []
    costs = {"dense": iter([1.0, 100.0, 2.0]), "sparse": iter([5.0, 4.0, 3.0])}
    monkeypatch.setattr("truesparse.bench.timing.time.perf_counter", lambda: clock[0])

    def way(name):
        def call():
            calls.append(name)
            clock[0] += next(costs[name])

        return call

    medians = interleaved({name: way(name) for name in costs}, seconds=0.001, least_rounds=3)
    assert calls == ["dense", "sparse"] * 3
    assert medians == {"dense": 2.0, "sparse": 4.0}


def test_only_the_second_of_two_calls_counts_when_warm(monkeypatch):
    clock, costs = [0.0], iter([50.0, 1.0, 60.0, 3.0, 70.0, 2.0])

    def call():
        clock[0] += next(costs)

    monkeypatch.setattr("truesparse.bench.timing.time.perf_counter", lambda: clock[0])
    assert interleaved({"dense": call}, seconds=0.001, least_rounds=3, warm=True) == {"dense": 2.0}


def test_it_goes_on_until_the_time_is_over(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr("truesparse.bench.timing.time.perf_counter", lambda: clock[0])

    def call():
        calls.append(1)
        clock[0] += 1.0

    interleaved({"dense": call}, seconds=10.0)
    assert len(calls) == 10


def test_a_rewiring_step_is_shared_out():
    assert amortised(plain=2.0, rewiring=52.0, every=100) == pytest.approx((99 * 2.0 + 52.0) / 100)
    assert amortised(plain=2.0, rewiring=2.0, every=100) == pytest.approx(2.0)


def test_break_even_lies_where_the_ratio_is_one():
    # Twice as fast for half the density, exactly as fast as dense at density 0.4.
    points = {sparsity: 0.4 / (1 - sparsity) for sparsity in (0.2, 0.5, 0.8)}
    assert break_even(points) == pytest.approx(0.6)
    assert break_even({0.5: 1.0, 0.2: 0.5}) == pytest.approx(0.5)


def test_no_break_even_without_a_crossing():
    assert break_even({0.5: 1.1, 0.9: 3.0}) is None
    assert break_even({0.5: 0.1, 0.9: 0.3}) is None
    assert break_even({}) is None
