"""A small network of convolutions over windows of a wrist sensor: which of seven exercises is it? Trained dense here, in a minute.
Score: windows of people whom training has not seen."""

from __future__ import annotations

import io

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from truesparse.data import PypiPackage, fetch

from .network import Network, fitted

FILES = {"watch_dataset.npy": "2549546e08309e6ecb14195230464f96"}  # MD5
WINDOW, STEP = 200, 100  # samples of 1 / 50 s: four seconds, every two
TESTED = (8, 9, 10)  # of ten people
EPOCHS, TUNED, BATCH, RATE = 30, 15, 32, 2e-3


def convolutions() -> nn.Module:
    """[windows, 6, 200] in, [windows, 7] out; 25,000 weights."""
    return nn.Sequential(
        *(nn.Conv1d(6, 32, 5, stride=2, padding=2), nn.BatchNorm1d(32), nn.ReLU()),
        *(nn.Conv1d(32, 48, 5, stride=2, padding=2), nn.BatchNorm1d(48), nn.ReLU(), nn.MaxPool1d(2)),
        *(nn.Conv1d(48, 64, 5, stride=2, padding=2), nn.BatchNorm1d(64), nn.ReLU()),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 7)),
    )


def windows() -> tuple[Tensor, Tensor, Tensor]:
    """([windows, 6, 200], exercise of each, person of each)."""
    content = fetch("wrist-sensor", FILES, [PypiPackage("seglearn", "1.2.5", 11.3, "seglearn/data/")])["watch_dataset.npy"]
    series = np.load(io.BytesIO(content), allow_pickle=True).item()  # it pickles arrays; the checksum says that they are these
    inputs, labels, people = [], [], []
    for one, label, person in zip(series["X"], series["y"], series["subject"], strict=True):
        for at in range(0, len(one) - WINDOW + 1, STEP):
            inputs.append(torch.tensor(one[at : at + WINDOW].T, dtype=torch.float32))
            labels.append(int(label))
            people.append(int(person))
    return torch.stack(inputs), torch.tensor(labels), torch.tensor(people)


def network() -> Network:
    inputs, labels, people = windows()
    test = torch.isin(people, torch.tensor(TESTED))
    mean, deviation = inputs[~test].mean((0, 2), keepdim=True), inputs[~test].std((0, 2), keepdim=True)
    inputs = (inputs - mean) / deviation
    others, own = inputs[~test], labels[~test]

    def train(model: nn.Module, epochs: int) -> None:
        generator = torch.Generator().manual_seed(0)
        order = [part for _ in range(epochs) for part in torch.randperm(len(others), generator=generator).split(BATCH)]
        model.train()
        fitted(model, order, len(order), lambda places: F.cross_entropy(model(others[places]), own[places]), RATE)

    @torch.no_grad()
    def score(model: nn.Module) -> float:
        return 100 * float((model.eval()(inputs[test]).argmax(1) == labels[test]).float().mean())

    torch.manual_seed(0)
    model = convolutions()
    train(model, EPOCHS)
    parts = list(zip(others[::4].split(BATCH), own[::4].split(BATCH), strict=True))
    return Network(
        title="wrist sensor",
        measure=f"{int(test.sum())} windows",
        model=model.eval(),
        score=score,
        calibration=parts,
        samples=parts[:4],
        loss=F.cross_entropy,
        tune=lambda model: train(model, TUNED),
    )
