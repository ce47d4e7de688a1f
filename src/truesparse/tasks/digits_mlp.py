"""Digits of 8 x 8 pixels, part of the package: a network of 128 and 64 neurons that trains in seconds."""

from torch import nn
from torch.utils.data import TensorDataset

import truesparse.data

MEAN, DEVIATION = 4.884, 6.017  # of all pixels, which go from 0 to 16

settings = {"epochs": 10, "batch_size": 32, "optimizer": "adam", "learning_rate": 1e-2, "sparsity": 0.8, "budget": "erk", "every": 20}


def model() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def data() -> tuple[TensorDataset, TensorDataset]:
    return truesparse.data.load("digits").standardized(MEAN, DEVIATION, largest=1)
