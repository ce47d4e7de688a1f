"""The Trainer with the callback does what a loop written by hand does; sparse models come back from their folders, or an error says why."""

import copy
import shutil

import pytest
import torch
from torch import nn

import truesparse as ts
from truesparse.nn import topology_layers

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING  # noqa: E402

from truesparse.integrations.transformers import SparseTraining  # noqa: E402

ALGORITHMS = {
    "rigl": (ts.RigL(), 0.8),
    "gmp": (ts.GMP(sparsity=0.6, across="layers"), 0.0),
    "snfs": (ts.SNFS(window=2), 0.8),
}
STEPS = 12


def bert(**options):
    torch.manual_seed(3)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 8}
    return transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=30, num_labels=3, **small, **options))


def llama():
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=30, **small))


def t5():
    small = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=30, decoder_start_token_id=0, **small))


def vit():
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 8, "patch_size": 4}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**small))


def gpt2():
    small = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8, "bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=30, **small))


TOKENS = torch.randint(0, 30, (3, 6), generator=torch.Generator().manual_seed(0))
PIXELS = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
MODELS = {
    "bert": (bert, "AutoModelForSequenceClassification", {"input_ids": TOKENS}),
    "gpt2": (gpt2, "AutoModelForCausalLM", {"input_ids": TOKENS}),
    "llama": (llama, "AutoModelForCausalLM", {"input_ids": TOKENS}),
    "t5": (t5, "AutoModelForSeq2SeqLM", {"input_ids": TOKENS, "labels": TOKENS}),
    "vit": (vit, "AutoModelForImageClassification", {"pixel_values": PIXELS}),
}


def data():
    generator = torch.Generator().manual_seed(1)
    tokens, labels = torch.randint(0, 30, (48, 6), generator=generator), torch.randint(0, 3, (48,), generator=generator)
    return [{"input_ids": one, "labels": label} for one, label in zip(tokens, labels, strict=True)]


def trainer(folder, model, *callbacks, **options):
    arguments = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 3,
        "save_steps": 5,
        "seed": 1,
    }
    arguments |= {
        "use_cpu": True,
        "optim": "adamw_torch",
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
    }
    settings = transformers.TrainingArguments(output_dir=str(folder), **{**arguments, **options})
    return transformers.Trainer(model, settings, train_dataset=data(), callbacks=list(callbacks))


def assert_same(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize(("name", "bf16"), [*((name, False) for name in ALGORITHMS), ("rigl", True)])
def test_it_is_the_loop_that_one_would_write(name, bf16, tmp_path):
    algorithm, sparsity = ALGORITHMS[name]
    callback, trained = SparseTraining(algorithm, sparsity, every=2), bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    options = {"gradient_accumulation_steps": 2, "max_grad_norm": 0.05, "weight_decay": 0.1, "bf16": bf16}
    loop = trainer(tmp_path, trained, callback, train_sampling_strategy="sequential", lr_scheduler_type="constant", **options)
    loop.train()

    model = bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    ts.sparsify(model, sparsity, generator=torch.Generator().manual_seed(0))
    spared = {
        n for n, p in model.named_parameters() if n.endswith("bias") or "LayerNorm" in n
    }  # as the Trainer spares them in a dense model
    groups = [[p for n, p in model.named_parameters() if (n in spared) == spare] for spare in (False, True)]
    optimizer = torch.optim.AdamW([{"params": groups[0], "weight_decay": 0.1}, {"params": groups[1], "weight_decay": 0.0}], lr=1e-2)
    ends = getattr(algorithm, "rewiring_ends", 0.75) * STEPS
    rewirer = ts.Rewirer(model, optimizer, algorithm, every=2, until=ends, generator=torch.Generator().manual_seed(0))
    model.train()
    batches = [data()[start : start + 4] for start in range(0, 48, 4)] * 2
    for number, batch in enumerate(batches):
        inputs = {key: torch.stack([one[key] for one in batch]) for key in batch[0]}
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(**inputs).loss
        loss.backward()  # the Trainer divides by the samples in a batch or, as here, leaves that to a model which takes their number
        if number % 2:
            nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            if rewirer.step():
                optimizer.step()
            optimizer.zero_grad()
    assert rewirer.rewirings == callback.session.rewirings > 1
    assert_same(trained, model)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_run_goes_on_as_if_it_had_never_stopped(name, tmp_path):
    algorithm, sparsity = ALGORITHMS[name]

    def train(folder, **options):
        callback = SparseTraining(algorithm, sparsity, every=3)
        loop = trainer(tmp_path / folder, bert(), callback, save_strategy="steps", logging_strategy="steps")
        loop.train(**options)
        return loop, callback.session

    whole, session = train("whole")
    shutil.move(tmp_path / "whole" / "checkpoint-5", tmp_path / "moved")  # between two rewirings, in a window of recorded steps
    other, again = train("other", resume_from_checkpoint=str(tmp_path / "moved"))
    assert_same(whole.model, other.model)
    states = [loop.optimizer.state_dict()["state"] for loop in (whole, other)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key][part], states[1][key][part]) for key in states[0] for part in states[0][key])
    assert again.rewirers[0].state_dict()["generator"].equal(session.rewirers[0].state_dict()["generator"])
    assert (again.rewirings, again.measures()) == (session.rewirings, session.measures())
    assert "truesparse" not in whole.optimizer.param_groups[0]
    logged = [line for line in whole.state.log_history if "loss" in line][-1]
    assert logged["model/connections"] == sum(layer.connections for layer in topology_layers(whole.model).values())
    assert logged["model/rewirings"] == session.rewirings


def test_decay_goes_where_it_goes_in_the_dense_model(tmp_path):
    def decayed(model, *callbacks):
        loop = trainer(tmp_path, model, *callbacks, weight_decay=0.1)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = loop.create_optimizer().param_groups
        return {
            names[id(p)].replace(".values", ".weight"): (group["weight_decay"], group["lr"]) for group in groups for p in group["params"]
        }

    assert decayed(bert(), SparseTraining(ts.RigL(), 0.8)) == decayed(bert())


class TestFolders:
    @pytest.mark.parametrize("name", MODELS)
    def test_a_sparse_model_comes_back(self, name, tmp_path):
        made, auto, inputs = MODELS[name]
        model = made().eval()
        ts.sparsify(model, 0.7, pattern="fan-in", exclude=("lm_head",) if name in ("t5", "gpt2") else ())
        model.save_pretrained(tmp_path)
        kind = getattr(transformers, auto)
        read, told = kind.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(told.values())
        assert_same(model, read)
        assert [layer.pattern for layer in topology_layers(read).values()] == [layer.pattern for layer in topology_layers(model).values()]
        assert torch.equal(model(**inputs).logits, read(**inputs).logits)

        half = kind.from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
        ts.densify(read).save_pretrained(tmp_path / "dense")
        dense, told = kind.from_pretrained(tmp_path / "dense", output_loading_info=True)
        assert not any(told.values())
        torch.testing.assert_close(dense(**inputs).logits, model(**inputs).logits, rtol=1e-4, atol=1e-5)

    def test_connections_that_do_not_act_and_those_of_zero_come_back(self, tmp_path):
        model = ts.sparsify(bert(), 0.8)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        rewirer = ts.Rewirer(model, optimizer, ts.TopKAST(), every=1, until=3)
        model(input_ids=TOKENS, labels=torch.tensor([0, 1, 2])).loss.backward()
        assert rewirer.step()
        optimizer.step()
        layer = next(iter(topology_layers(model).values()))
        with torch.no_grad():
            layer.values[0] = 0
        assert layer.acting is not None
        model.save_pretrained(tmp_path, max_shard_size="4KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
        assert_same(model, transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path))

    def test_with_another_head(self, tmp_path):
        model = ts.sparsify(bert(), 0.7)
        model.save_pretrained(tmp_path)
        trunk = transformers.AutoModel.from_pretrained(tmp_path)
        assert_same(model.bert, trunk)
        trunk.save_pretrained(tmp_path / "trunk")
        headed = transformers.BertForTokenClassification.from_pretrained(tmp_path / "trunk")
        assert headed.bert.encoder.layer[0].output.dense.values.equal(model.bert.encoder.layer[0].output.dense.values)
        assert type(headed.classifier) is nn.Linear

    def test_trained_on_after_reading(self, tmp_path):
        ts.sparsify(bert(), 0.7).save_pretrained(tmp_path)
        read = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
        before = {name: layer.topology for name, layer in topology_layers(read).items()}
        trainer(tmp_path / "run", read, SparseTraining(ts.RigL(), 0.7, every=3)).train()
        assert any(not layer.topology.equal(before[name]) for name, layer in topology_layers(read).items())
        copy.deepcopy(read).save_pretrained(tmp_path / "again")
        assert_same(read, transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "again"))

    def test_without_this_library_it_is_an_error(self, tmp_path, monkeypatch):
        ts.sparsify(bert(), 0.7).save_pretrained(tmp_path)
        monkeypatch.delitem(AUTO_QUANTIZATION_CONFIG_MAPPING, "truesparse")  # as if nobody had imported it
        for kind in (transformers.BertModel, transformers.BertForSequenceClassification):
            with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
                kind.from_pretrained(tmp_path)

    def test_refuses_a_folder_that_does_not_fit(self, tmp_path):
        ts.sparsify(bert(), 0.7).save_pretrained(tmp_path)
        with pytest.raises(RuntimeError, match=r"layer 'bert\.\S+' does not fit the stored one"):
            transformers.BertForSequenceClassification.from_pretrained(tmp_path, intermediate_size=20)
        with pytest.raises(
            RuntimeError, match=r"has sparse layers 'bert\.\S+', .*BertForSequenceClassification has no modules of these names"
        ):
            transformers.BertForSequenceClassification.from_pretrained(tmp_path, num_hidden_layers=0)
        torch.save(transformers.BertModel(bert().config).state_dict(), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(RuntimeError, match="sparse models are read from safetensors files, got"):
            transformers.BertForSequenceClassification.from_pretrained(tmp_path)

    def test_refuses_masked_twins(self, tmp_path):
        model = ts.sparsify(bert(), 0.7, masked=True)
        with pytest.raises(TypeError, match="are masked twins, which no folder of transformers can hold: save with"):
            model.save_pretrained(tmp_path)


class TestRefuses:
    def test_a_callback_that_comes_too_late(self, tmp_path):
        loop = trainer(tmp_path, bert())
        loop.add_callback(SparseTraining(ts.RigL(), 0.8))
        with pytest.raises(RuntimeError, match=r"pass Trainer\(callbacks=\[SparseTraining"):
            loop.train()

    def test_a_checkpoint_of_another_training(self, tmp_path):
        def loop(*callbacks, model=None, **options):
            return trainer(tmp_path, model or bert(), *callbacks, save_strategy="steps", **options)

        loop(SparseTraining(ts.SET(), 0.8, every=3)).train()
        checkpoint = str(tmp_path / "checkpoint-5")
        with pytest.raises(ValueError, match=r"expected the checkpoint of a training with RigL\(.*got one with SET\("):
            loop(SparseTraining(ts.RigL(), 0.8, every=3)).train(resume_from_checkpoint=checkpoint)
        loop(model=ts.sparsify(bert(), 0.8)).train()
        with pytest.raises(ValueError, match="the checkpoint of step 5 holds no state of SparseTraining"):
            loop(SparseTraining(ts.SET(), 0.8, every=3)).train(resume_from_checkpoint=checkpoint)
