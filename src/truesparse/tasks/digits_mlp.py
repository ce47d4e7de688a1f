"""Digits of 8 x 8 pixels, part of the package: a network of 128 and 64 neurons that trains in seconds."""

from torch import Tensor, nn
from torch.utils.data import TensorDataset

import truesparse.data

MEAN, DEVIATION = 4.884, 6.017  # of all pixels, which go from 0 to 16

settings = {"epochs": 10, "batch_size": 32, "optimizer": "adam", "learning_rate": 3e-3, "sparsity": 0.8, "budget": "erk", "every": 20}


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
    images = truesparse.data.load("digits")
    train = TensorDataset(normalised(images.train_images), images.train_labels)
    return train, TensorDataset(normalised(images.test_images), images.test_labels)


def normalised(images: Tensor) -> Tensor:
    return images.float().sub_(MEAN).div_(DEVIATION)
