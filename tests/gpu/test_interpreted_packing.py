"""Networks packed for GPUs compute what they computed, in every form and dtype: in Triton's interpreter, beside dense float64."""

import copy
import os
import pickle

import pytest
import torch
from torch import nn

import truesparse as ts
from truesparse import ops
from truesparse.inference import choice
from truesparse.inference.choice import Memory, by_rule
from truesparse.inference.graph.layers import Weights
from truesparse.inference.layouts import Conditions, TritonForm, candidates, gpu
from truesparse.inference.layouts.base import EXACT
from truesparse.ops import table
from truesparse.topology import Topology
from truesparse.topology.geometry import Convolution, Matrix

pytest.importorskip("triton", reason="the extra gpu is not installed")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("make test runs these in a process of its own, with TRITON_INTERPRET=1", allow_module_level=True)

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
TOLERANCE = {F32: 1e-5, F16: 4e-3}  # of the largest output


@pytest.fixture(autouse=True)
def _family():
    with ops.use("triton"):
        yield


class Residual(nn.Module):
    """Sums with a layer, with an activation after them, and between layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third, self.last = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x):
        y = torch.relu(x + self.second(torch.tanh(self.first(x))))
        return self.last(y + nn.functional.gelu(self.third(y)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.query, self.key, self.value, self.out = nn.LayerNorm(16), *(nn.Linear(16, 16) for _ in range(4))

    def forward(self, x):
        y = self.norm(x)
        heads = (one(y).unflatten(-1, (2, 8)).transpose(-2, -3) for one in (self.query, self.key, self.value))
        return x + self.out(nn.functional.scaled_dot_product_attention(*heads).transpose(-2, -3).flatten(-2))


def convolutions():
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1, stride=2), nn.BatchNorm2d(16), nn.ReLU6(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, groups=2, padding="same", padding_mode="reflect"), nn.SiLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)),
    )


NETWORKS = {
    "perceptron": (lambda: nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 3)), (3, 24)),
    "one sample": (lambda: nn.Sequential(nn.Linear(24, 32), nn.Dropout(), nn.Linear(32, 16)), (24,)),
    "convolutions": (convolutions, (2, 3, 8, 8)),
    "residual": (Residual, (5, 16)),
    "attention": (Attention, (2, 3, 16)),
}


def trained(network, dtype=F32, sparsity=0.6):
    """(a sparse network whose norms have statistics, an input, what it gives in float64 with the numbers it has)."""
    make, shape = NETWORKS[network]
    torch.manual_seed(0)
    model = ts.sparsify(make(), sparsity, budget=ts.Uniform(dense_first=False), generator=torch.Generator().manual_seed(0))
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
    model, x = model.eval().to(dtype), torch.randn(shape).to(dtype)
    exact = ts.densify(copy.deepcopy(model)).double()
    return model, x, exact


def only(monkeypatch, form):
    """Of layouts, one form where there is that, else rows; where nothing is absent, dense."""
    right = gpu.candidates

    def found(weights, conditions):
        given = {str(one): one for one in right(weights, conditions)}
        names = [name for name in (f"triton:{form}", "triton:rows", "dense") if name in given]
        return [given[names[0]]]

    monkeypatch.setattr(gpu, "candidates", found)


def hold(packed, exact, x, tolerance):
    with torch.inference_mode():
        y, expected = packed(x), exact(x.double())
    assert y.shape == expected.shape
    assert y.dtype == x.dtype
    assert float((y - expected).abs().max()) <= tolerance * max(float(expected.abs().max()), 1)


def layouts(packed):
    return [row.layout for row in packed.explain().rows]


@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
@pytest.mark.parametrize("network", NETWORKS)
def test_connections_one_by_one(network, dtype, monkeypatch):
    only(monkeypatch, "rows")
    model, x, exact = trained(network, dtype)
    packed = ts.pack(model, x, tune=False)
    assert "triton (rows)" in layouts(packed)
    hold(packed, exact, x, TOLERANCE[dtype])
    assert not any(isinstance(one, (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.GELU, nn.Dropout)) for one in packed.modules())


@pytest.mark.parametrize("network", NETWORKS)
def test_tiles_of_a_bitmap(network, monkeypatch):
    only(monkeypatch, "bitmap")
    model, x, exact = trained(network, F16)
    packed = ts.pack(model, x, tune=False)
    assert "triton (bitmap)" in layouts(packed)
    hold(packed, exact, x, TOLERANCE[F16])


@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
def test_blocks(dtype, monkeypatch):
    only(monkeypatch, "blocks")
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 48))
    ts.sparsify(model, 0.5, pattern=ts.Block(16), generator=torch.Generator().manual_seed(0)).eval().to(dtype)
    x, exact = torch.randn(3, 64).to(dtype), ts.densify(copy.deepcopy(model)).double()
    packed = ts.pack(model, x, tune=False)
    assert layouts(packed)[0] == "triton (blocks)"
    hold(packed, exact, x, TOLERANCE[dtype])


@pytest.mark.parametrize("network", ["one sample", "convolutions", "residual"])
@pytest.mark.parametrize("form", ["rows", "bitmap", "dense"])
def test_narrow_values_of_a_float32_network(form, network, monkeypatch):
    right = gpu.candidates
    wanted = "dense, float16" if form == "dense" else f"triton:{form}"
    monkeypatch.setattr(gpu, "candidates", lambda *given: [one for one in right(*given) if str(one) in (wanted, "dense, float16")][-1:])
    model, x, exact = trained(network)
    packed = ts.pack(model, x, values="float16", tune=False)
    assert any(one.endswith("float16)" if form != "dense" else ", float16") for one in layouts(packed))
    hold(packed, exact, x, TOLERANCE[F16])


def test_as_it_is_chosen(tmp_path, monkeypatch):
    model, x, exact = trained("perceptron", F16)
    memory = Memory(tmp_path / "layouts.json")
    packed = ts.pack(model, x, memory=memory)
    hold(packed, exact, x, TOLERANCE[F16])
    assert all(row.times_as_fast for row in packed.explain().rows)
    assert all("Triton's interpreter on cpu | 3." in key and "torch.float16" in key for key in memory.known)
    assert {frozenset(own) for own in memory.known.values()} == {frozenset({"dense", "triton:rows", "triton:bitmap"})}
    monkeypatch.setattr("truesparse.inference.laying_out.measure", lambda *given: pytest.fail("measured again"))
    ts.pack(model, x, memory=Memory(memory.path))


def test_it_says_what_it_did(monkeypatch):
    only(monkeypatch, "bitmap")
    model, x, _ = trained("perceptron", F16)
    told = str(ts.pack(model, x, tune=False).explain())
    assert told.splitlines()[-1] == "batch 3, Triton's interpreter on cpu"
    assert "triton (bitmap), ReLU" in told
    assert "triton (bitmap), GELU" in told


def test_bytes_are_of_what_a_form_reads(monkeypatch):
    model, x, _ = trained("one sample", F16)
    held = {}
    for form in ("rows", "bitmap"):
        with monkeypatch.context() as patched:
            only(patched, form)
            held[form] = ts.pack(model, x, tune=False).explain().rows[0].bytes
    nnz, rows, columns = model[0].topology.nnz, 32, 24
    assert held["rows"] == 2 * nnz + 4 * nnz + 4 * (rows + 1) + 4 * rows  # values, indices, indptr, bias
    places = rows * (8 * -(-columns // 64) + 4 * -(-columns // 256))  # bits, and where they begin
    assert held["bitmap"] == 2 * nnz + places + 4 * rows


def test_other_batches_copies_and_pickles(monkeypatch):
    only(monkeypatch, "bitmap")
    model, x, exact = trained("perceptron", F16)
    packed = pickle.loads(pickle.dumps(copy.deepcopy(ts.pack(model, x, tune=False))))
    for shape in ((1, 24), (0, 24), (2, 2, 24), (17, 24)):
        with torch.inference_mode():
            assert packed(torch.randn(shape).half()).shape == (*shape[:-1], 3)
    hold(packed, exact, torch.randn(19, 24).half(), TOLERANCE[F16])


KINDS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1, stride=2), (2, 4, 7)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (2, 1, 2)), (2, 2, 3, 3, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 3, 3, stride=2, output_padding=1), (2, 4, 3, 3)),
    "no connections": (lambda: nn.Linear(6, 5), (3, 6)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_layers(kind, monkeypatch):
    only(monkeypatch, "rows")
    make, shape = KINDS[kind]
    model = nn.Sequential(ts.sparsify(make(), 0.5)).eval()
    if kind == "no connections":
        model[0].values.data.zero_()
    x, exact = torch.randn(shape), ts.densify(copy.deepcopy(model)).double()
    packed = ts.pack(model, x, tune=False)
    assert layouts(packed) == ["triton (rows)"]
    hold(packed, exact, x, TOLERANCE[F32])


def test_layers_of_a_model_with_methods_of_its_own(monkeypatch):
    only(monkeypatch, "bitmap")
    model, x, exact = trained("attention", F16)
    told = ts.pack_layers(model, 6, tune=False)
    assert [row.layout for row in told.rows] == ["triton (bitmap)"] * 4
    assert str(told).splitlines()[-1].startswith("batch 6, Triton's interpreter on cpu; each layer by itself")
    hold(model, exact, x, TOLERANCE[F16])


def test_a_new_form_needs_no_more_than_its_line_in_the_table(monkeypatch):
    kernel = table.Kernel("triton", Matrix, table.triton.rows_matrix, ("cpu",), (F32,), "own")
    monkeypatch.setattr(table, "KERNELS", (*table.KERNELS, kernel))
    only(monkeypatch, "own")
    model, x, exact = trained("one sample")
    packed = ts.pack(model, x, tune=False)
    assert layouts(packed) == ["triton (own)", "triton (own)"]
    hold(packed, exact, x, TOLERANCE[F32])


def test_what_is_wrong_is_never_chosen(monkeypatch, tmp_path):
    right = TritonForm.__call__
    model, x, _ = trained("one sample", F16)
    for wrong in (lambda y: y + 0.2, lambda y: y * torch.nan):
        monkeypatch.setattr(TritonForm, "__call__", lambda self, x, wrong=wrong: wrong(right(self, x)))
        with pytest.raises(RuntimeError, match=r"the layout triton:bitmap computes something else than dense; please report this"):
            ts.pack(model, x, memory=Memory(tmp_path / "layouts.json"))
        with monkeypatch.context() as patched:
            only(patched, "bitmap")
            with pytest.raises(RuntimeError, match=r"the layout triton:bitmap computes something else than dense"):
                ts.pack(model, x, tune=False)


@pytest.mark.parametrize("form", ["rows", "bitmap"])
def test_sums_of_narrow_values_are_wide(form):
    """In sums of 16 bits, 2048 and 1 are 2048."""
    values = torch.cat([torch.full((64,), 2048.0), torch.ones(31 * 64), torch.full((64,), -2048.0), torch.zeros(1)]).half()
    weights = Weights(Matrix(1, len(values)), Topology.from_mask(values[None] != 0), values[:-1], None)
    y = gpu.TritonCandidate(form).make(weights, False, "float16")(torch.ones(1, len(values)).half())
    assert y.item() == 31 * 64


# The rule, whose figures are arithmetic. What it should say is in docs/guide/gpu.md.


@pytest.mark.parametrize(
    ("dtype", "sparsity", "batch", "chosen"),
    [
        (F32, 0.99, 256, "triton:rows"),
        (F32, 0.9, 2048, "triton:rows"),
        (F32, 0.6, 2048, "dense"),
        (BF16, 0.9, 1, "triton:bitmap"),
        (BF16, 0.9, 8192, "dense"),
        (BF16, 0.999, 8192, "triton:rows"),
    ],
)
def test_the_rule(dtype, sparsity, batch, chosen):
    topology = ts.FanIn().random((2048, 2048), round(2048 * (1 - sparsity)) * 2048, torch.Generator().manual_seed(0))
    weights = Weights(Matrix(2048, 2048), topology, torch.ones(topology.nnz, dtype=dtype), None)
    values = str(dtype).removeprefix("torch.")
    conditions = Conditions((batch, 2048), 1, values, family="triton")
    assert str(by_rule(weights, conditions)) == chosen


def test_the_rule_knows_tf32():
    topology = ts.FanIn().random((1024, 1024), 1024 * 100, torch.Generator().manual_seed(0))
    weights, conditions = (
        Weights(Matrix(1024, 1024), topology, torch.ones(topology.nnz), None),
        Conditions((8192, 1024), 1, family="triton"),
    )
    assert str(by_rule(weights, conditions)) == "triton:rows"
    torch.set_float32_matmul_precision("high")
    try:
        assert str(by_rule(weights, conditions)) == "dense"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_convolutions_of_torch_in_tf32_do_not_make_a_form_wrong(monkeypatch):
    matrix, images, narrow = Conditions((4, 8), 1), Conditions((4, 8, 5, 5), 1), Conditions((4, 8), 1, "bfloat16")
    assert [gpu.tolerance(one) for one in (matrix, images, narrow)] == [EXACT, gpu.ROUNDED, gpu.ROUNDED]
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert gpu.tolerance(images) == EXACT


def test_candidates_are_the_forms_of_the_table():
    def named(topology, geometry, dtype, values):
        weights = Weights(geometry, topology, torch.ones(topology.nnz, dtype=dtype), None)
        shape = (2, geometry.shape[1]) if isinstance(geometry, Matrix) else (2, geometry.in_channels, 4, 4)
        return [str(one) for one in candidates(weights, Conditions(shape, 1, values, family="triton"))]

    half, whole = ts.FanIn().random((32, 64), 1024), ts.Block(16).random((32, 64), 1024)
    assert named(half, Matrix(32, 64), F32, "float32") == ["dense", "triton:rows"]
    assert named(half, Matrix(32, 64), F32, "bfloat16") == ["dense", "dense, bfloat16", "triton:bitmap", "triton:rows"]
    assert named(whole, Matrix(32, 64), BF16, "bfloat16") == [
        "dense",
        *(f"triton:{form}" for form in ("blocks", "shared", "bitmap", "rows")),
    ]
    assert named(half, Convolution(16, 32, (2, 2)), F16, "float16") == ["dense", "triton:bitmap", "triton:rows"]
    assert named(Topology.from_mask(torch.ones(4, 4)), Matrix(4, 4), F32, "float32") == ["dense"]


# What is refused, in one line each.


def refusal(model, x, **settings):
    with pytest.raises((TypeError, ValueError)) as caught:
        ts.pack(model, x, tune=False, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_packed_is_refused():
    model, x, _ = trained("perceptron")
    assert refusal(copy.deepcopy(model).double(), x.double()) == (
        "pack takes networks of float32 or bfloat16 or float16 on a GPU, and '0.values' is torch.float64: convert with .half(), "
        ".bfloat16() or .float() first"
    )
    mixed = copy.deepcopy(model)
    mixed[2].half()
    assert "of one dtype, and '0.values' is torch.float32, '2.values' torch.float16: convert all with" in refusal(mixed, x)
    assert refusal(model, x, values="int8") == "values is one of float32, bfloat16, float16 on a GPU, got 'int8'"
    assert "a network of float16 holds its values so, got values='bfloat16'" in refusal(
        copy.deepcopy(model).half(), x.half(), values="bfloat16"
    )
    assert refusal(model, x, threads=2) == "threads are of the CPU, and the network is on a GPU: leave threads=2 out"
    assert "the network is on cpu, and input 0 of the example on meta: move both to one device" in refusal(model, x.to("meta"))
    mixed = copy.deepcopy(model)
    mixed[4].to("meta")
    assert "on one device, and '0.values' is on cpu, '4.values' on meta: move it with .to('cpu')" in refusal(mixed, x)
    with ops.use("native"):
        assert "pack has layouts for the CPU and for CUDA, and the network is on meta" in refusal(
            copy.deepcopy(model).to("meta"), x.to("meta")
        )
        assert refusal(copy.deepcopy(model).half(), x.half()).startswith("pack takes networks of float32 on the CPU, and '0.values' is")
        assert refusal(model, x, values="float16") == "values is one of float32, bfloat16, int8, got 'float16'"


def test_packed_for_the_reference_is_packed_for_the_device():
    model, x, exact = trained("perceptron")
    with ops.use("reference"):
        packed = ts.pack(model, x, tune=False)
    assert not any(isinstance(one.layout, TritonForm) for one in packed.modules() if hasattr(one, "layout"))
    hold(packed, exact, x, TOLERANCE[F32])


def test_a_packed_network_stays_in_its_dtype_on_its_device():
    model, x, _ = trained("perceptron", F16)
    packed = ts.pack(model, x, tune=False)
    assert packed.half().cpu() is packed
    with pytest.raises(RuntimeError, match=r"computes in float16 on the CPU, not in torch.float32 on cpu: move or convert the"):
        packed.float()
    with pytest.raises(TypeError, match=r"computes in float16, got an input of torch.float32; convert it with .half\(\)"):
        packed(x.float())
    with pytest.raises(TypeError, match=r"takes dense tensors on the CPU, got a torch.strided one on meta"):
        packed(x.to("meta"))
    with pytest.raises(RuntimeError, match="a packed network gives no gradients"):
        packed(x.clone().requires_grad_())
    assert packed.graph.get_submodule("0").weight.dtype == F16


def test_sums_of_another_dtype_are_refused_or_taken_as_torch_takes_them():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x, y):
            return torch.relu(self.layer(x) + y)

    model, x = Sum().eval(), torch.randn(2, 8)
    expected = model(x, x.double())
    packed = ts.pack(model, (x, x), tune=False)
    with torch.inference_mode():
        torch.testing.assert_close(packed(x, x.double()), expected)


def test_measuring_takes_turns(monkeypatch):
    monkeypatch.setattr(choice, "SECONDS", 0.0)
    monkeypatch.setattr(choice, "LEAST_ROUNDS", 3)
    order = []
    monkeypatch.setattr(choice, "stopwatch", lambda call, inputs: lambda turn: order.append((str(call), turn)) or 1.0)
    topology = ts.FanIn().random((16, 32), 128)
    weights = Weights(Matrix(16, 32), topology, torch.ones(topology.nnz).half(), None)
    measured = choice.measure(weights, False, Conditions((2, 32), 1, "float16", family="triton"))
    names = ["dense", "triton (bitmap)", "triton (rows)"]
    assert order == [(name, turn) for turn in range(3) for name in names]
    assert measured.fastest == "triton:bitmap", "the one in most cases, where dense gains nothing"
