"""A transformer block with a ReLU whose second linear layer reads mostly zeros, measured and packed: docs/guide/activation-sparsity.md

python examples/relu_transformer.py            # 10,000 images of MNIST, rows of an image as tokens, 3 minutes
python examples/relu_transformer.py --toy      # the digits that come with truesparse, in seconds
"""

import argparse
import time
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truesparse as ts
import truesparse.data
from truesparse.stability import ActivationPenalty


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """Attention, then a perceptron; each is added to what it reads."""

    def __init__(self, width: int, hidden: int, heads: int = 4) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.up, self.relu, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(self.relu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Rows of an image are its tokens."""

    def __init__(self, side: int, width: int, hidden: int) -> None:
        super().__init__()
        self.read, self.place = nn.Linear(side, width), nn.Parameter(0.1 * torch.randn(side, width))
        self.block, self.answer = Block(width, hidden), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.block(self.read(x) + self.place).mean(1))


def train(model: Transformer, images: Tensor, labels: Tensor, epochs: int, penalty: ActivationPenalty) -> None:
    """The penalty makes the ReLU give few numbers that are not zero."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            (F.cross_entropy(model(images[batch]), labels[batch]) + penalty.loss()).backward()
            optimizer.step()


def milliseconds(calls: dict[str, nn.Module], tokens: Tensor) -> dict[str, float]:
    """Of a call for one token, in turns; each token has zeros of its own."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for token in tokens:
            for name, call in calls.items():
                start = time.perf_counter()
                call(token)
                taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: median(own) for name, own in taken.items()}


def main(arguments: list[str] | None = None) -> tuple[float, ts.metrics.Activations, str]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--hoyer", type=float, default=10.0, help="factor of the penalty")
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    torch.set_num_threads(1)  # layouts are chosen for so many
    data = truesparse.data.load("digits" if options.toy else "mnist")
    scale = 16 if options.toy else 255
    images, tests = (own.float().squeeze(1) / scale for own in (data.train_images, data.test_images))
    width, hidden = (32, 1024) if options.toy else (128, 4096)
    model = Transformer(images.shape[-1], width, hidden)
    train(model, images[:10_000], data.train_labels[:10_000], options.epochs, ActivationPenalty([model.block.relu], hoyer=options.hoyer))

    model.eval()
    with torch.inference_mode():
        accuracy = float((model(tests).argmax(1) == data.test_labels).float().mean())
        tokens = (model.read(tests[:50]) + model.place).flatten(0, 1)[torch.randperm(50)][:, None, None]
    print(f"accuracy {accuracy:.1%}")
    zeros = ts.metrics.activations(model, tests[:500])
    print(zeros)

    fast = ts.pack(model.block, tokens[0], tune=not options.toy)  # for one token, with its own zeros
    print(fast.explain())
    taken = milliseconds({"dense": model.block, "packed": fast}, tokens)
    print(f"a token: dense {taken['dense']:.2f} ms, packed {taken['packed']:.2f} ms, {taken['dense'] / taken['packed']:.1f} times as fast")
    return accuracy, zeros, next(row.layout for row in fast.explain().rows if row.layer == "down")


if __name__ == "__main__":
    main()
