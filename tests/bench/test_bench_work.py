"""The roofline's counts against sums done by hand."""

import pytest
import torch

from truesparse import _core
from truesparse.bench.work import Work, backward_work, forward_work, measure_peaks, shares
from truesparse.topology.geometry import Convolution, Matrix


def test_a_matrix():
    # 10 connections, 7 samples of 5 columns and 3 rows.
    assert forward_work(Matrix(3, 5), 10, (7, 5), 4) == Work(70, 4 * (35 + 21) + 10 * 8)
    assert backward_work(Matrix(3, 5), 10, (7, 5), 4) == Work(140, 4 * (21 + 35 + 35) + 10 * 12)


def test_bfloat16_halves_the_activations_only():
    assert forward_work(Matrix(3, 5), 10, (7, 5), 2).least_bytes == 2 * (35 + 21) + 10 * 8


def test_a_convolution_with_a_stride():
    # 2 samples of 3 channels, 8 x 8; 4 channels of 4 x 4 come out: 2 x 16 positions.
    geometry = Convolution(3, 4, (3, 3), stride=(2, 2), padding=(1, 1))
    assert forward_work(geometry, 20, (2, 3, 8, 8), 4) == Work(20 * 32, 4 * (2 * 3 * 64 + 4 * 32) + 20 * 8)
    assert backward_work(geometry, 20, (2, 3, 8, 8), 4).multiply_adds == 2 * 20 * 32


def test_work_adds_up():
    assert Work(1, 2) + Work(10, 20) == Work(11, 22)


def test_shares_of_peaks(peaks):
    # 1e11 multiply-adds and 1e10 bytes a second at best.
    assert shares(Work(10**9, 10**9), 0.1, peaks) == pytest.approx((0.1, 1.0))


@pytest.mark.parametrize("isa", _core.supported_isas())
def test_multiply_adds_are_counted(isa):
    _core.use_isa(isa)
    torch.ones(1).sum()
    assert _core.multiply_adds(1, 1) > 0
    assert _core.multiply_adds(10, 3) == 30 * _core.multiply_adds(1, 1)
    assert _core.multiply_adds(0, 1) == 0


def test_peaks_are_measured_on_the_threads_asked_for(monkeypatch):
    monkeypatch.setattr("truesparse.bench.work.PEAK_ROUNDS", 1000)
    monkeypatch.setattr("truesparse.bench.work.COPIED_FLOATS", 1000)
    monkeypatch.setattr("truesparse.bench.work.PEAK_TRIES", 1)
    found = measure_peaks(1)
    assert (found.threads, torch.get_num_threads()) == (1, 1)
    assert found.multiply_adds > 0
    assert found.bytes > 0
