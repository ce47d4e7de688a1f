"""The pretended device is as strict as CUDA: what is on two devices is refused, and what the host waits for is counted."""

import copy
import io
import os

import pytest
import torch
from torch import nn

from truesparse import RigL, SparseLinear, rewire, sparsify

pytest.importorskip("triton", reason="the extra gpu is not installed")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("make test runs these in a process of its own, with TRITON_INTERPRET=1", allow_module_level=True)

from pretended import NAME, OnDevice, PretendedDevice, Wait


@pytest.fixture
def device():
    with PretendedDevice() as made:
        yield made


def kinds(device):
    found = [wait.operation for wait in device.waits]
    device.waits.clear()
    return found


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x: x + torch.ones(4),
        lambda x: torch.ones(3, 4) * x[0, 0],
        lambda x: torch.cat([x, torch.ones(1, 4)]),
        lambda x: torch.cat([x[0], torch.tensor([1.0])]),
        lambda x: nn.Linear(4, 2)(x),
        lambda x: x.index_put_((torch.tensor([0]),), torch.ones(1, 4)),
        lambda x: torch.ones(3, 4)[torch.tensor([0], device=NAME)],
        lambda x: torch.searchsorted(x[0], torch.tensor(1.0)),
        lambda x: torch.rand(3, device=NAME, generator=torch.Generator()),
        lambda x: x.normal_(generator=torch.Generator()),
        lambda x: torch.equal(x, torch.ones(3, 4)),
        lambda x: SparseLinear(4, 2)(x),
        lambda x: SparseLinear(4, 2).to(NAME)(torch.ones(3, 4)),
    ],
)
def test_two_devices_are_refused(device, mixed):
    with pytest.raises((RuntimeError, TypeError), match=r"same device|generator|indices should be|on the CPU; got|all on gpu"):
        mixed(torch.ones(3, 4, device=NAME))


def test_what_crosses_as_with_cuda(device):
    x = torch.ones(3, 4, device=NAME)
    assert (x * torch.tensor(2.0)).device == x.device
    assert x[torch.tensor([0, 2])].shape == (2, 4)
    assert x[[0, 2]].shape == (2, 4)
    x[torch.tensor([1], device=NAME)] = torch.tensor(5.0)
    assert x.tolist() == [[1.0] * 4, [5.0] * 4, [1.0] * 4]
    x[0].mul_(3)
    assert x.cpu()[0].tolist() == [3.0] * 4
    with pytest.raises(TypeError, match="convert gpu:0 device type tensor to numpy"):
        x.numpy()


@pytest.mark.parametrize(
    ("call", "waits"),
    [
        (lambda x: x + 1, []),
        (lambda x: float(x.sum()), ["_local_scalar_dense"]),
        (lambda x: bool((x > 0).any()), ["_local_scalar_dense"]),
        (lambda x: (x > 0).nonzero(), ["nonzero"]),
        (lambda x: x[x > 0], ["index of a mask"]),
        (lambda x: x.masked_select(x > 0), ["masked_select"]),
        (lambda x: x.masked_fill(x > 0, 0.0), []),
        (lambda x: torch.where(x > 0, x, 0.0), []),
        (lambda x: x.unique(), ["_unique2"]),
        (lambda x: torch.equal(x, x), ["equal"]),
        (lambda x: torch.bincount(x.long().flatten(), minlength=3), ["bincount"]),
        (lambda x: x.repeat_interleave(torch.full((3,), 2, device=NAME), 0), ["repeat_interleave"]),
        (lambda x: x.repeat_interleave(torch.full((3,), 2, device=NAME), 0, output_size=6), []),
        (lambda x: x.repeat_interleave(2, 0), []),
        (lambda x: x.cpu(), ["to the CPU"]),
        (lambda x: x.tolist(), ["to the CPU"]),
        (lambda x: torch.ones(3).to(NAME), ["to the device"]),
        (lambda x: torch.ones(3).to(NAME, non_blocking=True), []),
        (lambda x: x.copy_(torch.ones(3, 4)), ["to the device"]),
        (lambda x: x.copy_(torch.ones(3, 4), non_blocking=True), []),
        (lambda x: torch.ones(3, 4).copy_(x, non_blocking=True), ["to the CPU"]),
        (lambda x: torch.tensor([1, 2], device=NAME), ["to the device"]),
        (lambda x: x[torch.tensor([0])], ["to the device"]),
        (lambda x: x.sort().values.cumsum(0).topk(2), []),
        (lambda x: torch.arange(5, device=NAME), []),
    ],
)
def test_waits_are_counted(device, call, waits):
    x = torch.ones(3, 4, device=NAME)
    kinds(device)
    call(x)
    assert kinds(device) == waits


def test_a_wait_says_where(device):
    topology = SparseLinear(6, 5, sparsity=0.5).topology.to(NAME)
    with device.waited() as waits:
        _ = topology.empty_rows
    assert [wait.line.split(":")[0] for wait in waits] == ["topology/topology.py"]
    with device.waited() as waits:
        float(torch.ones(1, device=NAME))
    assert [wait.line.split(":")[0] for wait in waits] == ["test_pretended_device.py"]
    assert isinstance(waits[0], Wait)


def test_modules_move_and_are_copied_and_saved(device):
    model = nn.Linear(4, 3)
    weight = model.weight
    model.to(NAME)
    assert model.weight is weight
    assert weight.device.type == NAME
    twin = copy.deepcopy(model)
    with torch.no_grad():
        weight.zero_()
    assert float(twin.weight.detach().abs().sum()) > 0
    file = io.BytesIO()
    torch.save(twin.state_dict(), file)
    for location, expected in ((None, NAME), ("cpu", "cpu")):
        file.seek(0)
        assert torch.load(file, map_location=location)["weight"].device.type == expected
    assert type(twin.cpu().weight) is nn.Parameter
    weight.data = torch.ones(2, 4, device=NAME)
    assert weight.tolist() == [[1.0] * 4] * 2


def test_kernels_are_those_of_triton_and_run_on_what_is_held(device):
    model = sparsify(nn.Sequential(nn.Linear(6, 5)), 0.5)
    x = torch.randn(3, 6)
    y = model(x)
    y.sum().backward()
    expected = model[0].values.grad.clone()
    model.to(NAME)
    assert model[0].kernel == "triton.matrix[rows, interpreted]"
    model.zero_grad()
    found = model(x.to(NAME))
    found.sum().backward()
    assert isinstance(model[0].values.grad, OnDevice)
    torch.testing.assert_close(found.cpu(), y)
    torch.testing.assert_close(model[0].values.grad.cpu(), expected)
    assert rewire(model[0], None, model[0].topology).new.device.type == NAME
    assert repr(RigL())  # the context leaves nothing behind that others see


def test_nothing_stays_behind():
    with PretendedDevice():
        pass
    layer = SparseLinear(6, 5, sparsity=0.5)
    assert layer.kernel.startswith("cpu.matrix")
    assert layer(torch.ones(2, 6)).device.type == "cpu"
