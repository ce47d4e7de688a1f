"""Which whole networks are timed? Those of the targets, as plain torch modules, on random inputs of their shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import densify, sparsify
from ..runs import ConfigError
from ..tasks import cifar10_mlp, mnist_cnn
from ..topology.budgets import ER, Budget, budget
from ..topology.patterns import Pattern, Unstructured

Example = tuple[Tensor, Tensor]  # (input, class of each output)
SEED = 0
UNSTRUCTURED = Unstructured()


@dataclass(frozen=True)
class Density:
    """How much is kept: an overall sparsity with the budget of the measurement, or an epsilon with Erdos-Renyi."""

    sparsity: float = 0.0
    epsilon: float | None = None

    def __str__(self) -> str:
        return f"{100 * self.sparsity:g} %" if self.epsilon is None else f"epsilon {self.epsilon:g}"

    def budget(self, usual: str) -> Budget:
        """What `sparsify` takes, the budget called `usual` unless there is an epsilon."""
        return budget(usual) if self.epsilon is None else ER(self.epsilon)


@dataclass(frozen=True)
class Network:
    """One network to time.

    Args:
        name: for people.
        make: makes the dense model.
        example: makes a batch of that many samples.
        batch: samples in a step.
        densities: at which it is made sparse.
        large: whether it is for GPUs, and timed only if it is asked for.
    """

    name: str
    make: Callable[[], nn.Module]
    example: Callable[[int], Example]
    batch: int
    densities: tuple[Density, ...]
    large: bool = False


def twins(network: Network, density: Density, budget: str, pattern: Pattern = UNSTRUCTURED) -> dict[str, nn.Module]:
    """The same network three times, one topology and one set of values: "dense", "masked", "sparse". Always the same.

    Raises:
        ConfigError: if it cannot be made sparse this way.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = network.make()
    made: dict[str, nn.Module] = {}
    for name, masked in (("masked", True), ("sparse", False)):
        try:
            made[name] = sparsify(
                deepcopy(model),
                sparsity=density.sparsity,
                budget=density.budget(budget),
                pattern=pattern,
                masked=masked,
                generator=torch.Generator().manual_seed(SEED),
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{network.name} at {density}: {error}") from error
    return {"dense": densify(deepcopy(made["sparse"])), **made}


def example_of(network: Network, samples: int) -> Example:
    """A batch of that many samples, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return network.example(samples)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; where the size halves, the shortcut drops every other pixel and pads channels with zeros."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride = 1 if inputs == outputs else 2
        self.missing = outputs - inputs
        self.first = nn.Conv2d(inputs, outputs, 3, self.stride, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.first_norm, self.second_norm = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.missing)) if self.missing else x
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(y)) + shortcut)


def resnet20() -> nn.Module:
    """For CIFAR: 3 stages of 3 blocks, 16, 32 and 64 channels. He et al. 2016, section 4.2, https://arxiv.org/abs/1512.03385"""
    widths = [16, *(width for width in (16, 32, 64) for _ in range(3))]
    blocks = [ResidualBlock(inputs, outputs) for inputs, outputs in pairwise(widths)]
    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions, four times as wide at the end; what came in is added, through a 1x1 if need be."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.narrowed, self.seen, self.widened = (
            nn.Conv2d(inputs, width, 1, bias=False),
            nn.Conv2d(width, width, 3, stride, padding=1, bias=False),
            nn.Conv2d(width, outputs, 1, bias=False),
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in (width, width, outputs))
        self.shortcut = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)) if inputs != outputs else None
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        y = F.relu(self.norms[0](self.narrowed(x)))
        y = F.relu(self.norms[1](self.seen(y)))
        return F.relu(self.norms[2](self.widened(y)) + shortcut)


def resnet50(width: int = 64, classes: int = 1000) -> nn.Module:
    """For ImageNet: stages of 3, 4, 6 and 3 blocks. He et al. 2016, table 1; the stride is in the 3x3 convolutions, as usual since."""
    stem = [nn.Conv2d(3, width, 7, 2, padding=3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
    blocks, inputs = [], width
    for stage, count in enumerate((3, 4, 6, 3)):
        for number in range(count):
            blocks.append(Bottleneck(inputs, width << stage, 2 if stage and not number else 1))
            inputs = 4 * (width << stage)
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class TransformerBlock(nn.Module):
    """Causal self-attention and a perceptron four times as wide, each after a norm, each added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.perceptron_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.mixed = nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        split = self.queries_keys_values(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = split.movedim(-3, 0).transpose(-2, -3)  # each (batch, heads, context, features)
        attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.mixed(attended.transpose(-2, -3).flatten(-2))
        return x + self.perceptron(self.perceptron_norm(x))


class GPT(nn.Module):
    """A language model of characters. Input (batch, context) int64, output (batch, context, characters)."""

    def __init__(self, layers: int, width: int, context: int, heads: int, characters: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(characters, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.places(places))))


def _images(*shape: int) -> Callable[[int], Example]:
    return lambda batch: (torch.randn(batch, *shape), torch.randint(10, (batch,)))


def _text(kinds: int, context: int) -> Callable[[int], Example]:
    def drawn(batch: int) -> Example:
        tokens = torch.randint(kinds, (batch, context + 1))
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    return drawn


CHARACTERS, CONTEXT = 65, 256
TOKENS, LONG = 50257, 1024
NINETY, NINETY_FIVE = Density(0.9), Density(0.95)

NETWORKS: Mapping[str, Network] = {
    "cifar-mlp": Network("SET's MLP 3072-4000-1000-4000-10", cifar10_mlp.model, _images(3, 32, 32), 128, (NINETY, Density(epsilon=20))),
    "mnist-cnn": Network("MNIST CNN", mnist_cnn.model, _images(1, 28, 28), 128, (NINETY_FIVE,)),
    "resnet20": Network("ResNet-20", resnet20, _images(3, 32, 32), 128, (NINETY, NINETY_FIVE)),
    "gpt": Network(
        "GPT, 6 layers of width 384, context 256", lambda: GPT(6, 384, CONTEXT, 6, CHARACTERS), _text(CHARACTERS, CONTEXT), 16, (NINETY,)
    ),
    "resnet50": Network(
        "ResNet-50", resnet50, lambda batch: (torch.randn(batch, 3, 224, 224), torch.randint(1000, (batch,))), 64, (NINETY,), large=True
    ),
    "gpt2-small": Network(
        "GPT-2 small, 12 layers of width 768, context 1024",
        lambda: GPT(12, 768, LONG, 12, TOKENS),
        _text(TOKENS, LONG),
        8,
        (NINETY,),
        large=True,
    ),
}
USUAL = tuple(name for name, network in NETWORKS.items() if not network.large)
