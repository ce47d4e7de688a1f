"""A ResNet-20 on CIFAR-10 in plain PyTorch, 90 % sparse with RigL, resumed where it stopped: docs/guide/frameworks.md

python examples/resnet_cifar10.py --epochs 30
python examples/resnet_cifar10.py --toy    # two epochs of the digits that come with truesparse, in seconds
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

import truesparse as ts
import truesparse.data
from truesparse.tasks.cifar10_mlp import DEVIATION, MEAN
from truesparse.topology.schedules import warmup


class Block(nn.Module):
    """Two convolutions beside an identity. He et al. 2016, https://arxiv.org/abs/1512.03385, section 4.2."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.stride, self.more = stride, outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return F.relu(self.second(self.first(x)) + identity)


def resnet(channels: int, width: int = 16, depth: int = 3) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inputs = width
    for stage in range(3):
        for number in range(depth):
            layers.append(Block(inputs, width << stage, 2 if stage and not number else 1))
            inputs = width << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def moved(images: torch.Tensor) -> torch.Tensor:
    """Each batch moved by up to four pixels and mirrored at random."""
    size = images.shape[-1]
    down, right = torch.randint(0, 9, (2,)).tolist()
    images = F.pad(images, (4, 4, 4, 4))[:, :, down : down + size, right : right + size]
    return images.flip(-1) if torch.rand(()) < 0.5 else images


def accuracy(model: nn.Module, loader: DataLoader) -> float:
    model.eval()
    with torch.inference_mode():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in loader)
    return right / len(loader.dataset)  # type: ignore[arg-type]


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--checkpoint", type=Path, default=Path("resnet.pt"), help="goes on from it where there is one")
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    if options.toy:
        train, test = truesparse.data.load("digits").standardized(0.3, 0.37, largest=16)
        options.epochs = min(options.epochs, 2)
        model = resnet(1, width=8, depth=1)
    else:
        train, test = truesparse.data.load("cifar10").standardized(MEAN, DEVIATION)
        model = resnet(3)
    loader, tests = DataLoader(train, batch_size=128, shuffle=True), DataLoader(test, batch_size=500)

    ts.sparsify(model, options.sparsity)
    steps = options.epochs * len(loader)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup(step, steps // 20) * (1 - step / steps))
    rewirer = ts.Rewirer(model, optimizer, ts.RigL(), every=5 if options.toy else 100, until=0.75 * steps)
    parts = {"model": model, "optimizer": optimizer, "rewirer": rewirer, "schedule": schedule}

    begin = 0
    if options.checkpoint.exists():
        saved = torch.load(options.checkpoint)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        torch.set_rng_state(saved["random"])
        begin = saved["epoch"]
    for epoch in range(begin, options.epochs):
        model.train()
        for x, y in loader:
            F.cross_entropy(model(x if options.toy else moved(x)), y).backward()
            if rewirer.step():
                optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        print(f"epoch {epoch + 1}: accuracy {accuracy(model, tests):.1%}, {rewirer.rewirings} rewirings")
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save({**state, "random": torch.get_rng_state(), "epoch": epoch + 1}, options.checkpoint)
    print(ts.summary(model))
    ts.save(model, options.checkpoint.with_suffix(".safetensors"))
    return accuracy(model, tests)


if __name__ == "__main__":
    main()
