"""The walk of docs/guide/language-models.md, on a small model."""

import re
from pathlib import Path

import pytest
import torch

from truesparse.nn.convert import topology_layers

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "language-models.md"


def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=60, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, **sizes)
    model = transformers.LlamaForCausalLM(config)
    given = {"model": model, "batches": [{"input_ids": torch.randint(60, (4, 16))} for _ in range(3)]}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), given)
    layers = topology_layers(model)
    assert len(layers) == 21
    assert sum(layer.topology.nnz for layer in layers.values()) == sum(layer.topology.size for layer in layers.values()) // 2
