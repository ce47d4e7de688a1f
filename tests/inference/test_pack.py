"""A packed network computes what the network computed, says what it did, and does nothing else."""

import copy
import json
import pickle
import threading

import pytest
import torch
from oracles import images, network
from torch import nn

from truesparse import Rewirer, TopKAST, sparsify
from truesparse.inference import pack
from truesparse.inference.choice import Memory
from truesparse.inference.layouts import Windows


@pytest.fixture
def memory(tmp_path):
    return Memory(tmp_path / "layouts.json")


def trained(model, sparsity=0.7):
    """A sparse network in eval mode whose norms have statistics of their own."""
    sparsify(model, sparsity, generator=torch.Generator().manual_seed(0))
    model.train()
    for seed in range(3):
        torch.manual_seed(seed)
        model(images(8))
    return model.eval()


def perceptron(sparsity=0.9):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 150), nn.ReLU(), nn.Linear(150, 100), nn.GELU(), nn.Linear(100, 10))
    return sparsify(model, sparsity, generator=torch.Generator().manual_seed(0)).eval()


def hold(packed, model, x, tolerance=1e-5):
    with torch.inference_mode():
        y, expected = packed(x), model(x)
    assert y.shape == expected.shape
    assert float((y - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize("tune", [True, False])
@pytest.mark.parametrize("batch", [1, 4, 70])
def test_convolutions_and_linear_layers(tune, batch, memory):
    model = trained(network())
    x = images(batch)
    packed = pack(model, x, tune=tune, memory=memory)
    hold(packed, model, x)
    hold(packed, model, images(3))  # another batch than the one it is for
    assert not any(isinstance(module, (nn.BatchNorm2d, nn.ReLU)) for module in packed.modules())


@pytest.mark.parametrize("tune", [True, False])
@pytest.mark.parametrize("batch", [1, 20])
def test_limits_and_max_pools_are_part_of_convolutions(tune, batch, memory):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3, 2, padding="valid", groups=8), nn.BatchNorm2d(8), nn.ReLU6()),
        *(nn.Conv2d(8, 12, 3, padding=2, padding_mode="reflect"), nn.MaxPool2d(2)),
        *(nn.Conv2d(12, 6, 1), nn.Tanh(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(24, 5), nn.ReLU6()),
    )
    model = sparsify(model, 0.5, generator=torch.Generator().manual_seed(0)).eval()
    x = 5 * torch.randn(batch, 3, 33, 33)
    packed = pack(model, x, tune=tune, memory=memory)
    hold(packed, model, x)
    hold(packed, model, 5 * torch.randn(3, 3, 33, 33))
    kinds = [type(module) for module in packed.modules()]
    assert (kinds.count(nn.ReLU6), kinds.count(nn.MaxPool2d)) == (0, 1)  # the one after a Tanh


@pytest.mark.parametrize("batch", [1, 2, 33])
def test_perceptrons(batch, memory):
    model = perceptron()
    x = torch.randn(batch, 200)
    hold(pack(model, x, memory=memory), model, x)
    x = torch.randn(2, 3, 200)
    hold(pack(model, x, tune=False), model, x)
    hold(pack(model, x[0, 0], tune=False), model, x[0, 0])


@pytest.mark.parametrize("layer", [nn.Linear(30, 20), nn.Conv2d(2, 6, 3, padding=1)], ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("sparse", [False, True])
def test_a_layer_by_itself(layer, sparse):
    layer = copy.deepcopy(layer)
    model = (sparsify(layer, 0.7) if sparse else layer).eval()
    x = torch.randn(2, 30) if isinstance(layer, nn.Linear) else images(2)
    packed = pack(model, x, tune=False)
    hold(packed, model, x)
    assert packed.explain().rows[0].dense_bytes == 4 * sum(parameter.numel() for parameter in layer.parameters())


@pytest.mark.parametrize(("values", "tolerance"), [("bfloat16", 0.02), ("int8", 0.02)])
def test_narrow_values(values, tolerance):
    model = perceptron()
    x = torch.randn(1, 200)
    packed = pack(model, x, values=values, tune=False)
    assert any(isinstance(getattr(module, "layout", None), Windows) for module in packed.modules())
    hold(packed, model, x, tolerance)


def test_it_explains_what_it_did(memory):
    model = perceptron()
    with torch.no_grad():
        model[4].values.zero_()  # no output depends on anything: all before goes
        model[4].values[0] = 1.0
    packed = pack(model, torch.randn(1, 200), memory=memory)
    explanation = packed.explain()
    assert [row.layer for row in explanation.rows] == ["0", "2", "4"]
    _, second, last = explanation.rows
    assert second.change.neurons == (100, 1)
    assert last.dense_bytes == 4 * (10 * 100 + 10)
    assert all(row.times_as_fast == row.dense_seconds / row.seconds for row in explanation.rows)
    said = str(explanation)
    assert " ".join(said.split("\n")[0].split()) == "layer sparsity zeros read removed layout bytes us dense us times as fast"
    assert "99 neurons" in said
    assert said.splitlines()[-1].startswith("batch 1, ")
    assert "-" in str(pack(model, torch.randn(1, 200), tune=False).explain())


@pytest.mark.parametrize("masked", [False, True])
def test_connections_that_only_train_are_left_out(masked):
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 10))
    sparsify(model, 0.8, masked=masked, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rewirer = Rewirer(model, optimizer, TopKAST(), every=1, generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        model(torch.randn(8, 40)).square().mean().backward()
        if rewirer.step():
            optimizer.step()
    assert model[0].connections < model[0].topology.nnz
    hold(pack(model, torch.randn(1, 40), tune=False), model, torch.randn(5, 40))


def test_the_network_is_left_as_it_is(memory):
    model = trained(network())
    before = copy.deepcopy(model.state_dict())
    model.train()
    pack(model, images(1), memory=memory)
    assert model.training
    assert all(torch.equal(model.state_dict()[name], array) for name, array in before.items())


def test_a_packed_network_can_be_copied_pickled_and_shared_among_threads(memory):
    model, x = perceptron(), torch.randn(2, 200)
    packed = pack(model, x, memory=memory)
    with torch.inference_mode():
        y = packed(x)
        for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
            assert torch.equal(other(x), y)
            assert str(other.explain()) == str(packed.explain())
    wrong = []

    def call():
        with torch.inference_mode():
            wrong.extend(not torch.equal(packed(x), y) for _ in range(50))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [False] * 200


def test_measurements_are_made_once(memory, monkeypatch):
    model, x = perceptron(), torch.randn(1, 200)
    pack(model, x, memory=memory)
    monkeypatch.setattr("truesparse.inference.laying_out.measure", lambda *given: pytest.fail("measured again"))
    again = pack(model, x, memory=Memory(memory.path))
    hold(again, model, x)


def test_it_cannot_be_trained_or_converted(memory):
    model, x = perceptron(), torch.randn(1, 200)
    packed = pack(model, x, memory=memory)
    assert not list(packed.parameters())
    assert packed.eval() is packed
    assert packed.float().cpu() is packed
    with pytest.raises(RuntimeError, match="a packed network cannot be trained: train the network it was packed from"):
        packed.train()
    for convert in (packed.double, packed.half):
        with pytest.raises(RuntimeError, match="a packed network computes in float32 on the CPU"):
            convert()
    with pytest.raises(RuntimeError, match="a packed network gives no gradients: call it under"):
        packed(x.clone().requires_grad_())
    with pytest.raises(TypeError, match=r"computes in float32, got an input of torch\.float64; convert it with \.float\(\)"):
        packed(x.double())
    with pytest.raises(ValueError, match=r"expected an input of shape \(\.\.\., 200\)"):
        packed(torch.randn(1, 3))


def test_what_cannot_be_packed_is_refused():
    model, x = perceptron(), torch.randn(1, 200)
    with pytest.raises(ValueError, match="values is one of float32, bfloat16, int8, got 'int4'"):
        pack(model, x, values="int4")
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        pack(model, x, threads=0)
    with pytest.raises(TypeError, match=r"pack takes networks of float32 on the CPU, and '0\.values' is torch\.float64"):
        pack(copy.deepcopy(model).double(), x.double())


class Asking(nn.Module):
    """No graph; its Python asks layers what they are, as models of transformers do, or for the weight itself."""

    def __init__(self, values=False):
        super().__init__()
        self.first, self.last, self.values = nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.Linear(16, 3, bias=False), values

    def forward(self, x):
        weight, bias = self.first.weight, self.first.bias
        assert isinstance(weight, torch.Tensor)
        assert (weight.shape, bias.shape, self.last.bias) == ((4, 2, 3, 3), (4,), None)
        assert (self.first.stride, self.first.padding, self.first.out_channels, self.last.in_features) == ((2, 2), (1, 1), 4, 16)
        x = self.first(x.to(weight.device, weight.dtype) if x.sum() < 1e9 else -x).flatten(1)
        return nn.functional.linear(x, self.last.weight) if self.values else self.last(x.to(self.last.weight.dtype))


def test_models_may_ask_layers_what_they_are():
    x = torch.randn(2, 2, 4, 4)
    model = Asking().eval()
    packed = pack(model, x, tune=False)
    assert {row.layer for row in packed.explain().rows} == {"first", "last"}
    hold(packed, model, x)
    hold(pickle.loads(pickle.dumps(copy.deepcopy(packed))), model, x)
    model = Asking(values=True).eval()
    packed = pack(model, x, tune=False)
    assert {row.layer for row in packed.explain().rows} == {"first"}, "a layer that is not called stays, and so does its weight"
    hold(packed, model, x)
    with pytest.raises(
        RuntimeError, match=r"asks for the values of a weight or bias of a packed layer.*shape, dtype and device can be read"
    ):
        packed.graph.first.weight + 1


def test_threads_of_torch_are_what_they_were(memory, monkeypatch):
    before = torch.get_num_threads()
    packed = pack(perceptron(), torch.randn(1, 200), memory=memory, threads=before + 1)
    assert packed.explain().threads == before + 1
    assert torch.get_num_threads() == before
    monkeypatch.setattr("truesparse.inference.laying_out.measure", lambda *given: pytest.fail("on purpose"))
    with pytest.raises(pytest.fail.Exception):
        pack(perceptron(0.5), torch.randn(1, 200), memory=memory, threads=before + 1)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("remembered", [{"dense": 1.0, "tiles:9": 0.5}, {"dense": 1.0}, {"tiles:9": 0.5}, {}])
def test_measurements_of_other_layouts_are_made_again(memory, remembered):
    model, x = perceptron(), torch.randn(1, 200)
    first = pack(model, x, memory=memory)
    path = memory.path
    path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_text()), remembered)))
    again = pack(model, x, memory=Memory(path))
    hold(again, model, x)
    kinds = [row.layout for row in first.explain().rows]
    assert len(again.explain().rows) == len(kinds)
    assert all({"dense"} < own.keys() and "tiles:9" not in own for own in json.loads(path.read_text()).values())


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x, mask):
        one = nn.functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x), mask)
        return nn.functional.scaled_dot_product_attention(one, one, one, attn_mask=mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_attention_whose_mask_is_added_or_allows(dtype):
    model, x = Attention().eval(), torch.randn(2, 5, 8)
    masks = torch.randn(2, 2, 5, 5) if dtype == torch.float32 else torch.rand(2, 2, 5, 5) > 0.3
    if dtype == torch.bool:
        masks |= torch.eye(5, dtype=torch.bool)  # where nothing may be looked at, attention has no result
    packed = pack(model, (x, masks[0]), tune=False)
    assert not packed.explain().untraced
    with torch.inference_mode():
        for mask in masks:
            torch.testing.assert_close(packed(x, mask), model(x, mask))


@pytest.mark.parametrize("tune", [True, False])
def test_padding_that_a_small_image_needs(tune, memory):
    """Layouts are tried at the size that the padding gives, which only then is one."""
    model = sparsify(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")), 0.5).eval()
    x = torch.randn(2, 4, 2, 2)
    hold(pack(model, x, tune=tune, memory=memory), model, x)
