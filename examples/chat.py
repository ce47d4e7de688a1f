"""A pruned language model answers in the terminal, word by word, packed for this machine: docs/guide/language-models.md#generating

pip install 'truesparse[language]'
truesparse prune smollm2 --criterion sparsegpt --sparsity 0.5 --out runs/smol50
python examples/chat.py runs/smol50
"""

import argparse

import torch
from transformers import TextStreamer

import truesparse as ts
from truesparse.language import LanguageModel, language_model


def answer(opened: LanguageModel, turns: list[dict[str, str]], tokens: int) -> str:
    """The model's turn, written to stdout while it comes."""
    words = opened.tokenizer
    if words.chat_template:
        given = words.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    else:
        given = words("\n".join(turn["content"] for turn in turns), return_tensors="pt")
    streamer = TextStreamer(words, skip_prompt=True, skip_special_tokens=True)
    sampled = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2}
    with torch.inference_mode():
        found = opened.model.generate(**given, max_new_tokens=tokens, streamer=streamer, pad_token_id=words.eos_token_id, **sampled)
    return words.decode(found[0, given["input_ids"].shape[1] :], skip_special_tokens=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="smollm2, a folder of transformers, sparse or not, or a GGUF file")
    parser.add_argument("--values", default="bfloat16", choices=["float32", "bfloat16", "int8"], help="as what connections are held")
    parser.add_argument("--tokens", type=int, default=128, help="of an answer, at most")
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args(arguments)
    torch.manual_seed(settings.seed)
    opened = language_model(settings.model)
    print(ts.pack_layers(opened.model, values=settings.values).by_layout().text())
    turns: list[dict[str, str]] = []
    while True:
        try:
            said = input("> ")
        except (EOFError, KeyboardInterrupt):
            return
        turns.append({"role": "user", "content": said})
        turns.append({"role": "assistant", "content": answer(opened, turns, settings.tokens)})


if __name__ == "__main__":
    main()
