"""Factors of rows and columns against products they were made of, and against the sums they must keep."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from oracles import drawn, topology_of

from truesparse import Topology
from truesparse.topology.spread import row_and_column_factors


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_what_is_a_product_of_rows_and_columns_is_found_everywhere(rows, columns, data):
    numbers = st.floats(0.5, 2)
    row, column = (
        torch.tensor(data.draw(st.lists(numbers, min_size=extent, max_size=extent)), dtype=torch.float64) for extent in (rows, columns)
    )
    # A cross joins every row and column, so that what is missing follows from what is there.
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    mask[data.draw(st.integers(0, rows - 1))] = True
    mask[:, data.draw(st.integers(0, columns - 1))] = True
    topology = Topology.from_mask(mask)
    found = row_and_column_factors(topology, torch.outer(row, column)[mask])
    torch.testing.assert_close(torch.outer(*found), torch.outer(row, column), rtol=0.05, atol=0)


def test_sums_over_rows_and_columns_are_kept_and_a_full_layer_is_adafactor():
    torch.manual_seed(0)
    values = torch.rand(5, 7, dtype=torch.float64)
    row, column = row_and_column_factors(Topology.from_mask(torch.ones(5, 7)), values.flatten())
    torch.testing.assert_close(torch.outer(row, column), values.sum(1, keepdim=True) * values.sum(0) / values.sum())
    topology = topology_of("xx.x. .xxx. x.x.x xxx..")
    values = torch.rand(topology.nnz, dtype=torch.float64)
    spread = torch.outer(*row_and_column_factors(topology, values)) * topology.mask()
    torch.testing.assert_close(spread.sum(0), topology.scatter(values).sum(0))
    torch.testing.assert_close(spread.sum(1), topology.scatter(values).sum(1), rtol=1e-3, atol=0)


def test_empty_rows_and_columns_have_the_mean_of_the_others_and_zeros_stay():
    topology = Topology.from_mask(drawn("x.. ... ..x"))
    row, column = row_and_column_factors(topology, torch.tensor([4.0, 9.0]))
    assert torch.outer(row, column)[[0, 2], [0, 2]].tolist() == pytest.approx([4.0, 9.0])
    assert float(row[1]) == pytest.approx(float((row[0] + row[2]) / 2))
    assert float(column[1]) == pytest.approx(float((column[0] + column[2]) / 2))
    assert not torch.outer(*row_and_column_factors(topology, torch.zeros(2))).any()
    assert not torch.outer(*row_and_column_factors(Topology.from_mask(torch.zeros(2, 3)), torch.zeros(0))).any()
