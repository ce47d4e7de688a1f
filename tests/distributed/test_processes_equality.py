"""Two processes are one process with the doubled batch: topologies exactly, losses and values but for rounding."""

import pytest
import torch
from pairs import answers
from trained import Case, cases, compared, made, trained

from truesparse import GMP, SNFS, RigL
from truesparse.algorithms import ALGORITHMS

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")

CASES = [
    *cases(["momentum"]),
    *(Case(made(kind), optimizer="AdamW") for kind in ALGORITHMS.values()),
    *(Case(kind(), passes=2, wrapped=(("gradient_as_bucket_view", True),)) for kind in (RigL, GMP, SNFS)),
    *(Case(kind(), wrapped=(("bucket_cap_mb", 1e-4),)) for kind in (RigL, GMP, SNFS)),
]


@pytest.fixture(scope="module")
def processes():
    one, other = answers(lambda rank: [trained(case, [rank], wrap=True) for case in CASES])
    assert isinstance(one, list), one
    assert isinstance(other, list), other
    return dict(zip(map(str, CASES), zip(one, other, strict=True), strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_processes_are_one_with_the_doubled_batch(processes, case):
    alone = trained(case, [0, 1], wrap=False)
    found = compared(alone, processes[str(case)])
    assert found["processes differ"] == 0
    assert found["topologies"] == 0
    assert found["losses"] < 1e-12
    assert found["values"] < 1e-12
    assert found["rewired"] or type(case.algorithm).__name__ in ("Static", "DeepR"), "nothing was rewired"


def test_three_processes():
    chosen = [Case(kind()) for kind in (RigL, GMP)]
    each = answers(lambda rank: [trained(case, [rank], wrap=True) for case in chosen], processes=3)
    for case, *three in zip(chosen, *each, strict=True):
        found = compared(trained(case, [0, 1, 2], wrap=False), three)
        assert found["processes differ"] == found["topologies"] == 0
        assert found["values"] < 1e-12
