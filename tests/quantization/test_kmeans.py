"""k-means on a line is Lloyd's algorithm, step by step, and never better than the best there is."""

from itertools import combinations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from truesparse.quantization import kmeans

NUMBERS = st.lists(st.integers(-50, 50).map(lambda number: number / 8), min_size=1, max_size=40)


def lloyd(values, count):
    """By the book: nearest centroid (the lower of two as near), mean, until nothing moves; empty clusters go."""
    values = np.asarray(values, dtype=np.float64)
    centroids = np.linspace(values.min(), values.max(), count)
    while True:
        nearest = np.abs(values[:, None] - centroids[None, :]).argmin(1)
        used = np.unique(nearest)
        moved = np.array([values[nearest == one].mean() for one in used])
        if moved.shape == centroids.shape and np.array_equal(moved, centroids):
            return centroids, np.searchsorted(used, nearest)
        centroids = moved


def squared_error(values, codebook, codes):
    return float(((np.asarray(values) - np.asarray(codebook)[np.asarray(codes)]) ** 2).sum())


def best_error(values, count):
    """Of all ways to cut the sorted values into intervals."""
    ascending = np.sort(np.asarray(values, dtype=np.float64))
    inner = range(1, len(ascending))
    cuts = (chosen for pieces in range(count) for chosen in combinations(inner, min(pieces, len(inner))))
    return min(sum(float(((part - part.mean()) ** 2).sum()) for part in np.split(ascending, list(cut))) for cut in cuts)


@given(values=NUMBERS, count=st.integers(1, 9))
def test_it_is_lloyds_algorithm(values, count):
    codebook, codes = kmeans(torch.tensor(values), count)
    expected, _ = lloyd(values, count)
    assert codebook.dtype == torch.float64
    assert len(codebook) <= count
    assert squared_error(values, codebook, codes) == pytest.approx(squared_error(values, *lloyd(values, count)), abs=1e-9)
    assert codebook.tolist() == pytest.approx(expected.tolist(), abs=1e-12)


@given(values=NUMBERS, count=st.integers(1, 9))
def test_each_entry_is_the_mean_of_its_values_and_each_value_has_the_nearest_entry(values, count):
    codebook, codes = kmeans(torch.tensor(values), count)
    array = np.array(values)
    assert set(codes.tolist()) == set(range(len(codebook))), "no entry is there for nothing"
    for entry in range(len(codebook)):
        assert float(codebook[entry]) == pytest.approx(array[codes.numpy() == entry].mean(), abs=1e-12)
    distances = np.abs(array[:, None] - codebook.numpy()[None, :])
    assert np.allclose(distances.min(1), distances[np.arange(len(values)), codes.numpy()], atol=1e-12)


@given(values=st.lists(st.integers(-20, 20), min_size=1, max_size=9), count=st.integers(1, 3))
def test_no_better_than_the_best(values, count):
    codebook, codes = kmeans(torch.tensor(values, dtype=torch.float32), count)
    assert squared_error(values, codebook, codes) >= best_error(values, count) - 1e-9


def test_separate_groups_are_found():
    values = torch.tensor([5.0, -1.0, 1.0, 5.25, -1.25, 0.75])
    codebook, codes = kmeans(values, 3)
    assert codebook.tolist() == [-1.125, 0.875, 5.125]
    assert codes.tolist() == [2, 0, 1, 2, 0, 1]


def test_as_many_entries_as_values_lose_nothing():
    values = torch.randn(200, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    codebook, codes = kmeans(values, 4096)
    assert torch.equal(codebook[codes].float(), values)


def test_one_value_many_times():
    codebook, codes = kmeans(torch.full((7,), 2.5), 16)
    assert codebook.tolist() == [2.5]
    assert codes.tolist() == [0] * 7


def test_a_value_between_two_is_the_lower_ones():
    codebook, codes = kmeans(torch.tensor([2.0, 1.0, 0.0]), 2)
    assert codebook.tolist() == [0.5, 2.0]
    assert codes.tolist() == [1, 0, 0]
