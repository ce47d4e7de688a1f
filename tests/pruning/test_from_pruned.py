"""from_pruned(): exactly the connections and values that a model or a state of others has; on any error the model is as it was."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass
from torch.sparse.semi_structured import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS

import truesparse as ts
from truesparse.nn import topology_layers

pytestmark = pytest.mark.filterwarnings(
    "ignore:Sparse .* tensor support is in beta", "ignore:The PyTorch API of SparseSemi", "ignore:Sparse invariant checks"
)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4, 9), nn.ReLU(), nn.Linear(9, 3)
    ).eval()


def images():
    return torch.randn(5, 4, 6, 6, generator=torch.Generator().manual_seed(1))


def with_zeros(model, seed=0):
    """The dense model with zeros in its first two layers, and where they are not."""
    generator = torch.Generator().manual_seed(seed)
    present = {}
    for name in ("0", "4"):
        weight = model.get_submodule(name).weight
        present[name] = torch.rand(weight.shape, generator=generator) < 0.4
        weight.data *= present[name]
    return present


def check(model, present, weights):
    """That `model` has these connections with these values, and stays dense elsewhere."""
    layers = topology_layers(model)
    assert layers.keys() == present.keys()
    for name, layer in layers.items():
        assert torch.equal(layer.topology.mask(), present[name].flatten(1))
        assert torch.equal(layer.to_dense(), weights[name])
        assert torch.equal(layer.values, weights[name].flatten()[layer.topology.keys])


def weights_of(model):
    return {name: model.get_submodule(name).weight.detach().clone() for name in ("0", "4")}


# The model itself


def test_masks_of_torch_prune_with_zeros_that_exist():
    model = network()
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.random_unstructured(model[4], "weight", 0.8)
    prune.l1_unstructured(model[4], "weight", 0.1)  # a container of two
    prune.ln_structured(model[6], "weight", 1, n=2, dim=1)
    prune.random_unstructured(model[4], "bias", 0.5)
    with torch.no_grad():
        model[4].weight_orig[:3] = 0.0
        model[4].bias_orig[0] = 0.0
    expected = model(images()).detach()
    weights = {name: model.get_submodule(name).weight.detach().clone() for name in ("0", "4", "6")}
    present = {name: model.get_submodule(name).weight_mask.bool().clone() for name in ("0", "4", "6")}
    bias = model[4].bias.detach().clone()
    assert ts.from_pruned(model) is model
    check(model, present, weights)
    assert (model[4].values == 0).any(), "zeros that the mask keeps are connections"
    assert torch.equal(model[4].bias, bias)
    torch.testing.assert_close(model(images()), expected)
    assert not any("orig" in name or "mask" in name for name in model.state_dict())


def test_a_mask_that_takes_nothing_leaves_an_ordinary_layer():
    model = network()
    prune.identity(model[6], "weight")
    prune.random_unstructured(model[4], "weight", 0.5)
    weight = model[6].weight.detach().clone()
    weight[0, 0] = model[6].weight_orig.data[0, 0] = 0.0
    ts.from_pruned(model)
    assert type(model[6]) is nn.Linear
    assert not model[6]._forward_pre_hooks
    assert torch.equal(model[6].weight, weight)


class Masked(nn.Module):
    """As the FakeSparsity of torch.ao.pruning."""

    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight):
        return self.mask * weight


class Soft(nn.Module):
    def forward(self, weight):
        return torch.nn.functional.softshrink(weight, 0.1)


def test_parametrizations_that_mask_and_others():
    model = network()
    mask = (torch.rand(9, 24) < 0.5).float()
    parametrize.register_parametrization(model[4], "weight", Masked(mask))
    parametrize.register_parametrization(model[0], "weight", Soft())
    model[4].parametrizations.weight.original.data[:, :4] = 0.0
    weights = weights_of(model)
    ts.from_pruned(model)
    assert type(model[4]) is ts.SparseLinear
    check(model, {"0": weights["0"] != 0, "4": mask.bool()}, weights)


def test_the_sparsifier_of_torch():
    sparsifier = pytest.importorskip("torch.ao.pruning").WeightNormSparsifier(sparsity_level=0.6, sparse_block_shape=(1, 4))
    model = network()
    sparsifier.prepare(model, [{"tensor_fqn": "4.weight"}])
    sparsifier.step()
    mask, weight = model[4].parametrizations.weight[0].mask.bool().clone(), model[4].weight.detach().clone()
    ts.from_pruned(model)
    check(model, {"4": mask}, {"4": weight})


def test_norms_of_weights_are_refused_by_name():
    model = network()
    nn.utils.parametrizations.weight_norm(model[4])
    prune.random_unstructured(model[0], "weight", 0.5)
    with pytest.raises(TypeError, match=r"layer '4' .* by weight_norm"):
        ts.from_pruned(model)
    assert hasattr(model[0], "weight_mask")
    ts.from_pruned(model, exclude=["4"])
    assert list(topology_layers(model)) == ["0"]
    assert hasattr(model[4], "parametrizations")


def test_opened_modules_recurrent_ones_and_what_is_tied():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.memory, self.head = nn.Embedding(11, 8), nn.LSTM(8, 8), nn.Linear(8, 11, bias=False)
            self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
            self.head.weight = self.words.weight

        def forward(self, tokens):
            return self.head(self.block(self.memory(self.words(tokens))[0]))

    model, tokens = Model(), torch.randint(11, (4, 3))
    prune.random_unstructured(model.memory, "weight_hh_l0", 0.5)
    prune.random_unstructured(model.block.self_attn, "in_proj_weight", 0.5)
    with torch.no_grad():
        model.block.self_attn.in_proj_weight_orig[:8] = 0.0
    kept = int(model.block.self_attn.in_proj_weight_mask[:8].sum())
    ts.from_pruned(model)  # the table and the head are full
    assert set(topology_layers(model)) == {"memory.hh_l0", *(f"block.self_attn.{part}_proj" for part in "qkv")}
    assert model.block.self_attn.q_proj.topology.nnz == kept, "zeros that exist survive the opening"
    assert not model.block.self_attn.q_proj.values.any()
    assert model.head.weight is model.words.weight
    assert model(tokens).isfinite().all()
    tied = Model()
    state = tied.state_dict()
    state["words.weight"] = state["head.weight"] = torch.where(torch.rand(11, 8) < 0.5, state["head.weight"], 0.0)
    ts.from_pruned(tied, state)
    assert tied.words.table is tied.head
    assert torch.equal(tied.head.to_dense(), state["head.weight"])


def test_dense_zeros_and_a_model_that_is_itself_a_layer():
    model = network()
    present, weights = with_zeros(model), weights_of(model)
    ts.from_pruned(model)
    check(model, present, weights)
    layer = nn.Linear(5, 7)
    prune.random_unstructured(layer, "weight", 0.5)
    mask = layer.weight_mask.bool()
    new = ts.from_pruned(layer)
    assert torch.equal(new.topology.mask(), mask)


@pytest.mark.parametrize("layout", ["csr", "coo"])
def test_sparse_tensors_as_weights_of_the_model(layout):
    model = network()
    present, weights = with_zeros(model), weights_of(model)
    to = {"csr": torch.Tensor.to_sparse_csr, "coo": torch.Tensor.to_sparse}[layout]
    model[4].weight = nn.Parameter(to(model[4].weight.detach()), requires_grad=False)
    ts.from_pruned(model)
    check(model, present, weights)
    assert not model[4].values.requires_grad


def test_half_of_a_layer_of_zeros_and_a_layer_of_nothing_else():
    model = network()
    model[4].weight.data.zero_()
    ts.from_pruned(model)
    assert model[4].topology.nnz == 0
    assert torch.equal(model(images()), model(images()))


# States


def stored(weight, present, layout):
    """A weight [rows, ...] as a tensor of that layout, whose stored entries are `present`."""
    weight, present = weight.detach().flatten(1), present.flatten(1)
    ones = {
        "coo": lambda one: one.to_sparse(),
        "csr": lambda one: one.to_sparse_csr(),
        "csc": lambda one: one.to_sparse_csc(),
        "numpy": lambda one: one.numpy(),
    }[layout]
    if layout == "numpy":
        return weight.numpy()
    where = ones(present.to(weight))
    if layout == "coo":
        where = where.coalesce()
        return torch.sparse_coo_tensor(where.indices(), weight[tuple(where.indices())], weight.shape)
    rows = layout == "csr"
    outer, inner = (where.crow_indices(), where.col_indices()) if rows else (where.ccol_indices(), where.row_indices())
    of_each = torch.repeat_interleave(torch.arange(len(outer) - 1), outer.diff())
    values = weight[of_each, inner] if rows else weight[inner, of_each]
    return torch.sparse_compressed_tensor(outer, inner, values, weight.shape, layout=where.layout)


@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "numpy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layouts_of_torch(layout, dtype):
    dense = network(1).to(dtype)
    present = with_zeros(dense)
    if layout != "numpy":  # a zero that is stored
        for name in present:
            at = tuple(present[name].nonzero()[0])
            dense.get_submodule(name).weight.data[at] = 0.0
    state = dense.state_dict()
    state |= {f"{name}.weight": stored(state[f"{name}.weight"], present[name], layout) for name in present}
    model = network(2).to(dtype)
    head = model[6].weight
    ts.from_pruned(model, state)
    check(model, present, weights_of(dense))
    assert model[6].weight is head, "what stays dense is loaded in place"
    for name in ("1.weight", "1.running_mean", "6.weight", "6.bias", "4.bias", "0.bias"):
        assert torch.equal(model.state_dict()[name], dense.state_dict()[name])
    torch.testing.assert_close(model(images().to(dtype)), dense(images().to(dtype)))


@pytest.mark.parametrize("layout", ["bsr", "bsc"])
def test_blocks_exist_whole(layout):
    dense = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
    present = torch.kron(torch.rand(4, 3) < 0.5, torch.ones(2, 2)).bool()
    dense[0].weight.data *= present
    at = tuple(present.nonzero()[0])
    dense[0].weight.data[at] = 0.0
    to = {"bsr": torch.Tensor.to_sparse_bsr, "bsc": torch.Tensor.to_sparse_bsc}[layout]
    state = dense.state_dict() | {"0.weight": to(dense[0].weight.detach(), (2, 2))}
    model = ts.from_pruned(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)), state, pattern="block:2")
    check(model, {"0": present}, {"0": dense[0].weight.detach()})
    assert model[0].pattern == ts.Block(2)


def test_rows_that_share_columns():
    dense = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
    present = (torch.rand(2, 6).argsort(1) < 3).repeat_interleave(4, 0)
    dense[0].weight.data *= present
    model = ts.from_pruned(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)), dense.state_dict(), pattern="shared-fan-in:4")
    check(model, {"0": present}, {"0": dense[0].weight.detach()})
    assert model[0].pattern == ts.SharedFanIn(4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_semi_structured_tensors_of_cutlass(dtype):
    whole = 2 if dtype == torch.float32 else 4  # in float32 it is one of two
    present = torch.zeros(32, 64 // whole, whole, dtype=torch.bool)
    present.scatter_(2, torch.rand(present.shape).argsort(-1)[..., : whole // 2], True)
    present = present.view(32, 64)
    weight = torch.randn(32, 64).to(dtype) * present
    packed, meta = sparse_semi_structured_from_dense_cutlass(weight)
    state = {
        "weight": SparseSemiStructuredTensorCUTLASS(weight.shape, packed, meta, None, None, None),
        "bias": torch.zeros(32, dtype=dtype),
    }
    new = ts.from_pruned(nn.Linear(64, 32).to(dtype), state, pattern="nm:1:2" if whole == 2 else "nm:2:4")
    assert torch.equal(new.to_dense(), weight)
    assert torch.equal(new.topology.mask(), present)


def test_damaged_sparse_tensors_are_told():
    values, columns = torch.rand(3), torch.tensor([0, 1, 70])
    damaged = torch.sparse_csr_tensor(torch.tensor([0, 1, 2, 3]), columns, values, (3, 5), check_invariants=False)
    with pytest.raises(ValueError, match=r"'weight' of the source is damaged: .*col_indices"):
        ts.from_pruned(nn.Linear(5, 3), {"weight": damaged, "bias": torch.zeros(3)})


def test_semi_structured_tensors_that_only_a_gpu_can_read_are_named():
    packed = torch.zeros(32 * 32 + 32 * 4, dtype=torch.float16)
    tensor = SparseSemiStructuredTensorCUSPARSELT(torch.Size([32, 64]), packed, None, None, None, None)
    with pytest.raises(ValueError, match=r"'weight' of the source is a SparseSemiStructuredTensorCUSPARSELT, .* only a GPU"):
        ts.from_pruned(nn.Linear(64, 32).half(), {"weight": tensor, "bias": torch.zeros(32).half()})


def test_states_of_torch_prune_and_of_parametrized_models():
    pruned = network(1)
    prune.random_unstructured(pruned[0], "weight", 0.5)
    mask = (torch.rand(9, 24) < 0.5).float()
    parametrize.register_parametrization(pruned[4], "weight", Masked(mask))
    pruned[4].parametrizations.weight.original.data[0] = 0.0
    weights, present = weights_of(pruned), {"0": pruned[0].weight_mask.bool(), "4": mask.bool()}
    model = ts.from_pruned(network(2), pruned.state_dict())
    check(model, present, weights)
    torch.testing.assert_close(model(images()), pruned(images()))


def test_names_that_differ():
    dense = network(1)
    present = with_zeros(dense)
    inside = {f"module.{name}": tensor for name, tensor in dense.state_dict().items()}
    check(ts.from_pruned(network(2), inside, names={"": "module"}), present, weights_of(dense))
    renamed = {f"net.{name}" if name.startswith("4.") else name: tensor for name, tensor in dense.state_dict().items()}
    check(ts.from_pruned(network(2), renamed, names={"4": "net.4"}), present, weights_of(dense))


def test_values_are_widened_and_never_narrowed():
    dense = network(1).half()
    present = with_zeros(dense)
    model = ts.from_pruned(network(2), dense.state_dict())
    assert torch.equal(model[4].to_dense(), dense[4].weight.float())
    check(model, present, {name: weight.float() for name, weight in weights_of(dense).items()})


# Bad input


def broken(change):
    dense = network(1)
    with_zeros(dense)
    state = dense.state_dict()
    change(state)
    return state


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (lambda: broken(lambda state: state.update({"4.weight": torch.zeros(24, 9)})), r"'4.weight' .* shape \(24, 9\), and .* \(9, 24\)"),
        (lambda: broken(lambda state: state.pop("6.bias")), "the source has nothing for '6.bias': pass names="),
        (lambda: broken(lambda state: state.update(fc=torch.zeros(2))), "'fc' of the source match nothing of the model"),
        (lambda: broken(lambda state: state["4.weight"].fill_(torch.nan)), "'4.weight' holds NaN"),
        (
            lambda: broken(lambda state: state.update({"4.weight": torch.rand(9, 24, dtype=torch.float64)})),
            "torch.float64 and .* cannot hold its values",
        ),
        (
            lambda: broken(lambda state: state.update({"4.weight_orig": state.pop("4.weight"), "4.weight_mask": torch.ones(2, 3)})),
            r"'4.weight' of the source has the shape \(9, 24\), and its mask \(2, 3\)",
        ),
        (
            lambda: broken(lambda state: state.update({"4.parametrizations.weight.original0": state.pop("4.weight")})),
            "'4.weight' of the source is made by a parametrization with original0",
        ),
        (
            lambda: broken(lambda state: state.update({"4.bitmask": torch.zeros(9, 3), "4.compressed": state.pop("4.weight")})),
            "lacks its shape",
        ),
        (lambda: network(1).state_dict(), "found nothing that is pruned"),
        (lambda: broken(lambda state: state.update({"4.weight": np.array(["a"])})), "no array of real numbers"),
        (lambda: 7, "expected a state_dict, .* got int"),
        (lambda: network(1), "got Sequential; of another module pass its state_dict"),
        (lambda: "weights.pt", "there is no file or folder weights.pt"),
    ],
)
def test_bad_sources_are_told_and_change_nothing(source, said):
    model, source = network(), source()
    modules, before = list(model.modules()), copy.deepcopy(model.state_dict())
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=said) as caught:
        ts.from_pruned(model, source)
    assert "\n" not in str(caught.value)
    assert list(model.modules()) == modules
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"names": {"fc": "4"}}, "names says 'fc', which matches nothing of the model; there are: '0.weight'"),
        ({"names": {"4": "fc"}}, "names says 'fc', which matches nothing of the source"),
        ({"pattern": "block:3"}, "layer '[04]': "),
        ({"exclude": ["fc"]}, "exclude names 'fc', which match no module"),
    ],
)
def test_bad_arguments_are_told_and_change_nothing(arguments, said):
    model, state = network(), broken(lambda state: None)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=said):
        ts.from_pruned(model, state, **arguments)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="pass the source too"):
        ts.from_pruned(model, names={"0": "0"})
    with pytest.raises(ValueError, match="the model has sparse layers already"):
        ts.from_pruned(ts.sparsify(network(), 0.5), state)


def test_exclude_takes_modules_classes_and_names_and_loads_them():
    dense = network(1)
    present = with_zeros(dense)
    for exclude in ("4", nn.Linear):
        model = ts.from_pruned(network(2), dense.state_dict(), exclude=[exclude])
        check(model, {"0": present["0"]}, weights_of(dense))
        assert torch.equal(model[4].weight, dense[4].weight)
    model = network(2)
    ts.from_pruned(model, dense.state_dict(), exclude=[model[4]])
    assert list(topology_layers(model)) == ["0"]


def test_what_comes_out_trains_saves_and_loads(tmp_path):
    dense = network(1)
    with_zeros(dense)
    model = ts.from_pruned(network(2), dense.state_dict()).train()
    optimizer = torch.optim.Adam(model.parameters())
    rewirer = ts.Rewirer(model, optimizer, ts.SET(), every=2)
    for _ in range(4):
        model(images()).square().mean().backward()
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
    ts.save(model, tmp_path / "model.safetensors")
    again = ts.load(tmp_path / "model.safetensors", ts.sparsify(network(3), 0.5, exclude=["6"]))
    assert torch.equal(again.eval()(images()), model.eval()(images()))
