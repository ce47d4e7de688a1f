"""CIFAR-10 with the multilayer perceptron of SET, 3072-4000-1000-4000-10, at the paper's density: epsilon 20.

Mocanu et al. 2018, https://arxiv.org/abs/1707.04780. The paper uses SReLU, dropout and 1000 epochs; here ReLU, no dropout, fewer epochs.
"""

from torch import nn
from torch.utils.data import TensorDataset

import truesparse.data

MEAN = 0.4914, 0.4822, 0.4465  # of the training pixels by channel, on the scale 0 to 1
DEVIATION = 0.2470, 0.2435, 0.2616

settings = {
    "epochs": 10,
    "batch_size": 100,
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "weight_decay": 2e-4,
    "budget": "er",
    "epsilon": 20,
    "algorithm": "set",
    "until": 1.0,
}


def model() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(3072, 4000),
        nn.ReLU(),
        nn.Linear(4000, 1000),
        nn.ReLU(),
        nn.Linear(1000, 4000),
        nn.ReLU(),
        nn.Linear(4000, 10),
    )


def data() -> tuple[TensorDataset, TensorDataset]:
    return truesparse.data.load("cifar10").standardized(MEAN, DEVIATION)
