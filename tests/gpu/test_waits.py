"""How often does the host wait for a GPU while it rewires? Counted on the pretended device; docs/guide/gpu.md has the table."""

import os
from collections import Counter

import pytest
import torch
from torch import nn

import truesparse as ts
from truesparse import Block, FanIn, Rewirer, RigL, ops, sparsify
from truesparse.ops.triton import forms
from truesparse.runs.batches import Batches
from truesparse.testing import default_pattern

pytest.importorskip("triton", reason="the extra gpu is not installed")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("make test runs these in a process of its own, with TRITON_INTERPRET=1", allow_module_level=True)

from pretended import NAME, PretendedDevice, table_of

BACKWARD = Counter({"rewiring/follower.py _accumulated": 1})  # whether .grad is what the backward pass of the layer has made
# Of a rewiring, and of each layer. What the verb `top_gradients` waits for is left out: it belongs to the kernels.
LOOKED_AT = Counter({"rewiring/recorder.py _look": 1, "rewiring/rewirer.py _has_gradients": 1})
SURVIVORS = Counter({"topology/merge.py places": 1})  # how many there are: what groups have above their due goes too
ROOM = Counter({"topology/patterns.py _begin": 1})  # whether a group has more than its due all the same
CHECKED = Counter({"topology/patterns.py _check_counts": 1})
TAKEN = Counter({"topology/select.py random_absent": 1})  # positions that have connections, for the CPU draws those that grow

WAITS = {
    "SET": (ts.SET(), None, Counter(), TAKEN + Counter({"algorithms/set.py update": 1})),
    "SET with values": (
        ts.SET(grown_std=0.1),
        None,
        Counter(),
        TAKEN + Counter({"algorithms/set.py update": 1, "rewiring/rewire.py check_move": 1}),
    ),
    "MEST": (ts.MEST(), None, Counter(), TAKEN),
    "RigL": (RigL(), None, LOOKED_AT, BACKWARD),
    "GraNet": (ts.GraNet(), None, LOOKED_AT + Counter({"topology/select.py highest_of_all": 1}), BACKWARD),
    "GMP": (ts.GMP(), None, Counter({"topology/select.py highest_of_all": 1}), Counter()),
    "SRigL": (ts.SRigL(), None, LOOKED_AT, BACKWARD + SURVIVORS + ROOM + CHECKED + SURVIVORS),
    "RigL, fan-in": (RigL(), FanIn(), LOOKED_AT, BACKWARD + SURVIVORS + ROOM + CHECKED + SURVIVORS),
    "RigL, blocks": (RigL(), Block(4), LOOKED_AT, BACKWARD + Counter({"topology/units.py _whole_blocks": 1})),
}


def waits(algorithm, pattern, layers):
    """Of a step that rewires so many layers, the backward pass with it; and of one that does not."""
    torch.manual_seed(0)
    model = nn.Sequential(*(module for _ in range(layers) for module in (nn.Linear(16, 16), nn.ReLU())))
    sparsity = getattr(algorithm, "start_sparsity", 0.7)
    options = {"pattern": pattern or default_pattern(algorithm), "sparsities": {"*": sparsity}}
    sparsify(model, sparsity, generator=torch.Generator().manual_seed(1), **options)
    with PretendedDevice() as device, ops.use("reference"):
        optimizer = torch.optim.AdamW(model.to(NAME).parameters())
        rewirer = Rewirer(model, optimizer, algorithm, every=4, until=40, generator=torch.Generator().manual_seed(2))
        found = []
        for _ in range(8):
            loss = model(torch.randn(8, 16, device=NAME)).square().mean()
            with device.waited() as counted:
                loss.backward()
                if rewirer.step():
                    optimizer.step()
            optimizer.zero_grad()
            found.append(counted)
    assert rewirer.rewirings == 2
    return found[7], found[6]


def lines(found):
    """Counted by file and function."""
    places = (wait.line.split() for wait in found if not wait.line.startswith("ops/"))
    return Counter(f"{where.split(':')[0]} {function}" for where, function in places)


@pytest.mark.parametrize("name", WAITS)
def test_a_rewiring_waits_no_more_than_the_table_says(name):
    algorithm, pattern, once, of_each = WAITS[name]
    one, two = (waits(algorithm, pattern, layers) for layers in (1, 2))
    assert lines(two[0]) - lines(one[0]) == of_each, table_of(two[0])
    assert lines(one[0]) == once + of_each, table_of(one[0])


@pytest.mark.parametrize("name", ["SET", "RigL", "SRigL"])
def test_steps_between_rewirings_wait_for_nothing(name):
    algorithm, pattern, *_ = WAITS[name]
    assert not waits(algorithm, pattern, 2)[1]


def test_a_layer_computes_without_waiting():
    """Forward and backward, once the kernels have what they hold of a topology."""
    for make, shape in ((lambda: nn.Linear(16, 16), (3, 16)), (lambda: nn.Conv2d(3, 4, 3, padding=1), (2, 3, 4, 4))):
        model = sparsify(nn.Sequential(make()), 0.7, sparsities={"*": 0.7})
        with PretendedDevice() as device:
            model.to(NAME)
            for number in range(2):
                x = torch.randn(shape, device=NAME, requires_grad=True)
                with device.waited() as found:
                    model(x).square().sum().backward()
                assert number == 0 or not found, table_of(found)


def test_a_bitmap_is_made_without_waiting():
    topology = ts.Unstructured().random((16, 300), 1000, torch.Generator().manual_seed(0))
    with PretendedDevice() as device:
        there = topology.to(NAME)
        with device.waited() as found:
            forms.Bitmap(there)
        assert not found, table_of(found)


def test_batches_wait_for_nothing():
    """Of a data set that lies on the device."""
    data = torch.utils.data.TensorDataset(torch.arange(10.0), torch.arange(10))
    with PretendedDevice() as device:
        batches = Batches(data, 4, device=torch.device(NAME))
        for order in (batches.in_order, lambda: batches.shuffled(0)):
            taken = order()
            seen = [next(taken)]
            with device.waited() as found:
                seen += taken
            assert not found, table_of(found)
            assert sorted(torch.cat([targets for _, targets in seen]).tolist()) == list(range(10))
