"""MNIST with two convolutions (16 and 32 channels) and four linear layers: 1,305,272 weights."""

from torch import Tensor, nn
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
    images = truesparse.data.load("mnist")
    train = TensorDataset(normalised(images.train_images), images.train_labels)
    return train, TensorDataset(normalised(images.test_images), images.test_labels)


def normalised(images: Tensor) -> Tensor:
    return images.float().div_(255).sub_(MEAN).div_(DEVIATION)
