"""Each verb of each form of the Triton kernels against dense algebra in float64 and against the reference, in Triton's interpreter."""

import os
from contextlib import nullcontext

import pytest
import torch

from truesparse import NM, Block, FanIn, SharedFanIn, Topology, ops
from truesparse.cli import doctor_check
from truesparse.topology import patterns
from truesparse.topology.geometry import Convolution, Matrix

pytest.importorskip("triton", reason="the extra gpu is not installed")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("make test runs these in a process of its own, with TRITON_INTERPRET=1", allow_module_level=True)

from truesparse.ops.triton import forms
from truesparse.ops.triton import verbs as built

F32, F64, F16 = torch.float32, torch.float64, torch.float16
NEEDS = [(True, True, True), (True, False, False), (False, True, False), (False, False, True), (False, False, False)]
CONVOLUTIONS = {
    "padded": (Convolution(4, 6, (3, 3), padding=(1, 1)), (2, 4, 5, 4)),
    "strided groups": (Convolution(4, 6, (2, 3), stride=(2, 1), padding=(0, 2), groups=2), (3, 4, 6, 5)),
    "dilated and strided": (Convolution(2, 3, (3, 2), dilation=(2, 1), stride=(2, 3)), (2, 2, 8, 7)),
    "kernel smaller than stride": (Convolution(3, 4, (1, 2), stride=(3, 2), padding=(1, 0)), (2, 3, 5, 6)),
    "depthwise": (Convolution(4, 4, (3, 3), groups=4), (2, 4, 4, 4)),
    "pointwise": (Convolution(5, 7, (1, 1)), (2, 5, 3, 4)),
    "pixels alone": (Convolution(5, 7, (1, 1)), (3, 5, 1, 1)),
}
SHARED_CONVOLUTIONS = {
    "padded": (Convolution(4, 48, (3, 3), padding=(1, 1)), (2, 4, 5, 4)),
    "strided groups": (Convolution(4, 64, (2, 3), stride=(2, 1), padding=(0, 2), groups=2), (3, 4, 6, 5)),
    "dilated and strided": (Convolution(2, 48, (3, 2), dilation=(2, 1), stride=(2, 3)), (2, 2, 8, 7)),
    "kernel smaller than stride": (Convolution(3, 48, (1, 2), stride=(3, 2), padding=(1, 0)), (2, 3, 5, 6)),
    "pointwise": (Convolution(5, 48, (1, 1)), (2, 5, 3, 4)),
    "pixels alone": (Convolution(5, 48, (1, 1)), (3, 5, 1, 1)),
}


@pytest.fixture(autouse=True)
def _family():
    with ops.use("triton"):
        yield


def some(shape, density):
    """Random, with an empty first row and an empty last column where others are not full."""
    mask = torch.rand(shape) < density
    if 0 < density < 1:
        mask[0], mask[:, -1] = False, False
    return Topology.from_mask(mask)


def blocks(shape, size, share=0.5):
    grid = torch.rand(shape[0] // size, shape[1] // size) < share
    grid[-1] = False
    grid[0, 0] = True
    return Topology.from_mask(grid.repeat_interleave(size, 0).repeat_interleave(size, 1))


def shared(shape, size, share=0.4):
    """Groups of `size` rows with the same columns, the first of most; the last has none, if there are several, and the last column."""
    grid = torch.rand(shape[0] // size, shape[1]) < share * torch.linspace(1.2, 0.6, shape[0] // size)[:, None]
    if len(grid) > 1:
        grid[-1] = False
    grid[:, -1], grid[0, 0] = False, True
    return Topology.from_mask(grid.repeat_interleave(size, 0))


def check(verbs, topology, geometry, shape, dtype, needs=NEEDS[:1], x=None):
    """All verbs, beside dense products of the same rounded numbers in float64."""
    wide = ops.values_dtype(dtype)
    x = torch.randn(shape).to(dtype) if x is None else x
    values, bias = torch.randn(topology.nnz).to(wide), torch.randn(geometry.shape[0]).to(wide)
    weight = topology.scatter(values.double()).requires_grad_()
    exact = x.double().requires_grad_()
    expected = geometry.dense(exact, weight.view(geometry.weight_shape), bias.double())
    dy = torch.randn(expected.shape).to(dtype)
    dweight, dx = torch.autograd.grad(expected, (weight, exact), dy.double())
    dvalues, dbias = dweight.flatten()[topology.keys], dy.double().movedim(1, 0).flatten(1).sum(1)
    close(verbs.spmm(values, x, bias), expected.detach(), dtype)
    close(verbs.spmm(values, x), geometry.dense(exact, weight.view(geometry.weight_shape), None).detach(), dtype)
    close(verbs.spmm_t(values, dy, x.shape), dx, dtype)
    close(verbs.sddmm(dy, x), dvalues, wide)
    for need in needs:
        found = verbs.backward(values, x, dy, need)
        assert tuple(part is not None for part in found) == need
        for part, right, kind in zip(found, (dvalues, dx, dbias), (wide, dtype, wide), strict=True):
            if part is not None:
                close(part, right, kind)
    return values, x, dy


def close(found, expected, dtype):
    assert found.dtype == dtype
    narrow, wide = torch.finfo(dtype).eps, torch.finfo(ops.values_dtype(dtype)).eps
    narrow = narrow if dtype == F16 else 4 * narrow
    # Weights of tiles are rounded as samples are: an error of one part in 2^11 in each product.
    torch.testing.assert_close(found.double(), expected, rtol=narrow, atol=max(64 * wide, 8 * narrow if dtype == F16 else 0))


@pytest.mark.parametrize("dtype", [F32, F64, F16], ids=str)
@pytest.mark.parametrize(("shape", "batch"), [((6, 9), 4), ((11, 7), 33), ((1, 1), 1)], ids=str)
@pytest.mark.parametrize("density", [0.0, 0.3])
def test_rows_of_a_matrix(shape, batch, density, dtype):
    geometry, topology = Matrix(*shape), some(shape, density)
    check(built.rows_matrix(topology, geometry), topology, geometry, (batch, shape[1]), dtype)


@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("shape", "batch"), [((6, 9), 4), ((33, 70), 17), ((1, 1), 1), ((70, 33), 65)], ids=str)
def test_bitmap_of_a_matrix(shape, batch, density):
    geometry, topology = Matrix(*shape), some(shape, density)
    verbs = built.bitmap_matrix(topology, geometry)
    check(verbs, topology, geometry, (batch, shape[1]), F16)
    assert verbs.nbytes == shape[0] * (-(-shape[1] // 64) * 8 + -(-shape[1] // 256) * 4)


def test_a_bitmap_has_places_of_all_values_whatever_the_word():
    """Words with all bits, the first, the last: where signs and shifts would go wrong."""
    mask = torch.zeros(4, 600, dtype=torch.bool)
    for row, columns in (
        (0, slice(600)),
        (1, slice(31, 33)),
        (1, slice(63, 65)),
        (1, slice(255, 257)),
        (2, slice(0, 600, 2)),
        (3, slice(511, 600)),
    ):
        mask[row, columns] = True
    topology = Topology.from_mask(mask)
    verbs = built.bitmap_matrix(topology, Matrix(4, 600))
    values = (torch.arange(topology.nnz) % 1021 + 1).float()  # each is known where it is met, and float16 has it
    weight, some_columns = topology.scatter(values), torch.tensor([0, 31, 32, 63, 64, 65, 255, 256, 511, 512, 598, 599])
    assert torch.equal(verbs.spmm(values, torch.eye(600)[some_columns].half()), weight[:, some_columns].T.half())
    assert torch.equal(verbs.spmm_t(values, torch.eye(4).half(), torch.Size((4, 600))), weight.half())
    assert torch.equal(verbs.sddmm(torch.eye(4).half(), weight.half()), values)


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
def test_blocks_of_a_matrix(size, dtype):
    geometry = Matrix(3 * size, 2 * size)
    topology = blocks(geometry.shape, size)
    check(built.blocks_matrix(topology, geometry), topology, geometry, (5 if size > 16 else 65, geometry.columns), dtype)


def test_what_is_no_blocks_is_refused():
    geometry = Matrix(32, 32)
    for mask in (torch.rand(32, 32) < 0.5, torch.zeros(32, 32)):
        with pytest.raises(ValueError, match="expected whole blocks of 64, 32, 16"):
            built.blocks_matrix(Topology.from_mask(mask), geometry)


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
def test_rows_that_share_columns_of_a_matrix(size, dtype):
    geometry = Matrix(3 * size, 70)
    topology = shared(geometry.shape, size)
    verbs = built.shared_matrix(topology, geometry)
    assert verbs.form.size == size
    assert verbs.nbytes == 4 * 4
    check(verbs, topology, geometry, (5 if size > 16 else 65, geometry.columns), dtype)
    assert verbs.nbytes == 4 * 4 + 4 * (71 + topology.nnz // size)


def test_parts_of_a_gradient_wait_in_the_dtype_that_torch_allows(monkeypatch):
    topology, geometry = shared((64, 20), 16, 0.9), Matrix(64, 20)
    verbs = built.shared_matrix(topology, geometry)
    values, dy, held = torch.randn(topology.nnz), torch.randn(8, 64).half(), []
    exact = dy.double() @ topology.scatter(values.half().double())
    right = forms.Shared.parts
    monkeypatch.setattr(forms.Shared, "parts", lambda self, *given: (held.append(given[2].tensor.dtype), right(self, *given)))
    errors = []
    for within in (nullcontext(), doctor_check._whole_sums()):
        with within:
            errors.append(float((verbs.spmm_t(values, dy, torch.Size((8, 20))).double() - exact).norm() / exact.norm()))
    assert held == [F16, F32]
    assert errors[1] < errors[0] < 3 * errors[1]
    assert forms.parts_dtype(torch.bfloat16) == torch.bfloat16
    assert forms.parts_dtype(F32) == F32


def test_rows_share_columns_in_groups_of_any_length():
    """A group without columns, one with a single one, one with all: programs share them as if all were alike."""
    counts = torch.tensor([0, 1, 300, 17, 0, 64])
    topology = Topology.from_mask((torch.rand(6, 300).argsort(1) < counts[:, None]).repeat_interleave(16, 0))
    geometry = Matrix(96, 300)
    check(built.shared_matrix(topology, geometry), topology, geometry, (3, 300), F32)


@pytest.mark.parametrize(("geometry", "shape"), SHARED_CONVOLUTIONS.values(), ids=SHARED_CONVOLUTIONS)
@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
def test_rows_that_share_columns_of_a_convolution(geometry, shape, dtype):
    topology = shared(geometry.shape, 16)
    check(built.shared_convolution(topology, geometry), topology, geometry, shape, dtype)


@pytest.mark.parametrize("geometry", [Matrix(32, 12), Convolution(3, 32, (2, 2), padding=(1, 1))], ids=str)
def test_the_gradient_of_inputs_is_the_same_a_few_samples_at_a_time(monkeypatch, geometry):
    topology = shared(geometry.shape, 16)
    shape = (9, 12) if isinstance(geometry, Matrix) else (9, 3, 3, 3)
    verbs = getattr(built, "shared_matrix" if isinstance(geometry, Matrix) else "shared_convolution")(topology, geometry)
    values, dy = torch.randn(topology.nnz), torch.randn(verbs._output_shape(torch.Size(shape)))
    whole = verbs.spmm_t(values, dy, torch.Size(shape))
    pixels = dy[0].numel() // 32
    assert verbs.form.samples_at_once(pixels, F32) > 9
    monkeypatch.setattr(forms, "SHARED_PARTS", 4 * topology.nnz // 16 * pixels * 4)
    assert verbs.form.samples_at_once(pixels, F32) == 4 == verbs.form.samples_at_once(2 * pixels, F16)
    samples, right = [], forms.Shared.parts

    def watched(self, values, dy, parts, images):
        samples.append(images.number * images.pixels // pixels)
        right(self, values, dy, parts, images)

    monkeypatch.setattr(forms.Shared, "parts", watched)
    assert torch.equal(verbs.spmm_t(values, dy, torch.Size(shape)), whole)
    assert samples == [4, 4, 1]
    monkeypatch.setattr(forms, "SHARED_PARTS", 1)
    assert verbs.form.samples_at_once(pixels, F32) == 1


def test_most_topologies_are_seen_not_to_share_without_a_look_at_the_device(monkeypatch):
    monkeypatch.setattr(forms, "shared_rows", lambda topology: pytest.fail("the host would wait"))
    topology = some((32, 32), 0.5)
    assert not forms.suits_shared(topology.keep(torch.arange(topology.nnz) < topology.nnz // 16 * 16 - 1), 32)
    assert not forms.suits_shared(shared((24, 32), 8), 24)


def test_rows_that_share_nothing_are_refused():
    for topology in (some((32, 32), 0.5), shared((32, 32), 8), Topology.from_mask(torch.zeros(32, 32))):
        with pytest.raises(ValueError, match="expected groups of 64, 32, 16 rows that share their columns"):
            built.shared_matrix(topology, Matrix(32, 32))
    geometry = Convolution(8, 48, (1, 1), groups=2)  # a group of 16 rows would see features of two groups
    with pytest.raises(ValueError, match="expected groups"):
        built.shared_convolution(shared(geometry.shape, 16), geometry)


@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("geometry", "shape"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_rows_of_a_convolution(geometry, shape, density):
    topology = some(geometry.shape, density)
    check(built.rows_convolution(topology, geometry), topology, geometry, shape, F64)


@pytest.mark.parametrize("density", [0.0, 0.4])
@pytest.mark.parametrize(("geometry", "shape"), [one for one in CONVOLUTIONS.values() if one[0].groups == 1], ids=str)
def test_bitmap_of_a_convolution(geometry, shape, density):
    topology = some(geometry.shape, density)
    verbs = built.bitmap_convolution(topology, geometry)
    check(verbs, topology, geometry, shape, F16)
    assert verbs.nbytes >= (4 * topology.nnz if not geometry.pointwise else 0)


@pytest.mark.parametrize("form", ["rows", "shared", "bitmap"])
def test_places_of_a_convolution_are_made_once_for_each_size_of_images(form, monkeypatch):
    made, starts, within = [], built.starts, built.Phases.within
    monkeypatch.setattr(built, "starts", lambda *given: made.append(given) or starts(*given))
    monkeypatch.setattr(built.Phases, "within", lambda self, taps: made.append(self.key) or within(self, taps))
    geometry, dtype = Convolution(1, 16, (2, 2), padding=(1, 1)), F16 if form == "bitmap" else F32
    topology = shared(geometry.shape, 16) if form == "shared" else some(geometry.shape, 0.3)
    verbs, values = getattr(built, f"{form}_convolution")(topology, geometry), torch.ones(topology.nnz)
    for size in (1, 2):
        x, dy, before = torch.ones(1, 1, size, size, dtype=dtype), torch.ones(1, 16, size + 1, size + 1, dtype=dtype), verbs.nbytes
        first = verbs.spmm(values, x), verbs.spmm_t(values, dy, x.shape)
        assert len(made) == 3  # where x, dy and dx begin
        assert verbs.nbytes > before
        again = verbs.spmm(values, x), verbs.spmm_t(values, dy, x.shape)
        assert len(made) == 3
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
        made.clear()


def test_tables_keep_what_they_have_and_no_more_than_so_many():
    tables = forms.Tables()
    first = tables.get(0, lambda: torch.zeros(1))
    for number in range(1, 2 * tables.MOST):
        assert tables.get(number, lambda number=number: torch.full((1,), number)) == number
    assert tables.get(0, lambda: torch.ones(1)) is first  # a CUDA graph may read it
    assert tables.nbytes <= tables.MOST * 8


@pytest.mark.parametrize("form", ["bitmap", "blocks"])
def test_tiles_of_a_pointwise_convolution(form):
    geometry = Convolution(16, 32, (1, 1))
    topology = blocks(geometry.shape, 16) if form == "blocks" else some(geometry.shape, 0.3)
    check(getattr(built, f"{form}_convolution")(topology, geometry), topology, geometry, (2, 16, 3, 5), F16)


@pytest.mark.parametrize("form", ["rows", "bitmap", "shared", "blocks"])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_any_need_any_batch_any_strides(form, batch):
    geometry = Matrix(16, 32)
    make = {"blocks": lambda shape: blocks(shape, 16, 1.0), "shared": lambda shape: shared(shape, 16)}
    topology = make.get(form, lambda shape: some(shape, 0.3))(geometry.shape)
    verbs = getattr(built, f"{form}_matrix")(topology, geometry)
    x = torch.randn(32, 2 * batch).half()[:, ::2].T
    check(verbs, topology, geometry, (batch, 32), F16, NEEDS if batch == 3 else NEEDS[:1], x=x)


@pytest.mark.parametrize("geometry", [Matrix(6, 9), Convolution(4, 6, (3, 2), groups=2)], ids=str)
def test_results_are_those_of_the_reference(geometry):
    topology = some(geometry.shape, 0.4)
    shape = (5, 9) if isinstance(geometry, Matrix) else (2, 4, 5, 4)
    verbs = ops.verbs_for(topology, geometry, F64)
    with ops.use("reference"):
        reference = ops.verbs_for(topology, geometry, F64)
    x, values = torch.randn(shape).double(), torch.randn(topology.nnz).double()
    y = reference.spmm(values, x)
    dy = torch.randn_like(y)
    torch.testing.assert_close(verbs.spmm(values, x), y)
    for ours, theirs in zip(verbs.backward(values, x, dy, NEEDS[0]), reference.backward(values, x, dy, NEEDS[0]), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(verbs.gradient_rows(dy, x, 1, 5), reference.gradient_rows(dy, x, 1, 5))
    samples = [(dy, x), (torch.randn_like(dy), torch.randn_like(x))]
    for kept in (topology, topology.keep(torch.arange(topology.nnz) % 2 == 0)):
        for count in (0, 1, 7, topology.size):
            assert torch.equal(verbs.top_gradients(samples, kept, count), reference.top_gradients(samples, kept, count))


def test_largest_gradients_slab_by_slab(monkeypatch):
    """Ties go to the lower position and NaN comes last, also where slabs meet."""
    topology, geometry = some((9, 8), 0.3), Matrix(9, 8)
    dy = torch.randint(-2, 3, (1, 9)).double()
    dy[0, 4] = torch.nan
    x = torch.randint(-2, 3, (1, 8)).double()
    verbs = ops.verbs_for(topology, geometry, F64)
    with ops.use("reference"):
        reference = ops.verbs_for(topology, geometry, F64)
    monkeypatch.setattr(patterns, "SLAB_ENTRIES", 17)
    for count in range(0, 60, 3):
        assert torch.equal(verbs.top_gradients([(dy, x)], topology, count), reference.top_gradients([(dy, x)], topology, count))


def test_the_same_from_run_to_run():
    topology, geometry = some((20, 30), 0.3), Matrix(20, 30)
    verbs = ops.verbs_for(topology, geometry, F32)
    values, x, dy = check(verbs, topology, geometry, (40, 30), F32)
    first, second = (verbs.backward(values, x, dy, NEEDS[0]) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_the_form_is_chosen_by_what_there_is():
    def form(topology, dtype, geometry=None):
        return ops.verbs_for(topology, geometry or Matrix(*topology.shape), dtype).name

    generator = torch.Generator().manual_seed(0)
    half, few = (FanIn().random((64, 128), count, generator) for count in (64 * 64, 64))
    whole = Block(16).random((64, 128), 16 * 16 * 5, generator)
    assert form(half, F16) == form(NM(2, 4).random((64, 128), 64 * 64, generator), torch.bfloat16) == "triton.matrix[bitmap, interpreted]"
    assert form(half, F32) == form(few, F16) == form(whole, F64) == "triton.matrix[rows, interpreted]"
    assert form(whole, F16) == form(whole, F32) == "triton.matrix[blocks, interpreted]"
    groups = SharedFanIn(32).random((64, 128), 64 * 20, generator)
    assert form(groups, F16) == form(groups, F32) == "triton.matrix[shared, interpreted]"
    assert form(groups, F64) == form(SharedFanIn(8).random((64, 128), 64 * 2, generator), F16) == "triton.matrix[rows, interpreted]"
    assert form(groups, F16, Convolution(32, 64, (2, 2))) == form(groups, F16, Convolution(128, 64, (1, 1)))
    assert form(groups, F16, Convolution(32, 64, (2, 2), groups=1)) == "triton.convolution[shared, interpreted]"
    assert form(groups, F32, Convolution(256, 64, (1, 1), groups=2)) == "triton.convolution[shared, interpreted]"
    assert form(groups, F32, Convolution(1024, 64, (1, 1), groups=8)) == "triton.convolution[rows, interpreted]"
    assert form(whole, F16, Convolution(128, 64, (1, 1))) == "triton.convolution[blocks, interpreted]"
    assert form(half, F16, Convolution(32, 64, (2, 2))) == "triton.convolution[bitmap, interpreted]"
    assert form(half, F16, Convolution(64, 64, (2, 1), groups=1)) == "triton.convolution[bitmap, interpreted]"
    assert form(half, F16, Convolution(256, 64, (2, 1), groups=4)) == "triton.convolution[rows, interpreted]"
    assert form(half, F32, Convolution(32, 64, (2, 2))) == "triton.convolution[rows, interpreted]"
    assert form(Topology.from_mask(torch.ones(4, 4)), F32) == "dense"


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (
            {"x": torch.zeros(2, 9, dtype=F64)},
            TypeError,
            r"expected samples of one dtype, values .*got x torch.float64 on cpu, values torch.float32",
        ),
        (
            {"x": torch.zeros(2, 9, device="meta")},
            TypeError,
            r"all on cpu as the topology; got x torch.float32 on meta.*move and convert with .to",
        ),
        ({"x": torch.zeros(2, 8)}, ValueError, r"expected x of shape \(batch, 9\), got \(2, 8\)"),
        ({"values": torch.zeros(3)}, ValueError, r"expected values of shape \(\d+,\), one per connection, got \(3,\)"),
        ({"bias": torch.zeros(5)}, ValueError, r"expected bias of shape \(6,\), one per row, got \(5,\)"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, error, says):
    topology = some((6, 9), 0.5)
    verbs = ops.verbs_for(topology, Matrix(6, 9), F32)
    with pytest.raises(error, match=says):
        verbs.spmm(**{"values": torch.zeros(topology.nnz), "x": torch.zeros(2, 9)} | arguments)
    with pytest.raises(ValueError, match=r"expected dy of shape \(2, 6\) beside x of shape \(2, 9\), got \(2, 5\)"):
        verbs.sddmm(torch.zeros(2, 5), torch.zeros(2, 9))
