"""Small networks of every kind of convolution, as people build them."""

import torch
from torch import nn


class Block(nn.Module):
    """Two convolutions and a shortcut: He et al. 2016, https://arxiv.org/abs/1512.03385, figure 2."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.first, self.second = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)])
        self.shortcut = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(self.norms[1](self.second(y)) + self.shortcut(x))


def resnet18(width=4, classes=5):
    """ResNet-18, narrow: four stages of two blocks."""
    stages, inputs = [], width
    for stage in range(4):
        outputs = width * 2**stage
        stages += [Block(inputs, outputs, 2 if stage else 1), Block(outputs, outputs, 1)]
        inputs = outputs
    stem = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def audio():
    """A network of one dimension: long strided kernels, a dilated one, a grouped one."""
    return nn.Sequential(
        nn.Conv1d(1, 8, 9, stride=4, padding=4),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Conv1d(8, 12, 3, padding="same", dilation=2, padding_mode="reflect"),
        nn.ReLU(),
        nn.Conv1d(12, 12, 3, groups=3, stride=2, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


class UNet(nn.Module):
    """Down, up by a transposed convolution, and both joined: Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597."""

    def __init__(self):
        super().__init__()
        self.enter, self.down = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 12, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(12, 6, 3, stride=2, padding=1)
        self.leave = nn.Conv2d(12, 3, 1)

    def forward(self, x):
        high = torch.relu(self.enter(x))
        low = torch.relu(self.down(high))
        return self.leave(torch.cat([high, torch.relu(self.up(low, output_size=high.shape[-2:]))], 1))


def volumes():
    """A network of three dimensions that comes back to the size it began with."""
    return nn.Sequential(
        nn.Conv3d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv3d(6, 8, (3, 1, 1), stride=(2, 1, 1), padding=(1, 0, 0)),
        nn.ReLU(),
        nn.ConvTranspose3d(8, 4, (2, 1, 1), stride=(2, 1, 1)),
        nn.ReLU(),
        nn.Conv3d(4, 2, 1),
    )


# By name: (how to make one, the shape of a sample).
NETWORKS = {
    "resnet18": (resnet18, (3, 32, 32)),
    "audio": (audio, (1, 64)),
    "unet": (UNet, (2, 7, 6)),
    "volumes": (volumes, (1, 4, 5, 3)),
}
