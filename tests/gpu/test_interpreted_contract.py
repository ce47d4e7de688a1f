"""Layers and algorithms keep their contracts on the Triton kernels, in Triton's interpreter; and each is forced as other families are."""

import os

import pytest
import torch
from torch import nn

import truesparse as ts
from truesparse import SET, Rewirer, RigL, SparseLinear, SRigL, ops, sparsify
from truesparse.algorithms import ALGORITHMS
from truesparse.cli import doctor_check
from truesparse.cli.doctor_check import checks
from truesparse.ops.table import KERNELS
from truesparse.testing import check_against_masked, check_checkpoint, convolution_model, linear_model

pytest.importorskip("triton", reason="the extra gpu is not installed")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("make test runs these in a process of its own, with TRITON_INTERPRET=1", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:layer .* is nearly pruned away")


@pytest.fixture(autouse=True)
def _family():
    with ops.use("triton"):
        yield


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_trains_as_the_masked_twin_does(name):
    check_against_masked(ALGORITHMS[name](), linear_model, "Adam", steps=7, every=3)


@pytest.mark.parametrize(("algorithm", "optimizer"), [(RigL(), "momentum"), (SRigL(), "AdamW"), (SET(), "SGD")], ids=str)
def test_convolutions_train_as_the_masked_twin_does(algorithm, optimizer):
    check_against_masked(algorithm, convolution_model, optimizer, steps=5, every=2)


@pytest.mark.parametrize("algorithm", [RigL(), SRigL(0.5, 0.9)], ids=str)
def test_rows_that_share_columns_train_as_the_masked_twin_does(algorithm):
    """In float32, in which their kernels are."""
    runs = [trained_in_groups(algorithm, masked) for masked in (False, True)]
    (losses, topologies), (masked_losses, masked_topologies) = runs
    assert losses == pytest.approx(masked_losses, rel=1e-4)
    for ours, theirs in zip(topologies, masked_topologies, strict=True):
        assert ours.equal(theirs)
    assert losses[-1] < losses[0]


def trained_in_groups(algorithm, masked):
    """(losses, topologies of the hidden layers at the end) of a convolution and a linear layer of groups of 16 rows."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 9, 32), nn.ReLU(), nn.Linear(32, 3))
    sparsify(model, 0.7, pattern="shared-fan-in:16", exclude=["5"], masked=masked, generator=torch.Generator().manual_seed(1))
    if not masked:
        assert model[0].kernel == "triton.convolution[shared, interpreted]"
        assert model[3].kernel == "triton.matrix[shared, interpreted]"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rewirer = Rewirer(model, optimizer, algorithm, every=2, until=6, generator=torch.Generator().manual_seed(2))
    x, y = torch.randn(12, 2, 3, 3), torch.arange(12) % 3
    losses = []
    for _ in range(6):
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert rewirer.rewirings == 2
    return losses, [model[0].topology, model[3].topology]


def test_a_checkpoint_trains_on_bit_for_bit():
    check_checkpoint(RigL())


def test_every_kernel_is_right_by_the_doctor(monkeypatch):
    monkeypatch.setattr(doctor_check, "KERNELS", [kernel for kernel in KERNELS if kernel.family == "triton"])
    monkeypatch.setattr(doctor_check, "BATCHES", (1, 5))
    monkeypatch.setattr(doctor_check._core, "supported_isas", list)  # the kernels of the CPU are not asked here
    found = [one for one in checks() if one.kernel.startswith("triton.")]
    assert not [one for one in found if one.wrong]
    assert {one.kernel.split("[")[1].split(",")[0] for one in found} == {"rows", "bitmap", "shared", "blocks"}


@pytest.fixture
def read_anew():
    """The environment is read once; let this test, and those after it, be the first to need it."""
    ops.table.family_of_process.cache_clear()
    yield ops.table.family_of_process.cache_clear
    ops.table.family_of_process.cache_clear()


def test_a_family_is_forced(monkeypatch, read_anew):
    layer = SparseLinear(8, 4)
    assert layer.kernel == "triton.matrix[rows, interpreted]"
    with ops.use("native"):
        assert layer.kernel.startswith("cpu.matrix[")
    monkeypatch.setattr(ops.table, "_family", type(ops.table._family)("family", default=None))
    assert layer.kernel.startswith("cpu.matrix["), "on the CPU nobody gets the interpreter without asking"
    monkeypatch.setenv("TRUESPARSE_KERNELS", "triton")
    read_anew()
    assert layer.kernel == "triton.matrix[rows, interpreted]"
    assert ops.family() == "triton"


KINDS = {
    "linear": (lambda: nn.Linear(6, 5), (3, 6)),
    "linear of sequences": (lambda: nn.Linear(6, 5), (2, 3, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1, stride=2), (2, 4, 7)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (2, 4, 4, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (2, 1, 2)), (2, 2, 3, 3, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 3, 3, stride=2, output_padding=1), (2, 4, 3, 3)),
}


@pytest.mark.parametrize(("make", "shape"), KINDS.values(), ids=KINDS)
def test_layers_are_what_their_dense_twins_are(make, shape):
    dense = make().double()
    sparse = sparsify(nn.Sequential(dense), 0.5, "uniform", sparsities={"*": 0.5})[0]
    twin = ts.densify(nn.Sequential(sparse))[0]
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    found, expected = sparse(x), twin(x)
    torch.testing.assert_close(found, expected)
    dy = torch.randn_like(found)
    ours = torch.autograd.grad(found, (sparse.values, sparse.bias, x), dy)
    theirs = torch.autograd.grad(expected, (twin.weight, twin.bias, x), dy)
    torch.testing.assert_close(ours[0], theirs[0].flatten()[sparse.topology.keys])
    torch.testing.assert_close(ours[1:], theirs[1:])


def test_gradients_of_gradients():
    layer = SparseLinear(5, 4, sparsity=0.5, dtype=torch.float64)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, values: ops.product(values, x, None, layer.verbs()), (x, layer.values))


def test_float16_layers_train():
    """Values beside float16 samples are held and summed in float32; tiles of a bitmap are used from 3 % of the connections on."""
    model = sparsify(nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 3)), 0.7).half()
    assert model[0].kernel == "triton.matrix[bitmap, interpreted]"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rewirer = Rewirer(model, optimizer, RigL(), every=3, until=9)
    x, y = torch.randn(32, 16).half(), torch.randint(3, (32,))
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(x).float(), y)
        loss.backward()
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert rewirer.rewirings == 2
    assert losses[-1] < losses[0]


LINEAR, CONVOLUTION = (lambda: nn.Linear(48, 40), (6, 48)), (lambda: nn.Conv2d(4, 6, 3, padding=1), (2, 4, 5, 5))


@pytest.mark.parametrize(("make", "shape"), [LINEAR, CONVOLUTION], ids=["linear", "convolution"])
def test_float16_under_autocast_is_what_kernels_of_float16_compute(make, shape, monkeypatch):
    """As torch has it for dense layers: samples and outputs in float16, sums, values and their gradients in float32."""
    layer = sparsify(nn.Sequential(make()), 0.7, "uniform", sparsities={"*": 0.7})[0]
    twin = ts.densify(nn.Sequential(layer))[0]
    x = torch.randn(shape)
    asked, verbs_for = [], ops.verbs_for
    monkeypatch.setattr(ops, "verbs_for", lambda topology, geometry, dtype: asked.append(dtype) or verbs_for(topology, geometry, dtype))
    results = []
    for one, weight in ((layer, layer.values), (twin, twin.weight)):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.float16):
            y = one(leaf)
            loss = (y.float() ** 2).sum()
        assert y.dtype == torch.float16
        dweight, dbias, dx = torch.autograd.grad(loss, (weight, one.bias, leaf))
        assert dweight.dtype == dbias.dtype == dx.dtype == torch.float32
        results.append((y, dweight if one is layer else dweight.flatten()[layer.topology.keys], dbias, dx))
    assert torch.float16 in asked
    assert torch.float32 not in asked
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=4e-3, atol=2e-2)
    with ops.use("native"), torch.autocast("cpu", torch.float16):
        assert layer(x).dtype == torch.float16
    assert asked[-1] == torch.float32, "the CPU has no such kernels: samples are widened"


def test_float64_is_left_alone_by_autocast():
    layer = SparseLinear(9, 5, sparsity=0.5, dtype=torch.float64)
    with torch.autocast("cpu", torch.float16):
        assert layer(torch.randn(3, 9, dtype=torch.float64)).dtype == torch.float64
