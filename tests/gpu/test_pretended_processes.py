"""What processes exchange lies on the device of the layers: nccl takes nothing else. Two processes that are alike, in one."""

import os

import pytest
import torch
from torch import distributed, nn

from truesparse import Rewirer, sparsify
from truesparse.algorithms import ALGORITHMS
from truesparse.distributed import Processes
from truesparse.rewiring import rewirer
from truesparse.testing import default_pattern

pytest.importorskip("triton", reason="the extra gpu is not installed")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("make test runs these in a process of its own, with TRITON_INTERPRET=1", allow_module_level=True)

from pretended import NAME, PretendedDevice

pytestmark = pytest.mark.filterwarnings("ignore:layer .* is nearly pruned away")

with PretendedDevice():
    pass  # before any backward pass in this process: torch makes its queues for the devices that there are then


@pytest.fixture
def exchanged(monkeypatch):
    """The types of devices of what is exchanged, by the name of the exchange. The other process has what this one has."""
    found = set()

    def all_reduce(array, op, group=None):
        found.add(("all_reduce", array.device.type))
        if op == distributed.ReduceOp.SUM:
            array.mul_(2)

    def all_gather(arrays, array, group=None):
        found.update(("all_gather", one.device.type) for one in (array, *arrays))
        for one in arrays:
            one.copy_(array)

    monkeypatch.setattr(distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(distributed, "all_gather", all_gather)
    two = Processes(None, 2, 0)
    monkeypatch.setattr(rewirer, "together", lambda layers, group=None: two)
    return found


@pytest.mark.parametrize("name", ALGORITHMS)
def test_everything_that_is_exchanged_lies_there(name, exchanged):
    algorithm = ALGORITHMS[name](**({"threshold": 0.1} if name == "dsr" else {}))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4))
    start = getattr(algorithm, "start_sparsity", 0.6)
    sparsify(model, start, pattern=default_pattern(algorithm), generator=torch.Generator().manual_seed(1))
    with PretendedDevice():
        model.to(NAME)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        follows = Rewirer(model, optimizer, algorithm, 2, 5)
        x = torch.randn(6, 8).to(NAME)
        for _ in range(4):
            model(x).square().mean().backward()
            if follows.step():
                optimizer.step()
            optimizer.zero_grad()
        assert follows.rewirings or not getattr(algorithm, "rewires", True)
    assert {device for _, device in exchanged} == {NAME}


def test_what_differs_is_found_there(exchanged, monkeypatch):
    with PretendedDevice():
        device = torch.device(NAME, 0)
        processes = Processes(None, 2, 0)
        assert processes.difference([1, 2], device) is None
        assert processes.of_first(21, device) == 42  # of two that are both the first
        assert processes.all(True, device)
        assert not processes.all(False, device)
        means = processes.means([torch.ones(3, device=NAME), torch.ones(2, device=NAME, dtype=torch.float64)])
        assert [one.tolist() for one in means] == [[1.0] * 3, [1.0] * 2]

        def gathered(arrays, array, group=None):
            assert {one.device.type for one in (array, *arrays)} == {NAME}
            for number, one in enumerate(arrays):
                one.copy_(array + number * torch.tensor([0, 1], device=NAME))

        monkeypatch.setattr(distributed, "all_reduce", lambda array, op, group: array.add_(torch.arange(len(array), device=NAME)))
        monkeypatch.setattr(distributed, "all_gather", gathered)
        assert processes.difference([1, 2], device) == (1, 1)
    assert {device for _, device in exchanged} == {NAME}
