"""What is saved is what is loaded: into the same model, another topology, a masked or a dense one, or no model at all."""

import copy
import errno
import os

import pytest
import torch
from oracles import images, network
from oracles.files import connections_of, taken_apart, whole_numbers
from safetensors.torch import load_file
from torch import nn

import truesparse as ts
from truesparse.export import FileError, contents
from truesparse.nn.wrapped import unwrapped
from truesparse.tasks import mnist_cnn

PATTERNS = {
    "unstructured": (ts.Unstructured(), 0.8),
    "fan-in": (ts.FanIn(), 0.8),
    "shared fan-in": (ts.SharedFanIn(4), 0.8),
    "n of m": (ts.NM(1, 2), 0.5),
    "blocks": (ts.Block(2), 0.8),
    "neurons": (ts.Neurons(), 0.8),
    "zero connections": (ts.Unstructured(), 0.999),
    "full layers": (ts.Unstructured(), 0.0),
}


def regular(channels=2):
    """A network whose extents every pattern fits."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, (2, 3), padding="same", padding_mode="reflect"),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 2, stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 20),
        nn.ReLU(),
        nn.Linear(20, 4, bias=False),
    )


def sparse(sparsity=0.8, pattern=None, make=network, seed=1, **settings):
    return ts.sparsify(make(), sparsity, pattern=pattern, generator=torch.Generator().manual_seed(seed), **settings).eval()


def equal(one, other, x):
    for name, array in one.state_dict().items():
        assert torch.equal(array, other.state_dict()[name]), name
    assert torch.equal(one(x), other(x))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


@pytest.mark.parametrize(("pattern", "sparsity"), PATTERNS.values(), ids=PATTERNS)
def test_every_pattern(pattern, sparsity, path):
    model, x = sparse(sparsity, pattern, regular, budget=ts.Uniform()), images()
    if sparsity == 0.999:
        for layer in (model[0], model[5]):
            ts.rewire(layer, None, ts.Topology.from_keys(layer.topology.shape, torch.empty(0, dtype=torch.int64)))
    ts.save(model, path)
    other = sparse(sparsity, pattern, regular, seed=2, budget=ts.Uniform())
    assert ts.load(path, other) is other
    equal(model, other, x)
    saved = ts.load(path)
    assert list(saved.layers) == ["0", "2", "5", "7"]
    assert [layer.pattern for layer in saved.layers.values()] == [str(model[index].pattern) for index in (0, 2, 5, 7)]
    assert saved.layers["7"].pattern == str(pattern)
    fresh = sparse(sparsity, pattern, regular, seed=2, budget=ts.Uniform())
    fresh.load_state_dict(saved.state_dict())
    equal(model, fresh, x)


def test_the_file_by_the_slow_reader(path):
    model = sparse(0.8, make=regular)
    ts.save(model, path)
    description, tensors = taken_apart(path.read_bytes())
    for name, layer in model.named_modules():
        if not hasattr(layer, "topology"):
            continue
        said = description["layers"][name]
        lengths, coding = whole_numbers(*tensors[f"{name}.row_lengths"][::2]), said["coding"]
        part = None if coding == "full" else f"{name}.{'bits' if coding == 'bits' else 'gaps'}"
        positions = whole_numbers(*tensors[part][::2]) if part else []
        shape = (layer.geometry.shape[0], layer.geometry.shape[1])
        mask = torch.zeros(shape, dtype=torch.bool)
        for row, column in connections_of(shape, coding, lengths, positions):
            mask[row, column] = True
        assert torch.equal(mask, layer.topology.mask())
        dtype, count, array = tensors[f"{name}.values"]
        assert (dtype, count, array) == ("F32", [layer.topology.nnz], layer.values.detach().numpy().tobytes())
    arguments = description["layers"]["0"]["arguments"]
    assert description["layers"]["0"]["module"] == "Conv2d"
    like = nn.Conv2d(**arguments)
    assert (like.padding, like.padding_mode, like.kernel_size, like.bias is not None) == ("same", "reflect", (2, 3), True)
    assert nn.Conv2d(**description["layers"]["2"]["arguments"]).weight.shape == model[2].geometry.weight_shape
    assert ts.SparseLinear(**description["layers"]["7"]["arguments"]).bias is None
    others = {name for name in tensors if name.split(".")[-1] not in ("values", "row_lengths", "gaps", "bits")}
    assert others == {"0.bias", "5.bias", *(f"1.{name}" for name in model[1].state_dict())}


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.95])
def test_into_another_topology_a_masked_and_a_dense_model(sparsity, path):
    model, x = sparse(0.8), images()
    ts.save(model, path)
    other = sparse(sparsity, seed=5)
    parameters = list(other.parameters())
    ts.load(path, other)
    equal(model, other, x)
    assert all(one is two for one, two in zip(parameters, other.parameters(), strict=True)), "an optimizer still holds them"
    masked = ts.load(path, sparse(sparsity, masked=True))
    assert all(torch.equal(masked[at].topology.mask(), model[at].topology.mask()) for at in (0, 5, 7))
    torch.testing.assert_close(masked(x), model(x))
    dense = ts.load(path, network().eval())
    assert torch.equal(dense[5].weight, model[5].to_dense())
    torch.testing.assert_close(dense(x), model(x))


@pytest.mark.parametrize("masked", [False, True])
def test_connections_that_only_train(masked, path):
    """As TopKAST leaves them: trained, but the layer computes without them."""

    def with_idle(seed):
        model = sparse(0.5, masked=masked, seed=seed)
        for at in (0, 5):
            topology = model[at].topology
            ts.rewire(model[at], None, ts.Move.through(topology, topology, topology, acting=torch.rand(topology.nnz) < 0.6))
        return model

    model, x = with_idle(1), images()
    ts.save(model, path)
    assert ts.load(path).layers["5"].acting.sum() == model[5].connections < model[5].topology.nnz
    assert ts.load(path).layers["7"].acting is None
    for other in (sparse(0.8, seed=2, masked=masked), with_idle(3)):
        ts.load(path, other)
        equal(model, other, x)
        assert other[5].connections == model[5].connections
    twin = ts.load(path, sparse(0.8, seed=2, masked=not masked))
    assert torch.equal(twin[5].acting.flatten()[twin[5].topology.keys] if not masked else twin[5].acting, ts.load(path).layers["5"].acting)
    torch.testing.assert_close(twin(x), model(x))
    dense = ts.load(path, network().eval())
    assert torch.equal(dense[5].weight, model[5].to_dense())
    everything = sparse(0.8, seed=4, masked=masked)
    ts.save(everything, path)
    equal(everything, ts.load(path, model), x)
    assert model[5].acting is None


def test_a_masked_model_is_saved_as_the_sparse_one(path, tmp_path):
    ts.save(sparse(0.8), path)
    ts.save(sparse(0.8, masked=True), tmp_path / "masked.safetensors")
    assert path.read_bytes() == (tmp_path / "masked.safetensors").read_bytes()


def test_equal_models_make_equal_files(path):
    ts.save(sparse(0.8), path)
    first = path.read_bytes()
    ts.save(sparse(0.8), path)
    assert path.read_bytes() == first


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_values_keep_their_dtype(dtype, path):
    model = sparse(0.8).to(dtype)
    ts.save(model, path)
    saved = ts.load(path)
    assert saved.layers["5"].values.dtype == dtype
    assert torch.equal(saved.layers["5"].values, model[5].values)
    assert torch.equal(ts.load(path, sparse(0.8).to(dtype))[5].values, model[5].values)
    assert torch.equal(ts.load(path, sparse(0.8))[5].values, model[5].values.float())


def test_values_in_bfloat16(path):
    model, x = sparse(0.8), images()
    ts.save(model, path, values="bfloat16")
    small = path.stat().st_size
    other = ts.load(path, sparse(0.5))
    for at in (0, 5, 7):
        assert torch.equal(other[at].values, model[at].values.bfloat16().float())
        assert torch.equal(other[at].bias, model[at].bias)
        relative = ((other[at].values - model[at].values) / model[at].values).abs()
        assert 0 < relative.max() <= 1 / 256, "as the docstring says"
    torch.testing.assert_close(other(x), model(x), rtol=0.02, atol=0.02)
    ts.save(model, path)
    assert path.stat().st_size - small == pytest.approx(2 * ts.summary(model).connections, abs=64)
    ts.save(sparse(0.8).double(), path, values="float32")
    assert ts.load(path).layers["5"].values.dtype == torch.float32


@pytest.mark.parametrize(("values", "most"), [(None, 0.09), ("bfloat16", 0.05)])
def test_the_size_at_95_percent(values, most, path):
    model = ts.sparsify(mnist_cnn.model(), 0.95)
    ts.save(model, path, values=values)
    dense = 4 * sum(parameter.numel() for parameter in mnist_cnn.model().parameters())
    assert path.stat().st_size <= most * dense
    assert contents(path).dense_nbytes == dense


@pytest.mark.parametrize(
    "model",
    [
        ts.SparseLinear(9, 6, sparsity=0.7),
        ts.SparseLinear(9, 0, sparsity=0.7),
        ts.SparseLinear(0, 9, sparsity=0.7),
        ts.SparseLinear(1, 1, sparsity=0.0, bias=False),
        ts.SparseLinear(9, 6, sparsity=1.0),
        ts.SparseConv2d(3, 6, 3, padding="valid", groups=3),
        ts.MaskedConv2d(4, 6, (1, 5), padding=2, padding_mode="circular"),
        nn.Sequential(nn.Linear(3, 4), nn.Embedding(5, 2)),
        nn.Sequential(),
    ],
    ids=lambda model: type(model).__name__,
)
def test_odd_models(model, path):
    ts.save(model, path)
    other = ts.load(path, copy.deepcopy(model).apply(lambda module: [parameter.data.zero_() for parameter in module.parameters()]))
    assert all(torch.equal(array, other.state_dict()[name]) for name, array in model.state_dict().items())
    if isinstance(model, nn.Linear | ts.SparseLinear | ts.SparseConv2d):
        assert list(ts.load(path).layers) == [""]


def test_a_layer_under_two_names_and_tied_tensors(path):
    shared = ts.SparseLinear(6, 6, sparsity=0.5)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(6, 6), nn.Linear(6, 6))
    model[4].weight = model[3].weight
    ts.save(model, path)
    assert list(ts.load(path).layers) == ["0", "2"]
    again = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    ts.load(path, again)
    assert again[0] is again[2]
    equal(model, again, torch.randn(3, 6))


def test_a_loaded_file_can_change_and_go(path):
    model = sparse(0.8)
    ts.save(model, path)
    saved = ts.load(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(saved.layers["5"].values, model[5].values)
    assert torch.equal(saved.tensors["5.bias"], model[5].bias)


def test_other_programs_read_it(path):
    model = sparse(0.8)
    ts.save(model, path)
    loaded = load_file(path)
    assert torch.equal(loaded["5.values"], model[5].values)
    assert torch.equal(loaded["1.running_var"], model[1].running_var)
    assert loaded["1.num_batches_tracked"].shape == ()


def without(model, at):
    return nn.Sequential(*(layer for place, layer in enumerate(model) if place != at))


def changed(at, layer):
    model = sparse()
    model[at] = layer
    return model


class Parametrized(nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (without(sparse(), 7), "it has no layer '7'"),
        (
            changed(5, ts.SparseLinear(32, 21)),
            r"layer '5' is Linear\(in_features=32, out_features=20, bias=True\) in the file, Linear\(in_features=32, out_features=21",
        ),
        (changed(5, ts.SparseLinear(32, 20, bias=False)), r"layer '5' is .*bias=True\) in the file, .*bias=False\) in the model"),
        (changed(0, ts.SparseConv2d(2, 6, 3)), r"layer '0' is .*padding=\[1, 1\].* in the file, .*padding=\[0, 0\]"),
        (changed(5, nn.Identity()), "layer '5' is .* in the file, no linear layer or convolution in the model"),
        (changed(5, ts.SparseLinear(32, 20, pattern=ts.FanIn())), r"FanIn\(\) needs the same count, give or take one"),
        (changed(1, nn.BatchNorm2d(6, affine=False)), "the file has 1.bias, 1.weight, the model has not"),
        (changed(2, nn.PReLU()), "the model has 2.weight, the file has not"),
        (changed(1, nn.BatchNorm2d(7)), r"1.bias has shape \(6,\) in the file, \(7,\) in the model"),
    ],
)
def test_a_model_that_is_another_one_is_left_alone(model, says, path):
    ts.save(sparse(), path)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(FileError, match=f"does not fit the model: .*{says}.*; nothing was loaded"):
        ts.load(path, model)
    assert all(torch.equal(array, before[name]) for name, array in model.state_dict().items())


def test_a_dense_layer_is_no_sparse_one(path):
    ts.save(sparse(exclude=["7"]), path)
    with pytest.raises(FileError, match=r"the model has 7.indices, 7.indptr, 7.values, the file has not"):
        ts.load(path, sparse())


def test_counters_are_no_weights(path):
    model = sparse()
    ts.save(model, path)
    model[1].num_batches_tracked = model[1].num_batches_tracked.float()
    with pytest.raises(FileError, match=r"1.num_batches_tracked is torch.int64 in the file, torch.float32 in the model"):
        ts.load(path, model)


class WithExtraState(nn.Module):
    def get_extra_state(self):
        return {"a": 1}


class WithGaps(ts.SparseLinear):
    def __init__(self):
        super().__init__(9, 6)
        self.register_buffer("gaps", torch.zeros(1))


def parametrized():
    layer = ts.MaskedLinear(9, 6)
    nn.utils.parametrize.register_parametrization(layer, "weight", Parametrized())
    return layer


@pytest.mark.parametrize(
    ("model", "kind", "says"),
    [
        (nn.Sequential(WithExtraState()), TypeError, "'0._extra_state' of the state_dict is dict; take it out of the model"),
        (nn.Linear(3, 3, device="meta"), TypeError, "'weight' of the state_dict is a tensor on meta"),
        (nn.Sequential(WithGaps()), ValueError, "the name '0.gaps' is taken: layer '0' has a tensor 'gaps' of its own; rename it"),
        (nn.Sequential(parametrized()), TypeError, "layer '0' has no 'weight' in its state_dict: it is parametrized"),
    ],
)
def test_what_cannot_be_saved(model, kind, says, path):
    with pytest.raises(kind, match=says):
        ts.save(model, path)
    assert not path.exists()


def test_an_unknown_dtype_of_values(path):
    with pytest.raises(ValueError, match="values must be None, 'float32' or 'bfloat16', got 'int8'"):
        ts.save(sparse(), path, values="int8")


def test_a_full_disk_leaves_what_was_there(path, monkeypatch):
    ts.save(sparse(), path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match=r"cannot write .*: the disk is full; free space. Nothing was changed"):
        ts.save(sparse(0.5), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_places_that_are_none(tmp_path):
    with pytest.raises(FileError, match=r"cannot write .*: No such file or directory; choose a folder that exists"):
        ts.save(sparse(), tmp_path / "absent" / "net.safetensors")
    with pytest.raises(FileError, match=r"cannot read .*absent: No such file or directory"):
        ts.load(tmp_path / "absent")
    with pytest.raises(FileError, match=r"cannot read .*: it is a folder"):
        ts.load(str(tmp_path))


class Wrapper(nn.Module):
    """Holds the network as part of it, as frameworks do."""

    def __init__(self, model):
        super().__init__()
        self.model = model


WRAPPERS = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "averaged": torch.optim.swa_utils.AveragedModel,
    "in parallel": nn.DataParallel,
    "averaged, then compiled": lambda model: torch.compile(torch.optim.swa_utils.AveragedModel(model), backend="eager"),
}


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("wrapped", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_network_is_saved_and_filled_as_what_it_wraps(wrapped, path):
    model, plain_path, x = sparse(), path.with_name("plain.safetensors"), images(2)
    ts.save(model, plain_path)
    ts.save(wrapped(model), path)
    assert path.read_bytes() == plain_path.read_bytes()
    equal(ts.load(path, sparse(seed=2)), model, x)
    other = wrapped(sparse(seed=3))
    assert ts.load(path, other) is other
    equal(unwrapped(other), model, x)
    assert [row.name for row in ts.summary(other).layers] == [row.name for row in ts.summary(model).layers]


def test_a_network_of_several_processes_is_saved_as_what_it_is(one_process, path):
    model = sparse()
    ts.save(nn.parallel.DistributedDataParallel(model), path)
    equal(ts.load(path, sparse(seed=2)), model, images(2))


def test_parts_that_are_wrapped_keep_their_names_and_what_does_not_act(path):
    def made(seed):
        return nn.Sequential(
            *(ts.sparsify(nn.Sequential(nn.Linear(6, 6)), 0.5, generator=torch.Generator().manual_seed(seed)) for _ in "ab")
        )

    model, other, x = made(1), made(2), torch.randn(3, 6)
    model[1][0].acting = torch.arange(model[1][0].topology.nnz) % 2 == 0
    expected = model(x)
    model[1] = torch.compile(model[1], backend="eager")
    ts.save(model, path)
    assert sorted(ts.load(path).layers) == ["0.0", "1.0"]
    equal(ts.load(path, made(3)), ts.load(path, made(4)), x)
    part = other[1]
    other[1] = torch.compile(part, backend="eager")
    ts.load(path, other)
    assert torch.equal(part(other[0](x)), expected)
    dense = ts.load(path, nn.Sequential(*(nn.Sequential(nn.Linear(6, 6)) for _ in "ab")))
    torch.testing.assert_close(dense(x), expected)


def test_names_that_all_begin_with_another_word_are_explained(path):
    model = sparse()
    ts.save(Wrapper(model), path)
    with pytest.raises(
        FileError, match=r"every name in the file begins with 'model', and without that it would fit: load it into a model "
    ):
        ts.load(path, sparse(seed=2))
    equal(ts.load(path, nn.ModuleDict({"model": (other := sparse(seed=2))})) and other, model, images(2))
    ts.save(model, path)
    with pytest.raises(FileError, match=r"every name in the model begins with 'model', and none in the file: load it into model\.model;"):
        ts.load(path, Wrapper(sparse(seed=2)))
