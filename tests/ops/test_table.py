"""Which kernel runs is chosen in the open."""

import pytest
import torch

from truesparse import SparseLinear, Topology, ops
from truesparse.ops import table
from truesparse.topology.geometry import Convolution, Matrix


@pytest.fixture
def read_anew():
    """The environment is read once; let this test, and those after it, be the first to need it."""
    table.family_of_process.cache_clear()
    yield table.family_of_process.cache_clear
    table.family_of_process.cache_clear()


def test_a_family_is_chosen_for_a_while(monkeypatch):
    monkeypatch.delenv("TRUESPARSE_KERNELS", raising=False)
    layer = SparseLinear(8, 4)
    assert ops.family() == "native"
    assert layer.kernel.startswith("cpu.matrix[")
    with ops.use("reference"):
        assert ops.family() == "reference"
        assert layer.kernel == "reference"
        with ops.use("native"):
            assert layer.kernel.startswith("cpu.matrix[")
        assert layer.kernel == "reference"
    assert ops.family() == "native"
    with pytest.raises(RuntimeError, match="out"), ops.use("reference"):
        raise RuntimeError("out")
    assert ops.family() == "native"


def test_a_family_is_chosen_for_a_process(monkeypatch, read_anew):
    monkeypatch.setenv("TRUESPARSE_KERNELS", "reference")
    assert SparseLinear(8, 4).kernel == "reference"
    with ops.use("native"):
        assert ops.family() == "native"
    monkeypatch.setenv("TRUESPARSE_KERNELS", "fastest")
    assert ops.family() == "reference", "it is read once"
    read_anew()
    with pytest.raises(ValueError, match="unknown family of kernels 'fastest'; known: native, triton, reference"):
        ops.family()


def test_each_device_has_its_family(monkeypatch, read_anew):
    monkeypatch.delenv("TRUESPARSE_KERNELS", raising=False)
    assert (ops.family("cpu"), ops.family("cuda"), ops.family("meta")) == ("native", "triton", "native")
    with ops.use("reference"):
        assert ops.family("cuda") == "reference"
    monkeypatch.setenv("TRUESPARSE_KERNELS", "native")
    read_anew()
    assert ops.family("cuda") == "native"


def test_an_unknown_family():
    with pytest.raises(ValueError, match="unknown family of kernels 'dense'; known: native, triton, reference"), ops.use("dense"):
        pass


@pytest.mark.parametrize(("geometry", "word"), [(Matrix(2, 3), "matrix"), (Convolution(3, 2, (1, 1)), "convolution")])
def test_a_missing_kernel_is_an_error_and_never_another_kernel(geometry, word, monkeypatch):
    monkeypatch.delenv("TRUESPARSE_KERNELS", raising=False)
    topology = Topology.from_mask(torch.eye(2, 3))
    says = rf"no native kernel for a {word} on cpu in float16; there are: native on cpu.*reference on any device.*ops\.use\('reference'\)"
    with pytest.raises(NotImplementedError, match=says):
        ops.verbs_for(topology, geometry, torch.float16)
    with pytest.raises(NotImplementedError, match="on meta in float32"):
        ops.verbs_for(topology.to("meta"), geometry, torch.float32)
    with ops.use("reference"), pytest.raises(NotImplementedError, match=r"no reference kernel for a .* in int64"):
        ops.verbs_for(topology, geometry, torch.int64)


def test_verbs_are_made_once_for_each_topology(family):
    topology, other = (Topology.from_mask(torch.ones(2, 3)) for _ in range(2))
    verbs = ops.verbs_for(topology, Matrix(2, 3), torch.float32)
    assert ops.verbs_for(topology, Matrix(2, 3), torch.float32) is verbs
    assert ops.verbs_for(other, Matrix(2, 3), torch.float32) is not verbs
    assert ops.verbs_for(topology, Convolution(3, 2, (1, 1)), torch.float32) is not verbs


def test_the_list_names_every_kernel():
    described = table.describe()
    assert len(described) == len(table.KERNELS)
    assert ("reference", "matrix", "any device", "any floating dtype") in described
    assert ("native", "convolution", "cpu", "float32/float64/bfloat16") in described


@pytest.mark.parametrize(
    "geometry", [Matrix(4, 6), Convolution(3, 4, (1, 2), stride=(2, 1), padding=(1, 0))], ids=["matrix", "convolution"]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_full_topology_runs_dense_in_any_dtype(geometry, dtype):
    topology = Topology.from_mask(torch.ones(geometry.shape))
    assert ops.verbs_for(topology, geometry, dtype).name == "dense"
    x = torch.randn((5, 6) if isinstance(geometry, Matrix) else (5, 3, 4, 4)).to(dtype).requires_grad_()
    values, bias = (torch.randn(n).to(dtype).requires_grad_() for n in (topology.nnz, 4))
    found = ops.product(values, x, bias, ops.verbs_for(topology, geometry, dtype))
    expected = geometry.dense(x, values.view(geometry.weight_shape), bias)
    dy = torch.randn_like(found)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(*(torch.autograd.grad(y, (values, x, bias), dy) for y in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)
    if dtype == torch.float64:
        verbs = ops.verbs_for(topology, geometry, dtype)
        assert torch.autograd.gradgradcheck(lambda v, x: ops.product(v, x, None, verbs), (values, x))
