"""The parameter of a sparse layer: one number a connection, with the dimensions of the weight it stands for, and else a parameter."""

import copy
import io
import multiprocessing
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters

import truesparse as ts
from truesparse.nn.values import Values


def model():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 9, 5))
    return ts.sparsify(network, 0.6, generator=torch.Generator().manual_seed(1))


def weights(network):
    return {name: parameter for name, parameter in network.named_parameters() if name.endswith("values")}


def by_dimensions(network):
    """As nanoGPT groups: `p.dim() >= 2` decays."""
    decay = [p for p in network.parameters() if p.dim() >= 2]
    return [{"params": decay, "weight_decay": 0.3}, {"params": [p for p in network.parameters() if p.dim() < 2], "weight_decay": 0.0}]


def by_name_and_dimensions(network):
    """As timm groups: `p.ndim <= 1` or a name that ends with ".bias" does not decay."""
    groups = ([], [])
    for name, parameter in network.named_parameters():
        groups[parameter.ndim <= 1 or name.endswith(".bias")].append(parameter)
    return [{"params": groups[0], "weight_decay": 0.3}, {"params": groups[1], "weight_decay": 0.0}]


@pytest.mark.parametrize("grouped", [by_dimensions, by_name_and_dimensions])
def test_scripts_that_group_by_dimensions_decay_weights_and_spare_the_rest(grouped):
    network = model()
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    optimizer = torch.optim.AdamW(grouped(network), lr=0.5)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in network.named_parameters():
        factor = 1 - 0.5 * 0.3 if name in weights(network) else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_the_dimensions_are_those_of_the_dense_weight_and_all_else_is_one_number_a_connection():
    network = model()
    for name, dimensions in (("0", 4), ("3", 2)):
        layer = network.get_submodule(name)
        assert (layer.values.ndim, layer.values.dim()) == (dimensions, dimensions)
        assert layer.values.shape == layer.values.size() == (layer.topology.nnz,)
        assert layer.values.size(0) == layer.values.size(-1) == len(layer.values) == layer.topology.nnz
        assert f"of a weight of {dimensions} dimensions" in repr(layer.values)
        for made in (layer.values.detach(), layer.values * 2, torch.zeros_like(layer.values), layer.values.data):
            assert type(made) is torch.Tensor
            assert made.ndim == 1
    assert all(parameter.ndim == 1 for name, parameter in network.named_parameters() if name not in weights(network))


OPTIMIZERS = [
    (torch.optim.SGD, {"momentum": 0.9, "foreach": True}),
    (torch.optim.Adam, {}),
    (torch.optim.AdamW, {"foreach": True}),
    (torch.optim.AdamW, {"fused": True}),
    (torch.optim.RMSprop, {}),
    (torch.optim.Adagrad, {}),
    (torch.optim.NAdam, {}),
    (torch.optim.RAdam, {}),
    (torch.optim.Adafactor, {}),
    (torch.optim.Rprop, {}),
    (torch.optim.ASGD, {}),
    (torch.optim.Adadelta, {}),
    (torch.optim.Adamax, {}),
]


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_every_optimizer_treats_them_as_the_vector_they_are(kind, options):
    values = ts.SparseLinear(8, 6, sparsity=0.5).values
    plain = nn.Parameter(values.detach().clone())
    optimizers = [kind([parameter], lr=0.1, **options) for parameter in (values, plain)]
    for step in range(3):
        for parameter, optimizer in zip((values, plain), optimizers, strict=True):
            parameter.grad = torch.linspace(-1, 1, 24) * (step + 1)
            optimizer.step()
    assert torch.equal(values, plain)
    for key, entry in optimizers[1].state[plain].items():
        torch.testing.assert_close(optimizers[0].state[values][key], entry)


def test_muon_refuses_them():
    layer = ts.SparseLinear(8, 6, sparsity=0.5)
    optimizer = torch.optim.Muon([layer.values])
    layer(torch.randn(3, 8)).sum().backward()
    with pytest.raises(ValueError, match="must be a 2D matrix"):
        optimizer.step()


def saved(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


AGAIN = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda pair: pickle.loads(pickle.dumps(pair)),
    "torch.save": saved,
    "double": lambda pair: (pair[0].double(), pair[1]),
    "shared memory": lambda pair: (pair[0].share_memory(), pair[1]),
}


@pytest.mark.parametrize("again", AGAIN.values(), ids=AGAIN)
def test_an_optimizer_that_goes_along_holds_the_very_parameters(again):
    network = model()
    network, optimizer = again((network, torch.optim.SGD(network.parameters(), 0.1)))
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for parameter in weights(network).values():
        assert isinstance(parameter, Values)
        assert id(parameter) in held
    assert [parameter.ndim for parameter in weights(network).values()] == [4, 2]


def test_assigned_and_meta_and_emptied():
    network, other = model(), model()
    state = copy.deepcopy(other.state_dict())
    network.load_state_dict(state, assign=True)
    assert [parameter.dim() for parameter in weights(network).values()] == [4, 2]
    network.to("meta")
    assert all(isinstance(parameter, Values) for parameter in weights(network).values())
    network.to_empty(device="cpu").load_state_dict(state)
    assert [parameter.dim() for parameter in weights(network).values()] == [4, 2]
    layer = ts.SparseLinear(4, 3, sparsity=0.5)
    layer.values = nn.Parameter(layer.values.detach())
    assert layer.values.dim() == 2


def test_gradients_clipping_and_vectors():
    network, x = model(), torch.randn(4, 2, 5, 5)
    network(x).pow(2).sum().backward()
    for layer in (network[0], network[3]):
        assert type(layer.values.grad) is torch.Tensor
        assert layer.values.grad.shape == (layer.topology.nnz,)
    norm = torch.cat([parameter.grad.flatten() for parameter in network.parameters()]).norm()
    torch.testing.assert_close(clip_grad_norm_(network.parameters(), 0.5), norm)
    vector = parameters_to_vector(network.parameters()).detach()
    vector_to_parameters(vector * 2, network.parameters())
    torch.testing.assert_close(parameters_to_vector(network.parameters()).detach(), vector * 2)
    doubled = {name: parameter.detach() * 2 for name, parameter in network[3].named_parameters()}
    flat = torch.randn(3, 54)
    torch.testing.assert_close(torch.func.functional_call(network[3], doubled, (flat,)), 2 * network[3](flat))


def _twice(layer, results):
    with torch.no_grad():
        layer.values.mul_(2)
    results.put(layer.values.ndim)


def test_another_process_writes_into_shared_values():
    layer = ts.SparseLinear(6, 4, sparsity=0.5).share_memory()
    before = layer.values.detach().clone()
    context = torch.multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    results = context.SimpleQueue()
    worker = context.Process(target=_twice, args=(layer, results))
    worker.start()
    worker.join(60)
    assert results.get() == 2
    assert torch.equal(layer.values, before * 2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_function_reads_them():
    class Penalized(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = ts.SparseLinear(6, 4, sparsity=0.5)

        def forward(self, x):
            return self.layer(x * self.layer.weight.shape[0]).sum() + self.layer.values.pow(2).sum()

    torch.compiler.reset()
    network, x = Penalized(), torch.randn(3, 6)
    gradients = []
    for run in (network, torch.compile(network, backend="aot_eager")):
        network.zero_grad()
        run(x).backward()
        gradients.append(network.layer.values.grad.clone())
    torch.testing.assert_close(*gradients)
    torch.compiler.reset()


INITIALISERS = [nn.init.xavier_uniform_, nn.init.xavier_normal_, nn.init.kaiming_uniform_, nn.init.kaiming_normal_]


@pytest.mark.parametrize("fill", INITIALISERS)
def test_initialisers_that_need_a_matrix_say_what_to_call(fill):
    layer = ts.SparseLinear(8, 6, sparsity=0.5)
    before = layer.values.detach().clone()
    with pytest.raises(IndexError, match=r"one number a connection, shape \(24,\).*layer\.initialise\(torch\.nn\.init\.xavier_uniform_\)"):
        fill(layer.values)
    assert torch.equal(layer.values, before)


@pytest.mark.parametrize("fill", [nn.init.orthogonal_, nn.init.eye_, nn.init.dirac_, lambda values: nn.init.sparse_(values, 0.5)])
def test_other_initialisers_of_matrices_refuse_them(fill):
    with pytest.raises(ValueError, match="dimensions"):
        fill(ts.SparseLinear(8, 6, sparsity=0.5).values)
