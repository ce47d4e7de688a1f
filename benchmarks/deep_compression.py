"""How small does a network become by pruning, trained codebooks and entropy coding? Three networks for MNIST, and the coder's speed.

    pip install 'truesparse[compress]'
    python benchmarks/deep_compression.py
    python benchmarks/deep_compression.py --networks lenet-300-100 --seed 1
    python benchmarks/deep_compression.py --networks --coder

A network is trained, pruned in rounds with training in between, its values become entries of a codebook a layer, which is trained, and
what is left is coded. LeNet-300-100 and LeNet-5 (as in Caffe: 20 and 50 channels, 500 neurons) are those of Han, Mao and Dally 2016
(https://arxiv.org/abs/1510.00149), who have them 40 and 39 times as small. Accuracy is that of all 10,000 test images, at the end of each
stage; nothing is chosen by it. `--out` keeps the figures as JSON. `--coder` has layers of AlexNet's shapes with random weights.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truesparse as ts
from truesparse.data import load
from truesparse.tasks import mnist_cnn

BATCH = 128
RATE, LAST_RATE = 1e-3, 1e-5  # of Adam, falling along a cosine in each stage


def lenet_300_100() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def lenet_5() -> nn.Module:
    images = nn.Sequential(nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2))
    return nn.Sequential(*images, nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10))


# (model, sparsity by layer, epochs: dense, in each round, of the codebook)
NETWORKS = {
    "mnist-cnn": (mnist_cnn.model, {"0": 0.3, "3": 0.8, "13": 0.8, "11": 0.95, "*": 0.98}, (3, 1, 1)),
    "lenet-300-100": (lenet_300_100, {"5": 0.5, "3": 0.88, "*": 0.965}, (10, 4, 4)),
    "lenet-5": (lenet_5, {"0": 0.3, "7": 0.8, "2": 0.92, "*": 0.99}, (3, 1, 1)),
}
# (rows, columns, density)
ALEXNET = {
    "conv2": (256, 1200, 0.38),
    "fc6": (4096, 9216, 0.09),
    "fc7": (4096, 4096, 0.09),
    "fc8": (1000, 4096, 0.25),
}


def batches(images: Tensor, labels: Tensor, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    for some in torch.randperm(len(images), generator=generator).split(BATCH):
        yield images[some], labels[some]


def train(model: nn.Module, data: tuple[Tensor, Tensor], epochs: int, rate: float, generator: torch.Generator) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    steps = epochs * -(-len(data[0]) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, LAST_RATE)
    model.train()
    for _ in range(epochs):
        for images, labels in batches(*data, generator):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    model.eval()
    right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in zip(*(part.split(1000) for part in data), strict=True))
    return right / len(data[0])


def deep_compression(name: str, times: float, longer: int, bits: int, rounds: int, seed: int, folder: Path) -> dict[str, object]:
    """All stages of one network."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    make, sparsities, (first, between, last) = NETWORKS[name]
    training, test = (part.tensors for part in load("mnist").standardized(mnist_cnn.MEAN, mnist_cnn.DEVIATION))
    began, model, scores = time.process_time(), make(), {}
    train(model, training, first, RATE, generator)
    scores["dense"] = accuracy(model, test)
    for number in range(1, rounds + 1):
        ts.prune(model, {layer: 1 - min(1.0, times * (1 - sparsity)) ** (number / rounds) for layer, sparsity in sparsities.items()})
        train(model, training, longer * between, RATE, generator)
    scores["pruned"] = accuracy(model, test)
    ts.quantize(model, bits, by="codebook")
    scores["codebook"] = accuracy(model, test)
    train(model, training, longer * last, RATE / 10, generator)
    scores["trained codebook"] = accuracy(model, test)
    report = ts.compress(model, folder / f"{name}.tsz")
    read = accuracy(ts.load(folder / f"{name}.tsz", ts.prune(make(), 0.5)), test)
    assert read == scores["trained codebook"], "what is read is what was written"
    print(
        f"\n{name}, seed {seed}, {times} times the connections, {longer} times the epochs: "
        + ", ".join(f"{stage} {score:.2%}" for stage, score in scores.items())
    )
    print(report, flush=True)
    return {
        "network": name,
        "seed": seed,
        "times": times,
        "longer": longer,
        "bits": bits,
        "accuracy": scores,
        "bytes": report.nbytes,
        "dense_bytes": report.dense_nbytes,
        "ratio": report.ratio,
        "over_entropy": report.coded / report.entropy - 1,
        "cpu_seconds": time.process_time() - began,
    }


def coder(folder: Path) -> None:
    """How fast: CPU seconds of writing and reading, each the least of three, by what they stand for."""
    generator = torch.Generator().manual_seed(0)
    print("MB/s of CPU time, written and read: of what the dense float32 weight takes, and of what values and columns of 32 bits take")
    print("| layer | connections | bytes | over entropy | MB/s, dense float32 | MB/s, values and columns |")
    print("|---|---|---|---|---|---|")
    for name, (rows, columns, density) in ALEXNET.items():
        layer = ts.SparseLinear(columns, rows, bias=False, sparsity=1 - density, generator=generator)
        layer.initialise(lambda weight: nn.init.normal_(weight, generator=generator))
        model = ts.quantize(nn.ModuleDict({name: layer}), 5, by="codebook")
        seconds: dict[str, list[float]] = {"write": [], "read": []}
        for _ in range(3):
            began = time.process_time()
            report = ts.compress(model, folder / "coder.tsz")
            written = time.process_time()
            ts.load(folder / "coder.tsz")
            seconds["write"].append(written - began)
            seconds["read"].append(time.process_time() - written)
        of_dense, of_sparse = 4 * rows * columns / 1e6, 8 * report.layers[0].connections / 1e6  # as float32 and int32
        speeds = [f"{size / min(seconds[way]):.0f}" for size in (of_dense, of_sparse) for way in ("write", "read")]
        over = f"{report.coded / report.entropy - 1:.2%}"
        row = (name, f"{report.layers[0].connections:,}", f"{report.nbytes:,}", over, " and ".join(speeds[:2]), " and ".join(speeds[2:]))
        print(f"| {' | '.join(row)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--times", type=float, default=1.0, help="as many connections as by default")
    parser.add_argument("--longer", type=int, default=1, help="as many epochs after each pruning, and of the codebook, as by default")
    parser.add_argument("--bits", type=int, default=4, help="of a number")
    parser.add_argument("--rounds", type=int, default=4, help="of pruning")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("."), help="for the files")
    parser.add_argument("--out", type=Path, help="figures, a line a network")
    parser.add_argument("--coder", action="store_true", help="how fast the coder is")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.networks:
        found = deep_compression(name, options.times, options.longer, options.bits, options.rounds, options.seed, options.folder)
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps(found) + "\n")
    if options.coder:
        coder(options.folder)


if __name__ == "__main__":
    main()
