"""Blocks learn again what the dense ones gave: against least squares where that says what is best, and with any optimizer."""

import copy

import pytest
import torch
from torch import nn

import truesparse as ts
from truesparse.nn.convert import topology_layers
from truesparse.pruning import reconstruct


def batches(width=10, count=4):
    generator = torch.Generator().manual_seed(2)
    mixed = torch.randn(width, width, generator=generator)
    return [torch.randn(25, width, generator=generator) @ mixed for _ in range(count)]


def perceptron():
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))


def pruned(model, sparsity=0.6):
    return ts.prune(copy.deepcopy(model), sparsity)


def network():
    torch.manual_seed(6)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, groups=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(24, 5)
    )


def test_every_block_comes_nearer_and_its_topology_stays():
    dense = perceptron()
    sparse = pruned(dense)
    before = {name: layer.topology for name, layer in topology_layers(sparse).items()}
    x = torch.cat(batches())
    far = (sparse(x) - dense(x)).detach().square().mean()
    errors = reconstruct(sparse, batches(), dense, epochs=20, optimizer=lambda p: torch.optim.Adam(p, lr=0.01), progress=False)
    assert list(errors) == ["0", "1", "2", "3", "4"]
    assert all(errors[name][1] < 0.7 * errors[name][0] for name in before)
    assert all(errors[name][0] == errors[name][1] for name in ("1", "3"))  # nothing to learn
    assert (sparse(x) - dense(x)).detach().square().mean() < 0.3 * far
    assert all(layer.topology is before[name] for name, layer in topology_layers(sparse).items())


def test_a_linear_block_ends_at_least_squares():
    dense = nn.Sequential(nn.Linear(6, 4), nn.Identity())
    sparse = pruned(dense, 0.5)
    data = [torch.cat(batches(6))]
    reconstruct(sparse, data, dense, epochs=1, optimizer=lambda p: Full(p, lambda: loss(sparse, dense, data[0])), progress=False)
    weight, kept = sparse[0].to_dense().detach().double(), sparse[0].topology.mask()
    x, y = data[0].double(), dense(data[0]).detach().double()
    for row in range(4):
        inputs = torch.cat([x[:, kept[row]], torch.ones(len(x), 1, dtype=torch.float64)], 1)
        best = torch.linalg.lstsq(inputs, y[:, row : row + 1]).solution[:, 0]
        assert torch.allclose(weight[row, kept[row]], best[:-1], atol=1e-3)


def loss(sparse, dense, x):
    return (sparse(x) - dense(x).detach()).square().mean()


class Full(torch.optim.LBFGS):
    """An optimizer that goes all the way in one step."""

    def __init__(self, parameters, closure):
        super().__init__(parameters, max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe")
        self.closure = closure

    def step(self, closure=None):
        def again():
            self.zero_grad()
            value = self.closure()
            value.backward()
            return value

        return super().step(again)


@pytest.mark.parametrize(
    "optimizer", [lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9), torch.optim.RMSprop, lambda p: torch.optim.AdamW(p, lr=3e-3)]
)
def test_any_optimizer_on_convolutions_in_groups_with_stride_and_norms(optimizer):
    dense = network().eval()
    sparse = pruned(dense, 0.5).train()
    data = [torch.randn(8, 4, 9, 9, generator=torch.Generator().manual_seed(place)) for place in range(3)]
    statistics = sparse[1].running_mean.clone()
    errors = reconstruct(sparse, data, dense, epochs=15, optimizer=optimizer, progress=False)
    assert all(errors[name][1] < errors[name][0] for name in ("0", "1", "3", "5"))
    assert sparse.training
    assert torch.equal(sparse[1].running_mean, statistics)  # it learned as it will run
    assert not any(parameter.grad is not None for parameter in sparse.parameters())


def test_a_block_learns_on_what_the_blocks_before_it_give_and_aims_at_the_dense_model():
    dense = perceptron()
    sparse = pruned(dense)
    x = torch.cat(batches())
    errors = reconstruct(sparse, batches(), dense, epochs=5, progress=False)
    for place in range(5):
        true = dense[: place + 1](x).detach().view(4, 25, -1)
        own = sparse[: place + 1](x).detach().view(4, 25, -1)
        scale = true.square().mean()
        assert errors[str(place)][1] == pytest.approx(float((own - true).square().mean() / scale), rel=1e-4)


def test_a_block_that_does_not_come_nearer_keeps_its_parameters():
    dense = perceptron()
    sparse = pruned(dense)
    before = copy.deepcopy(sparse.state_dict())
    errors = reconstruct(sparse, batches(), dense, optimizer=lambda p: torch.optim.SGD(p, lr=1e6), progress=False)
    assert all(before == after for before, after in errors.values())
    assert all(torch.equal(before[name], tensor) for name, tensor in sparse.state_dict().items())


def test_what_is_frozen_stays():
    dense = perceptron()
    sparse = pruned(dense)
    sparse[0].bias.requires_grad_(False)
    bias = sparse[0].bias.clone()
    reconstruct(sparse, batches(), dense, epochs=2, progress=False)
    assert torch.equal(sparse[0].bias, bias)


def test_the_order_of_batches_comes_from_the_generator():
    dense = perceptron()
    runs = []
    for _ in range(2):
        sparse = pruned(dense)
        generator = torch.Generator().manual_seed(3)
        runs.append((reconstruct(sparse, batches(), dense, generator=generator, progress=False), sparse.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(tensor, runs[1][1][name]) for name, tensor in runs[0][1].items())


def test_a_language_model_with_its_blocks():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    dense = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=60, bos_token_id=0, eos_token_id=1, **sizes)).eval()
    data = [{"input_ids": torch.randint(60, (3, 16))} for _ in range(3)]
    sparse = ts.prune(copy.deepcopy(dense), 0.6, exclude=["lm_head"])
    errors = reconstruct(sparse, data, dense, progress=False)
    assert list(errors) == ["model.layers.0", "model.layers.1"]
    assert all(after < before for before, after in errors.values())


def test_it_says_how_near_each_block_came(capsys):
    dense = perceptron()
    reconstruct(pruned(dense), batches(), dense)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 5
    assert said[2].startswith("3/5 2: error 0.")


@pytest.mark.parametrize(
    ("data", "dense", "said"),
    [
        ([], perceptron(), "pass batches"),
        (batches(), nn.Linear(10, 4), "must have the blocks of the pruned one, 0, 1, 2, 3, 4"),
    ],
)
def test_bad_input_is_told(data, dense, said):
    with pytest.raises(ValueError, match=said):
        reconstruct(pruned(perceptron()), data, dense, progress=False)
