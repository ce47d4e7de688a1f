"""from_pruned() of files: bitmasks of compressed-tensors and ONNX models, written here as their formats say, and by the real libraries."""

import copy

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import truesparse as ts
from truesparse.nn import topology_layers


class Network(nn.Module):
    def __init__(self, seed=0):
        torch.manual_seed(seed)
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, groups=2, padding=1)
        self.hidden = nn.Linear(8 * 16, 16)
        self.head = nn.Linear(16, 16)  # square: nothing but the graph tells how it lies
        self.last = nn.Linear(16, 4, bias=False)
        self.eval()

    def forward(self, x):
        return self.last(torch.relu(self.head(torch.relu(self.hidden(torch.relu(self.conv(x)).flatten(1))))))


class Sequences(nn.Module):
    """Products of three dimensions, which exporters write as MatMul with a transposed weight and Add."""

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        super().__init__()
        self.query, self.key, self.norm, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 6, bias=False)
        self.eval()

    def forward(self, x):
        return self.out(self.norm(self.query(x) * self.key(x) + x))


def with_zeros(model, share=0.3, but=()):
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and name not in but:
            module.weight.data *= torch.rand(module.weight.shape) < share
    return model


def check(model, dense):
    """All pruned layers sparse, with exactly what the dense form has."""
    layers = topology_layers(model)
    for name, module in dense.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            assert (name in layers) == bool((module.weight == 0).any())
            if name in layers:
                assert torch.equal(layers[name].to_dense(), module.weight)
                assert torch.equal(layers[name].topology.mask(), (module.weight != 0).flatten(1))
    state, stated = dense.state_dict(), model.state_dict()
    assert all(torch.equal(state[name], stated[name]) for name in state if not name.endswith("weight"))


# compressed-tensors


def bitmask(weight, present=None, column=False):
    """As the format has it, from numpy alone."""
    present = weight != 0 if present is None else present
    counts = present.sum(1)
    shape = torch.tensor(weight.shape)
    return {
        "shape": shape.reshape(-1, 1) if column else shape,
        "compressed": weight[present].reshape(len(weight), -1).contiguous() if column else weight[present],
        "bitmask": torch.from_numpy(np.packbits(present.numpy(), axis=-1, bitorder="little")),
    } | ({} if column else {"row_offsets": counts.cumsum(0) - counts})


def written(dense, path):
    state = dense.state_dict()
    for name in ("hidden", "head", "last"):
        state |= {f"{name}.{part}": tensor for part, tensor in bitmask(state.pop(f"{name}.weight")).items()}
    safetensors.torch.save_file(state, path)
    return path


def test_bitmasks(tmp_path):
    dense = with_zeros(Network(1))
    check(ts.from_pruned(Network(2), written(dense, tmp_path / "model.safetensors")), dense)


def test_a_folder_of_several_files(tmp_path):
    dense = with_zeros(Network(1))
    state = safetensors.torch.load_file(written(dense, tmp_path / "whole.safetensors"))
    (tmp_path / "whole.safetensors").unlink()
    names = sorted(state)
    for number, part in enumerate((names[:5], names[5:])):
        safetensors.torch.save_file({name: state[name] for name in part}, tmp_path / f"model-{number}.safetensors")
    check(ts.from_pruned(Network(2), str(tmp_path)), dense)


def test_bitmasks_of_two_of_four_with_zeros_that_exist(tmp_path):
    dense = nn.Sequential(nn.Linear(10 * 4, 6)).bfloat16()
    present = torch.zeros(6, 10, 4, dtype=torch.bool).scatter_(2, torch.rand(6, 10, 4).argsort(-1)[..., :2], True).view(6, 40)
    dense[0].weight.data *= present
    dense[0].weight.data[0] = 0.0
    state = {f"0.{part}": tensor for part, tensor in bitmask(dense[0].weight.data, present, column=True).items()}
    safetensors.torch.save_file(state | {"0.bias": dense[0].bias.data}, tmp_path / "model.safetensors")
    model = ts.from_pruned(nn.Sequential(nn.Linear(40, 6)).bfloat16(), tmp_path / "model.safetensors", pattern="nm:2:4")
    assert torch.equal(model[0].topology.mask(), present)
    assert torch.equal(model[0].to_dense(), dense[0].weight)


def test_the_library_of_compressed_tensors(tmp_path):
    compressors = pytest.importorskip("compressed_tensors.compressors.sparse_compressors", reason="compressed-tensors 0.15 or older")
    config = pytest.importorskip("compressed_tensors.config")
    dense = with_zeros(Network(1))
    names = ["hidden", "head", "last"]
    with torch.no_grad():
        for name in names:
            dense.get_submodule(name).weight.data[0] = 0.0
    compressor = compressors.BitmaskCompressor(config=config.BitmaskConfig())
    state = compressor.compress(dict(dense.state_dict()), compression_targets=set(names))
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    check(ts.from_pruned(Network(2), tmp_path), dense)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-50]), "is no whole safetensors file: .*; fetch it again"),
        (lambda path: path.write_bytes(path.read_bytes()[:5]), "is no whole safetensors file"),
        (lambda path: path.write_bytes(b""), "is no whole safetensors file"),
        (
            lambda path: changed(path, "hidden.bitmask", lambda bits: bits[:, 1:].contiguous()),
            r"has the shape \(16, 15\), which is none of",
        ),
        (lambda path: changed(path, "hidden.compressed", lambda values: values[1:].clone()), "connections, and there are"),
        (lambda path: changed(path, "hidden.compressed", lambda values: values.to(torch.int8)), "are quantised to torch.int8"),
        (lambda path: changed(path, "hidden.shape", None), "has a bitmask for 'hidden.weight' and lacks its shape"),
    ],
)
def test_damaged_files_change_nothing(damage, said, tmp_path):
    path = written(with_zeros(Network(1)), tmp_path / "model.safetensors")
    damage(path)
    model = Network(2)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=said) as caught:
        ts.from_pruned(model, path)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def changed(path, name, change):
    state = safetensors.torch.load_file(path)
    tensor = state.pop(name)
    if change:
        state[name] = change(tensor)
    safetensors.torch.save_file(state, path)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"0")
    with pytest.raises(ValueError, match=r"expected a .safetensors or .onnx file, .* pass torch.load\(path, weights_only=True\)"):
        ts.from_pruned(Network(), tmp_path / "model.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"or a folder with .safetensors files"):
        ts.from_pruned(Network(), tmp_path / "empty")


# ONNX


@pytest.fixture
def onnx():
    return pytest.importorskip("onnx")


def graph(onnx, dense, transposed, sparse=None, names=str, product="Gemm"):
    """A model as exporters write it: each weight under names(its name), turned where the operator wants that."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    nodes, initialisers, sparse_ones, at = [], [], [], "x"

    def put(name, array):
        array = np.ascontiguousarray(array)
        present = None if sparse is None else sparse(array)
        if present is None:
            initialisers.append(numpy_helper.from_array(array, name))
            return name
        keys = np.flatnonzero(present)
        indices = keys if array.ndim == 4 else np.stack(np.unravel_index(keys, array.shape), 1)
        values = numpy_helper.from_array(array.ravel()[keys], name)
        sparse_ones.append(helper.make_sparse_tensor(values, numpy_helper.from_array(indices.astype(np.int64), f"{name}_at"), array.shape))
        return name

    for number, (name, module) in enumerate(dense.named_children()):
        weight, inputs, out = module.weight.detach().numpy(), [at], f"y{number}"
        if isinstance(module, nn.Conv2d):
            inputs += [put(names(f"{name}.weight"), weight), put(f"{name}.bias", module.bias.detach().numpy())]
            nodes += [helper.make_node("Conv", inputs, [out], group=2, pads=[1] * 4), helper.make_node("Flatten", [out], [f"{out}f"])]
            at = f"{out}f"
            continue
        matrix = put(names(f"{name}.weight"), weight.T if transposed else weight)
        bias = [] if module.bias is None else [put(f"{name}.bias", module.bias.detach().numpy())]
        if product == "Gemm":
            nodes.append(helper.make_node("Gemm", [at, matrix, *bias], [out], transB=int(not transposed)))
        else:
            if not transposed:
                nodes.append(helper.make_node("Transpose", [matrix], [f"{matrix}T"], perm=[1, 0]))
                matrix = f"{matrix}T"
            nodes.append(helper.make_node("MatMul", [at, matrix], [f"{out}p" if bias else out]))
            if bias:
                nodes.append(helper.make_node("Add", [*bias, f"{out}p"], [out]))
        at = out
    value = helper.make_tensor_value_info
    whole = helper.make_graph(
        nodes, "g", [value("x", 1, [None, 2, 4, 4])], [value(at, 1, None)], initialisers, sparse_initializer=sparse_ones
    )
    return helper.make_model(whole)


@pytest.mark.parametrize("product", ["Gemm", "MatMul"])
@pytest.mark.parametrize("transposed", [False, True])
def test_dense_zeros_of_onnx_models_however_they_lie(onnx, transposed, product):
    dense = with_zeros(Network(1))
    check(ts.from_pruned(Network(2), graph(onnx, dense, transposed, product=product)), dense)


def test_names_that_the_exporter_has_lost_are_told_by_the_bias(onnx):
    dense = with_zeros(Network(1), but=["last"])
    numbers = iter(range(100))
    model = graph(onnx, dense, True, names=lambda name: name if name.startswith(("conv", "last")) else f"onnx::MatMul_{next(numbers)}")
    check(ts.from_pruned(Network(2), model), dense)


def test_where_no_name_tells_order_and_shapes_do_and_that_is_said(onnx):
    dense = with_zeros(Network(1))
    model = graph(onnx, dense, True, names=lambda name: "onnx::MatMul_9" if name.startswith("last") else name)
    with pytest.warns(
        UserWarning, match="names of the source say nothing of 1 tensors .*: 'last.weight' is 'onnx::MatMul_9.weight'. Compare"
    ):
        check(ts.from_pruned(Network(2), model), dense)
    check(ts.from_pruned(Network(2), model, names={"last": "onnx::MatMul_9"}), dense)


def test_tensors_that_are_alike_are_written_once(onnx):
    dense = with_zeros(Network(1))
    dense.hidden.bias.data.zero_()
    dense.head.bias.data.zero_()
    model = graph(onnx, dense, True, product="MatMul")
    names = [one.name for one in model.graph.initializer]
    del model.graph.initializer[names.index("head.bias")]
    model.graph.node.insert(0, onnx.helper.make_node("Identity", ["hidden.bias"], ["head.bias"]))
    check(ts.from_pruned(Network(2), model), dense)


def test_sparse_initialisers_with_zeros_that_exist(onnx):
    dense = with_zeros(Network(1))
    stored = {}

    def present(array):
        if array.ndim < 2:
            return None
        there = array != 0
        there.ravel()[np.flatnonzero(~there.ravel())[:3]] = True
        stored[array.shape] = there
        return there

    model = ts.from_pruned(Network(2), graph(onnx, dense, False, sparse=present))
    for layer in topology_layers(model).values():
        assert np.array_equal(layer.topology.mask().numpy(), stored[layer.geometry.weight_shape].reshape(layer.topology.shape))
        assert int((layer.values == 0).sum()) == 3
    assert torch.equal(model.hidden.to_dense(), dense.hidden.weight)
    assert torch.equal(model.conv.to_dense(), dense.conv.weight)


@pytest.mark.parametrize("sparse", [False, True])
def test_what_this_library_exports(onnx, sparse, tmp_path):
    pytest.importorskip("onnxscript")
    dense = with_zeros(Network(1), 0.3, but=["last"])  # such that every neuron is of use: the others are not exported
    ts.export_onnx(dense, tmp_path / "model.onnx", torch.randn(2, 2, 4, 4), sparse_initialisers=sparse)
    check(ts.from_pruned(Network(2), tmp_path / "model.onnx"), dense)


@pytest.mark.filterwarnings("ignore")  # torch says that this exporter is old
@pytest.mark.parametrize("build", [Network, Sequences])
def test_the_exporter_of_the_time_of_deepsparse(onnx, build, tmp_path):
    dense, example = with_zeros(build(1)), torch.randn(2, 2, 4, 4) if build is Network else torch.randn(2, 5, 6)
    torch.onnx.export(dense, (example,), tmp_path / "model.onnx", dynamo=False, opset_version=13)
    model = ts.from_pruned(build(2), tmp_path / "model.onnx")
    check(model, dense)
    torch.testing.assert_close(model(example), dense(example))


def test_bad_onnx_models_are_told(onnx, tmp_path):
    dense, path = with_zeros(Network(1)), tmp_path / "model.onnx"
    proto = graph(onnx, dense, True)

    def refused(said):
        model = Network(2)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=said) as caught:
            ts.from_pruned(model, path)
        assert "\n" not in str(caught.value)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    path.write_bytes(proto.SerializeToString()[:-100])
    refused("is no whole ONNX file")
    other = copy.deepcopy(proto)
    other.graph.node[0].op_type = "QLinearConv"
    path.write_bytes(other.SerializeToString())
    refused(r"has quantised weights \(QLinearConv\)")
    other = copy.deepcopy(proto)
    other.graph.initializer.remove(next(one for one in other.graph.initializer if one.name == "last.weight"))
    path.write_bytes(other.SerializeToString())
    refused("the source has nothing for 'last.weight'")
    other = copy.deepcopy(proto)
    other.graph.initializer[0].raw_data = other.graph.initializer[0].raw_data[:-4]
    path.write_bytes(other.SerializeToString())
    refused("initialiser 'conv.weight' of the ONNX model cannot be read")
    other = graph(onnx, dense, True, sparse=lambda array: array != 0 if array.ndim == 2 else None)
    other.graph.sparse_initializer[0].indices.raw_data = b"\xff" * len(other.graph.sparse_initializer[0].indices.raw_data)
    path.write_bytes(other.SerializeToString())
    refused("sparse initialiser 'hidden.weight' of shape .* damaged")
