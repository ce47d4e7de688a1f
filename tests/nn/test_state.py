"""Checkpoints and copies are whole: values and topology travel together, and what does not fit is refused."""

import copy
import io
import pickle

import pytest
import torch
from oracles import images, network
from torch.optim.swa_utils import AveragedModel

from truesparse import (
    NM,
    FanIn,
    MaskedConv2d,
    MaskedLinear,
    Rewirer,
    RigL,
    SparseConv2d,
    SparseLinear,
    Topology,
    Unstructured,
    rewire,
    sparsify,
)

MAKERS = {
    "linear": lambda seed, sparsity=0.7: SparseLinear(9, 6, sparsity=sparsity, generator=torch.Generator().manual_seed(seed)),
    "convolution": lambda seed, sparsity=0.7: SparseConv2d(2, 4, 3, sparsity=sparsity, generator=torch.Generator().manual_seed(seed)),
    "masked linear": lambda seed, sparsity=0.7: MaskedLinear(9, 6, sparsity=sparsity, generator=torch.Generator().manual_seed(seed)),
    "masked convolution": lambda seed, sparsity=0.7: MaskedConv2d(
        2, 4, 3, sparsity=sparsity, generator=torch.Generator().manual_seed(seed)
    ),
}
makers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def example(layer):
    return torch.randn(3, 9) if hasattr(layer, "in_features") else torch.randn(3, 2, 5, 5)


def same(one, other):
    """Same topology, values, bias and output."""
    assert one.topology.equal(other.topology)
    assert torch.equal(one.values, other.values)
    x = example(one)
    assert torch.equal(one(x), other(x))


def saved(thing):
    """`thing` through torch.save and torch.load."""
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@makers
@pytest.mark.parametrize("sparsity", [0.7, 0.4, 1.0, 0.0])
@pytest.mark.parametrize("assign", [False, True])
def test_loading_another_topology(make, sparsity, assign):
    source, target = make(1, sparsity), make(2)
    target(example(target))  # plans of the old topology are in place
    target(example(target)).sum().backward()
    parameter = target.parameter
    state = copy.deepcopy(source.state_dict())
    target.load_state_dict(state, assign=assign)
    same(source, target)
    assert (target.parameter is parameter) != assign
    target.zero_grad()
    target(example(target)).sum().backward()
    assert target.parameter.grad.shape == target.parameter.shape
    if not assign:
        with torch.no_grad():
            target.parameter.add_(1)
        same_again = make(3)
        same_again.load_state_dict(state)
        same(source, same_again)


@makers
def test_a_state_dict_can_be_read_without_running_code(make):
    file = io.BytesIO()
    torch.save(make(1).state_dict(), file)
    file.seek(0)
    target = make(2)
    target.load_state_dict(torch.load(file, weights_only=True))
    same(make(1), target)


def test_loading_leaves_a_layer_with_the_same_topology_alone():
    source, target = MAKERS["linear"](1), MAKERS["linear"](1)
    other = SparseLinear.from_dense(torch.nn.Linear(9, 6), target.topology)
    topology, parameter = other.topology, other.values
    other.load_state_dict(source.state_dict())
    assert other.topology is topology
    assert other.values is parameter
    assert torch.equal(other.values, source.values)


def test_a_loaded_topology_is_not_shared():
    source, target = MAKERS["linear"](1), MAKERS["linear"](2)
    state = source.state_dict()
    target.load_state_dict(state)
    expected = target.topology.keys.clone()
    state["indices"].zero_()
    assert torch.equal(target.topology.keys, expected)


def corrupt(name, change):
    state = copy.deepcopy(MAKERS["linear"](1).state_dict())
    state[name] = change(state[name])
    return state


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("state", "says"),
    [
        (corrupt("values", lambda values: values[:-1]), "SparseLinear: expected 17 values, one for each connection, got shape"),
        (corrupt("values", lambda values: values[None]), r"expected 17 values, one for each connection, got shape \(1, 17\)"),
        (corrupt("indices", lambda indices: indices.flip(0)), "SparseLinear: columns must ascend within each row"),
        (corrupt("indices", lambda indices: indices + 9), r"SparseLinear: columns lie in \[0, 9\)"),
        (corrupt("indices", lambda indices: indices.long()), "SparseLinear: indices must be int32, got torch.int64"),
        (corrupt("indptr", lambda indptr: indptr[:-1]), r"SparseLinear: indptr must have rows \+ 1 = 7 entries, got 6"),
        (corrupt("indptr", lambda indptr: indptr - 1), "SparseLinear: indptr must rise from 0"),
    ],
)
def test_corrupt_arrays_are_refused_and_nothing_changes(state, says, strict):
    layer = MAKERS["linear"](2)
    before, topology = layer.values.detach().clone(), layer.topology
    with pytest.raises(RuntimeError, match=says):
        layer.load_state_dict(state, strict=strict)
    assert torch.equal(layer.values, before)
    assert layer.topology is topology


def test_a_topology_that_breaks_the_pattern_is_refused():
    target = SparseLinear(8, 6, pattern=FanIn(), sparsity=0.5)
    with pytest.raises(RuntimeError, match=r"SparseLinear: FanIn\(\) needs the same count, give or take one"):
        target.load_state_dict(SparseLinear(8, 6, sparsity=0.5).state_dict())
    model = torch.nn.Sequential(SparseLinear(8, 6, pattern=NM(2, 4)))
    with pytest.raises(RuntimeError, match=r"0: NM\(n=2, m=4\) cannot have 48 connections"):
        model.load_state_dict(torch.nn.Sequential(SparseLinear(8, 6, sparsity=0.0)).state_dict())


@pytest.mark.parametrize("missing", [("values",), ("indptr",), ("indices",), ("indptr", "indices"), ("values", "indices")])
def test_half_a_layer_is_refused_and_never_mixed(missing):
    state = {name: array for name, array in MAKERS["linear"](1).state_dict().items() if name not in missing}
    present = ", ".join(name for name in ("indptr", "indices", "values") if name not in missing)
    for strict in (True, False):
        target = MAKERS["linear"](2)
        shared = SparseLinear.from_dense(target.dense_module(), target.topology)
        keys, values = target.topology.keys.clone(), target.values.detach().clone()
        with pytest.raises(RuntimeError, match=f"SparseLinear: expected indptr, indices and values together, got only {present}"):
            target.load_state_dict(state, strict=strict)
        assert torch.equal(target.topology.keys, keys)
        assert torch.equal(target.values, values)
        assert torch.equal(shared.topology.keys, keys)


def test_strict_errors():
    state = MAKERS["linear"](1).state_dict()
    target = MAKERS["linear"](2)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*mystery"):
        target.load_state_dict({**state, "mystery": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"Missing key.*bias"):
        target.load_state_dict({name: array for name, array in state.items() if name != "bias"})
    assert target.load_state_dict({}, strict=False).missing_keys == ["values", "bias", "indptr", "indices"]
    with pytest.raises(RuntimeError, match=r"Missing key.*values"):
        target.load_state_dict(torch.nn.Linear(9, 6).state_dict())


@makers
@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), saved], ids=["deepcopy", "pickle", "save"]
)
def test_copies(make, again):
    layer = make(1)
    layer.parameter.requires_grad_(False)
    layer.train(False)
    layer(example(layer))
    other = again(layer)
    same(layer, other)
    assert not other.parameter.requires_grad
    assert not other.training
    with torch.no_grad():
        other.parameter.add_(1)
    assert not torch.equal(layer.parameter, other.parameter)


@makers
def test_to_another_dtype(make):
    layer = make(1)
    topology = layer.topology
    assert layer.double() is layer
    assert layer.topology is topology
    assert layer.parameter.dtype == torch.float64
    assert layer(example(layer).double()).dtype == torch.float64
    layer.to(torch.float32)
    same(layer, make(1))


def test_to_a_dtype_without_kernel_says_so():
    layer = MAKERS["linear"](1).to(torch.float16)
    with pytest.raises(NotImplementedError, match="no native kernel for a matrix on cpu in float16; there are: native on cpu"):
        layer(torch.zeros(2, 9, dtype=torch.float16))


def test_a_swapped_buffer_makes_a_new_topology():
    layer = MAKERS["linear"](1)
    topology = layer.topology
    layer.indices = layer.indices.clone()
    assert layer.topology is not topology
    assert layer.topology.equal(topology)
    assert layer.topology is layer.topology
    masked = MAKERS["masked linear"](1)
    masked.mask = torch.ones_like(masked.mask)
    assert masked.topology.nnz == 54
    assert masked.topology is masked.topology


def right(layer, x):
    """Forward and gradient are those of the dense weight that the layer now claims."""
    x = x.clone().requires_grad_()
    y = layer(x)
    dense = torch.nn.functional.linear(x.detach(), layer.to_dense(), layer.bias)
    torch.testing.assert_close(y, dense)
    y.sum().backward()
    torch.testing.assert_close(x.grad, layer.to_dense().sum(0).expand_as(x))


def test_a_masked_twin_follows_a_mask_that_is_written_in_place():
    model = MaskedLinear(600, 40, sparsity=0.5, generator=torch.Generator().manual_seed(1))
    average = AveragedModel(model)
    x = torch.randn(64, 600)
    average.update_parameters(model)
    rewire(model, None, Unstructured().random((40, 600), model.topology.nnz))
    average.update_parameters(model)  # copies every buffer into the old one
    assert average.module.topology.equal(model.topology)
    right(average.module, x)


def test_memory_that_moves():
    layer = SparseLinear(512, 512, sparsity=0.5)
    x = torch.randn(3, 512)
    right(layer, x)
    before = layer.indices.data_ptr()
    layer.share_memory()
    assert layer.indices.data_ptr() != before
    right(layer, x)


def test_a_graph_that_is_alive_while_the_number_of_connections_changes():
    layer = SparseLinear(9, 6, sparsity=0.7)
    x = torch.randn(4, 9)
    alive = layer(x)
    other = SparseLinear(9, 6, sparsity=0.2)
    layer.load_state_dict(other.state_dict())
    layer(x).sum().backward()
    assert layer.values.grad.shape == (layer.topology.nnz,)
    expected = torch.autograd.grad(other(x).sum(), other.values)[0]
    torch.testing.assert_close(layer.values.grad, expected)
    assert alive.shape == (4, 6)


def test_a_model_with_a_rewirer_can_be_copied_and_saved():
    model = sparsify(network(), 0.7)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rewirer = Rewirer(model, optimizer, RigL(), every=1)
    rewirer.attach()
    for other in (copy.deepcopy(model), saved(model), pickle.loads(pickle.dumps(model))):
        x = images()
        model.eval(), other.eval()
        assert torch.equal(model(x), other(x))
        other(x).sum().backward()
        assert rewirer._recorder.of("0")[-1].empty, "a copy reports to the Rewirer of the original"
        optimizer_of_copy = torch.optim.SGD(other.parameters(), 0.1)
        own = Rewirer(other, optimizer_of_copy, RigL(), every=1)
        other.zero_grad()
        other(x).sum().backward()
        assert own.step() is False


def test_one_topology_in_two_layers():
    topology = Topology.from_mask(torch.rand(6, 9) < 0.4)
    one, two = (SparseLinear.from_dense(torch.nn.Linear(9, 6), topology) for _ in range(2))
    assert one.topology is two.topology is topology
    keys = topology.keys
    one.load_state_dict(SparseLinear(9, 6, sparsity=1 - topology.nnz / 54).state_dict())
    assert torch.equal(two.topology.keys, keys)
    assert torch.equal(topology.keys, keys)


@makers
def test_a_layer_with_other_connections_shares_nothing_with_what_it_was_given(make):
    layer = make(1)
    values, bias = torch.randn(layer.topology.nnz), torch.randn(layer.topology.shape[0])
    kept = values.clone(), bias.clone()
    other = layer.with_connections(layer.geometry, layer.topology, values, bias)
    with torch.no_grad():
        other.parameter.add_(1)
        other.bias.add_(1)
    assert torch.equal(values, kept[0])
    assert torch.equal(bias, kept[1])
    again = type(layer).from_dense(layer.dense_module(), layer.topology, values=values)
    with torch.no_grad():
        again.parameter.add_(1)
    assert torch.equal(values, kept[0])
