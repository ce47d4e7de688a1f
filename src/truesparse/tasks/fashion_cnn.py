"""Fashion-MNIST with the network of mnist-cnn: two convolutions (16 and 32 channels) and four linear layers: 1,305,272 weights."""

from torch.utils.data import TensorDataset

import truesparse.data
from truesparse.tasks.mnist_cnn import model, settings

__all__ = ["data", "model", "settings"]

MEAN, DEVIATION = 0.2860, 0.3530  # of the training pixels, on the scale 0 to 1


def data() -> tuple[TensorDataset, TensorDataset]:
    return truesparse.data.load("fashion-mnist").standardized(MEAN, DEVIATION)
