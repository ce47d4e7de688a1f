"""The network of the built-in task mnist-cnn, 1,305,272 weights, trained dense by that task in three epochs."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from truesparse.runs import load_recipe, make_config, resume, start, trained_network
from truesparse.runs.trainer import Observers

from .network import Network, fitted

RUN = Path("runs/dense-to-sparse/mnist-cnn")
EPOCHS, TUNED, BATCH, RATE = 3, 20000, 128, 1e-3


def network() -> Network:
    recipe = load_recipe("mnist-cnn")
    if not RUN.exists():
        start(make_config(recipe.task, recipe.settings, {"variants": ("dense",), "epochs": EPOCHS}), recipe, RUN, Observers(()))
    else:
        resume(RUN, {}, Observers(()))  # does nothing if it is complete
    trained = trained_network(RUN, "dense")
    train, _ = recipe.make_data()
    images, labels = train.tensors

    def tune(model: nn.Module) -> None:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:TUNED].split(BATCH)
        model.train()
        fitted(model, order, len(order), lambda batch: F.cross_entropy(model(images[batch]), labels[batch]), RATE)

    parts = list(zip(images[:2048].split(BATCH), labels[:2048].split(BATCH), strict=True))
    return Network(
        title="MNIST CNN",
        measure="accuracy",
        model=trained.model,
        score=lambda model: 100 * trained.accuracy(model.eval()),
        calibration=parts,
        samples=parts[:2],
        loss=F.cross_entropy,
        tune=tune,
    )
