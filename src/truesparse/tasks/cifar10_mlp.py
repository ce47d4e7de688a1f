"""CIFAR-10 with the multilayer perceptron of SET, 3072-4000-1000-4000-10, at the paper's density: epsilon 20.

Mocanu et al. 2018, https://arxiv.org/abs/1707.04780. The paper uses SReLU, dropout and 1000 epochs; here ReLU, no dropout, fewer epochs.
"""

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import truesparse.data

MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)  # of the training pixels by channel, on the scale 0 to 1
DEVIATION = torch.tensor([0.2470, 0.2435, 0.2616]).view(3, 1, 1)

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
    images = truesparse.data.load("cifar10")
    train = TensorDataset(normalised(images.train_images), images.train_labels)
    return train, TensorDataset(normalised(images.test_images), images.test_labels)


def normalised(images: Tensor) -> Tensor:
    return images.float().div_(255).sub_(MEAN).div_(DEVIATION)
