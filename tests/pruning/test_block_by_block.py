"""Block after block gives what pruning the layers of each block in order by hand gives; it stops and goes on; it says what it cannot do."""

import copy
import gc
import weakref
from typing import ClassVar

import pytest
import torch
from torch import nn

import truesparse as ts
from truesparse.nn.convert import topology_layers
from truesparse.pruning import OWL, Depth, prune_blocks
from truesparse.pruning.walk import find_blocks, walk

VOCABULARY = 60


def llama():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    special = {"bos_token_id": 0, "eos_token_id": 1}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, **sizes, **special)
    ).eval()


def gpt2():
    transformers = pytest.importorskip("transformers")
    special = {"bos_token_id": 0, "eos_token_id": 1}
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=24, n_layer=2, n_head=3, n_positions=32, **special)
    )


def bert():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
    return transformers.BertModel(transformers.BertConfig(vocab_size=VOCABULARY, **sizes))


def tokens(batches=4):
    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(VOCABULARY, (3, 16), generator=generator)} for _ in range(batches)]


def perceptron():
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))


def rows(batches=4):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(20, 10, generator=generator) for _ in range(batches)]


def assert_same(found, expected):
    found, expected = topology_layers(found), topology_layers(expected)
    assert list(found) == list(expected)
    for name, layer in expected.items():
        assert found[name].topology.equal(layer.topology), name
        assert torch.allclose(found[name].values, layer.values, rtol=1e-4, atol=1e-6), name


@pytest.mark.filterwarnings("ignore:the inputs of a layer depend")
@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt"])
@pytest.mark.parametrize(
    ("make", "blocks"),
    [
        (llama, [f"model.layers.{place}" for place in range(3)]),
        (gpt2, ["transformer.h.0", "transformer.h.1"]),
        (bert, ["encoder.layer.0", "encoder.layer.1"]),
    ],
)
def test_it_is_pruning_each_block_of_the_whole_model_in_order(make, blocks, criterion):
    model = make().train()
    by_hand = copy.deepcopy(model)
    for block in blocks:
        by_hand = ts.prune(by_hand, {f"{block}.*": 0.6}, criterion, tokens(), exclude=["lm_head"] if make is not bert else [])
    pruned = prune_blocks(model, 0.6, criterion, tokens(), progress=False)
    assert_same(pruned, by_hand)
    assert all(name.startswith(tuple(blocks)) for name in topology_layers(pruned))
    assert pruned.training
    pruned.eval()
    by_hand.eval()
    assert torch.allclose(pruned(**tokens()[0])[0], by_hand(**tokens()[0])[0], atol=1e-5)


def test_members_of_a_sequential_are_blocks_too():
    model = perceptron()
    by_hand = copy.deepcopy(model)
    for layer in ("0", "2", "4"):
        ts.prune(by_hand, {layer: 0.5}, "sparsegpt", rows())
    assert_same(prune_blocks(model, 0.5, "sparsegpt", rows(), progress=False), by_hand)


def test_modules_that_are_opened_for_it_are_pruned_like_others():
    attention = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(attention, 2, enable_nested_tensor=False).eval()
    data = [torch.randn(3, 6, 16) for _ in range(3)]
    by_hand = copy.deepcopy(model)
    for block in ("layers.0", "layers.1"):
        by_hand = ts.prune(by_hand, {f"{block}.*": 0.5}, "wanda", data)
    assert_same(prune_blocks(model, 0.5, "wanda", data, progress=False), by_hand)


def test_what_is_sparse_already_loses_more():
    model = prune_blocks(perceptron(), 0.4, "wanda", rows(), progress=False)
    before = {name: layer.topology.mask() for name, layer in topology_layers(model).items()}
    layers = topology_layers(prune_blocks(model, 0.8, "sparsegpt", rows(), progress=False))
    assert all(not (layers[name].topology.mask() & ~mask).any() for name, mask in before.items())
    assert sum(layer.topology.nnz for layer in layers.values()) == 160 + 192 + 48 - 128 - 153 - 38
    with pytest.raises(ValueError, match="layer '0' has 32 connections, fewer than the 80"):
        prune_blocks(model, 0.5, "wanda", rows(), progress=False)


@pytest.mark.parametrize("budget", [OWL(outlier=1.5), Depth(0.2), "erk"])
def test_budgets_look_at_the_model_before_anything_is_pruned(budget):
    model = perceptron()
    expected = ts.prune(copy.deepcopy(model), 0.5, "magnitude", rows(), budget=budget)
    pruned = prune_blocks(model, 0.5, "magnitude", rows(), budget=budget, progress=False)
    counts = [layer.topology.nnz for layer in topology_layers(pruned).values()]
    assert counts == [layer.topology.nnz for layer in topology_layers(expected).values()]
    assert len({round(layer.topology.sparsity, 1) for layer in topology_layers(pruned).values()}) > 1


class Interrupted(Exception):
    pass


class Stopping:
    """Wanda that raises at the third layer, the first time."""

    needs: ClassVar[tuple[str, ...]] = ("input_squares",)
    met: ClassVar[list[str]] = []
    stops = True

    def __repr__(self):
        return "Stopping()"

    def scores(self, evidence):
        if Stopping.stops and evidence.name == "4":
            raise Interrupted
        Stopping.met.append(evidence.name)
        return evidence.weight.abs() * evidence["input_squares"].sqrt()


class Watching:
    """Magnitude that looks, at each layer, which dense weights are still held."""

    def __init__(self, model):
        self.weights = {name: weakref.ref(one.weight) for name, one in model.named_children() if isinstance(one, nn.Linear)}
        self.held = {}

    def scores(self, evidence):
        gc.collect()
        self.held[evidence.name] = [name for name, weight in self.weights.items() if weight() is not None]
        return evidence.weight.abs()


def test_dense_weights_are_gone_before_the_next_block():
    model = perceptron()
    watching = Watching(model)
    prune_blocks(model, 0.5, watching, rows(), progress=False)
    assert watching.held == {"0": ["0", "2", "4"], "2": ["2", "4"], "4": ["4"]}


@pytest.mark.parametrize("make_data", [rows, lambda: (one for one in rows())])
def test_what_was_done_before_it_stopped_is_not_done_again(tmp_path, make_data):
    Stopping.met, Stopping.stops = [], True
    model, folder = perceptron(), tmp_path / "new" / "folder"
    dense = copy.deepcopy(model)
    with pytest.raises(Interrupted):
        prune_blocks(copy.deepcopy(model), 0.5, Stopping(), make_data(), folder=folder, progress=False)
    assert sorted(path.name for path in folder.iterdir()) == ["asked.json", "block-0000.safetensors", "block-0002.safetensors"]
    Stopping.stops = False
    resumed = prune_blocks(model, 0.5, Stopping(), make_data(), folder=folder, progress=False)
    assert Stopping.met == ["0", "2", "4"]
    assert_same(resumed, prune_blocks(dense, 0.5, Stopping(), rows(), progress=False))


def test_blocks_of_another_call_are_not_taken(tmp_path):
    prune_blocks(perceptron(), 0.5, "wanda", rows(), folder=tmp_path, progress=False)
    for arguments, said in [
        ({"sparsity": 0.6}, "sparsities"),
        ({"criterion": "sparsegpt"}, "criterion, across"),
        ({"pattern": "fan-in"}, "pattern"),
        ({"data": [one + 1 for one in rows()]}, "model or data"),
    ]:
        model = perceptron()
        with pytest.raises(ValueError, match=rf"blocks that were pruned otherwise \({said}\): name another folder"):
            prune_blocks(model, **{"sparsity": 0.5, "criterion": "wanda", "data": rows(), **arguments}, folder=tmp_path, progress=False)
        assert not topology_layers(model)


def test_a_line_a_block_says_how_far_it_is(capsys):
    prune_blocks(perceptron(), 0.5, "wanda", rows())
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("1/3 0: 80 of 160 weights stay, ")
    assert said[-1].startswith("3/3 4: ")
    prune_blocks(perceptron(), 0.5, "wanda", rows(), progress=False)
    assert not capsys.readouterr().err


class Skipping(nn.Module):
    """Blocks with something between them, or in another order, or not all of them."""

    def __init__(self, order, between=False):
        super().__init__()
        self.order, self.between = order, between
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        for place in self.order:
            x = self.blocks[place](x)
            x = x * 2 if self.between else x
        return x


class Named(nn.Module):
    """A block that is called by name."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x):
        return self.blocks[1](self.blocks[0](input=x))


@pytest.mark.parametrize(
    ("model", "arguments", "said"),
    [
        (Skipping([0, 2, 1]), {}, "block 'blocks.2' is not called once, with what the block before it gave"),
        (Skipping([0, 0, 1]), {}, "block 'blocks.0' is not called once"),
        (Skipping([0, 1, 2], between=True), {}, "block 'blocks.1' is not called once"),
        (Skipping([0, 1]), {}, "the model did not call 'blocks.2' on this data"),
        (Named(), {}, "block 'blocks.0' is not called with a tensor first"),
        (
            Skipping([0, 1, 2]),
            {"blocks": "layers"},
            "blocks='layers' is no nn.ModuleList or nn.Sequential of this model; there are: blocks",
        ),
        (nn.Linear(6, 6), {}, "found no blocks"),
        (Skipping([0, 1, 2]), {"data": ()}, "pass data=batches"),
        (Skipping([0, 1, 2]), {"across": "network"}, "across='network' is for ts.prune"),
        (Skipping([0, 1, 2]), {"exclude": [nn.Linear]}, "found nothing to prune in the blocks blocks.0, blocks.1, blocks.2"),
        (Skipping([0, 1, 2]), {"sparsity": {"blocks.9": 0.5}}, "matches no layer"),
        (Skipping([0, 1, 2]), {"sparsity": {"blocks.*": 0.5}, "budget": OWL()}, "sparsities by name and no budget"),
        (Skipping([0, 1, 2]), {"pattern": "nm:2:4"}, "layer 'blocks.0': NM.*divisible by 4"),
        (Skipping([0, 1, 2]), {"data": [torch.full((2, 6), float("nan"))]}, "'blocks.0': input squares on this data is not finite"),
    ],
)
def test_bad_input_is_told_and_changes_nothing(model, arguments, said):
    modules, before = list(model.modules()), copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=said):
        prune_blocks(model, **{"sparsity": 0.5, "criterion": "wanda", "data": [torch.randn(5, 6)], **arguments}, progress=False)
    assert list(model.modules()) == modules
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())


def test_only_the_layers_that_are_named_are_pruned():
    pruned = prune_blocks(perceptron(), {"2": 0.5}, "wanda", rows(), progress=False)
    assert list(topology_layers(pruned)) == ["2"]


def test_blocks_are_found_and_named():
    model = nn.ModuleDict({"small": nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "large": nn.ModuleList([nn.Linear(9, 9), nn.Linear(9, 9)])})
    assert list(find_blocks(model)) == ["large.0", "large.1"]
    assert list(find_blocks(model, "small")) == ["small.0", "small.1"]
    assert list(find_blocks(nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))))) == ["0.0", "0.1"]


def test_what_goes_into_one_block_is_all_that_is_held_of_activations():
    model, data = perceptron(), rows()
    met = walk(model, find_blocks(model), data, lambda model, x: model(x))
    for place, layer in enumerate(model):
        assert all(torch.equal(one, model[:place](x)) for one, x in zip(met.inputs, data, strict=True))
        assert [len(calls) for calls in met.calls] == [4] * 5
        met = met.after(place, layer)


def test_blocks_that_keep_shapes_run_once_to_be_met():
    model, calls = Skipping([0, 1, 2]), []
    model.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6)) for _ in range(3))
    for block in model.blocks:
        block[0].register_forward_hook(lambda module, args, result: calls.append(module))
    data = [torch.randn(5, 6) for _ in range(4)]
    met = walk(model, find_blocks(model), data, lambda model, x: model(x))
    assert len(calls) == 3
    assert all(torch.equal(one, x) for one, x in zip(met.inputs, data, strict=True))
    assert torch.equal(model(data[0]), model.blocks[2](model.blocks[1](model.blocks[0](data[0]))))


def test_generation_keeps_its_cache_afterwards():
    model = llama()
    assert model.config.use_cache
    prune_blocks(model, 0.5, "magnitude", tokens(1), progress=False)
    assert model.config.use_cache
    assert model.generate(tokens(1)[0]["input_ids"], max_new_tokens=3, pad_token_id=1).shape == (3, 19)
