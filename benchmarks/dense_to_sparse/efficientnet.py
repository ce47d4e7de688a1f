"""EfficientNet-Lite0 on CIFAR-10 at 64 x 64, for speed: a linear head on its features, its 1x1 convolutions pruned, all of it fine-tuned.
The dense network with its head is fine-tuned in the same way: it is what to compare with."""

from __future__ import annotations

import tempfile

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from truesparse.data import load

from .. import efficientnet
from .network import Network, fitted

SIZE, HEAD, TRAINING, TEST, BATCH, RATE = 64, 2000, 6400, 1000, 32, 1e-3
SMOOTHING = 0.1  # of the labels


def network() -> Network:
    with tempfile.TemporaryDirectory() as folder:
        model = efficientnet.network(folder)
    data = load("cifar10")
    _plain(model)
    model._fc = _head(model, data.train_images[:HEAD], data.train_labels[:HEAD])

    @torch.no_grad()
    def score(model: nn.Module) -> float:
        model.eval()
        answers = torch.cat([model(efficientnet.prepared(part, SIZE)).argmax(1) for part in data.test_images[:TEST].split(50)])
        return 100 * float((answers == data.test_labels[:TEST]).float().mean())

    def tune(model: nn.Module) -> None:
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(data.train_images), generator=generator)[:TRAINING].split(BATCH)

        def loss(places: Tensor) -> Tensor:
            images = data.train_images[places]
            images = images.flip(3) if torch.rand((), generator=generator) < 0.5 else images
            return F.cross_entropy(model(efficientnet.prepared(images, SIZE)), data.train_labels[places], label_smoothing=SMOOTHING)

        model.train()
        fitted(model, order, len(order), loss, RATE)

    images, labels = efficientnet.prepared(data.train_images[:512], SIZE), data.train_labels[:512]
    parts = list(zip(images.split(BATCH), labels.split(BATCH), strict=True))
    return Network(
        title="EfficientNet-Lite0",
        measure="accuracy",
        model=model,
        score=score,
        calibration=parts,
        samples=parts[:2],
        loss=F.cross_entropy,
        tune=tune,
        exclude=[name for name, layer in model.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear)) and not _one_by_one(layer)],
    )


def _plain(model: nn.Module) -> None:
    """Its 1x1 convolutions are of a class that pads for itself, which they need not: these become torch's own, with the same weights."""
    for holder in list(model.modules()):
        for name, layer in holder.named_children():
            if _one_by_one(layer):
                plain = nn.Conv2d(layer.in_channels, layer.out_channels, 1, stride=layer.stride, bias=layer.bias is not None)
                plain.load_state_dict(layer.state_dict())
                setattr(holder, name, plain)


def _one_by_one(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)


@torch.no_grad()
def _head(model: nn.Module, images: Tensor, labels: Tensor, ridge: float = 1.0) -> nn.Linear:
    """The linear layer that answers with the classes, by ridge regression on the features of these images: no training is needed for it."""
    features = []
    hook = model._fc.register_forward_pre_hook(lambda module, args: features.append(args[0]))
    for part in images.split(50):
        model(efficientnet.prepared(part, SIZE))
    hook.remove()
    x = torch.cat([torch.cat(features), torch.ones(len(images), 1)], 1).double()
    wanted = F.one_hot(labels).double() - 0.1
    solved = torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype), x.T @ wanted).T.float() * 10
    head = nn.Linear(x.shape[1] - 1, wanted.shape[1])
    head.weight.copy_(solved[:, :-1])
    head.bias.copy_(solved[:, -1])
    return head
