"""MNIST with the classic multilayer perceptron of 300 and 100 neurons: 266,200 weights."""

from torch import nn
from torch.utils.data import TensorDataset

import truesparse.data

MEAN, DEVIATION = 0.1307, 0.3081  # of the training pixels, on the scale 0 to 1

settings = {"epochs": 10, "batch_size": 64, "optimizer": "adam", "learning_rate": 1e-3, "sparsity": 0.9, "budget": "erk"}


def model() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def data() -> tuple[TensorDataset, TensorDataset]:
    return truesparse.data.load("mnist").standardized(MEAN, DEVIATION)
