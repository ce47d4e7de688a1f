"""A causal language model of two small blocks and a tokenizer of whole words, in a folder as transformers leaves one."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

WORDS = [f"w{number}" for number in range(60)]


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(["<end>", *WORDS])}, unk_token="<end>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", unk_token="<end>")


def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=len(WORDS) + 1, **sizes, max_position_embeddings=600, tie_word_embeddings=True)
    return transformers.LlamaForCausalLM(config).eval()


def text(words=2500):
    places = torch.randint(len(WORDS), (words,), generator=torch.Generator().manual_seed(1))
    return " ".join(WORDS[place] for place in places)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    model().save_pretrained(path)
    tokenizer().save_pretrained(path)
    (path / "text.txt").write_text(text())
    return path
