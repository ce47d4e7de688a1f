"""MNIST with two convolutions (16 and 32 channels) and four linear layers: 1,305,272 weights."""

from torch import nn
from torch.utils.data import TensorDataset

import truesparse.data

MEAN, DEVIATION = 0.1307, 0.3081  # of the training pixels, on the scale 0 to 1

settings = {"epochs": 10, "batch_size": 64, "optimizer": "adam", "learning_rate": 1e-3, "sparsity": 0.95, "budget": "erk"}


def model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1568, 640),
        nn.ReLU(),
        nn.Linear(640, 400),
        nn.ReLU(),
        nn.Linear(400, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def data() -> tuple[TensorDataset, TensorDataset]:
    return truesparse.data.load("mnist").standardized(MEAN, DEVIATION)
