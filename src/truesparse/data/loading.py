"""Which images and labels are a data set? `load` says so, always the same ones: each file is held to its checksum."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path

import numpy as np
import platformdirs
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from ..common.files import atomic_file
from .errors import DataError
from .published import PUBLISHED
from .sources import FetchError, Files, Source

COMPRESSION = 6


@dataclass(frozen=True, eq=False)
class DataSet:
    """Images and their labels, split once and for all.

    Args:
        name: what `load` was asked for.
        classes: what each label means.
        train_images: [n, channels, height, width] uint8, 0 to 255 (digits: 0 to 16).
        train_labels: [n] int64.
        test_images: like the training images.
        test_labels: like the training labels.
    """

    name: str
    classes: tuple[str, ...]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def standardized(
        self, mean: float | Sequence[float], deviation: float | Sequence[float], largest: float = 255
    ) -> tuple[TensorDataset, TensorDataset]:
        """(training data, test data) as a recipe gives them: float32 images of mean 0 and deviation 1, and labels.

        Args:
            mean: of the training pixels, one number or one for each channel.
            deviation: likewise.
            largest: the pixel value that `mean` and `deviation` call 1.
        """
        shift, scale = (torch.tensor(statistic, dtype=torch.float32, device="cpu").view(-1, 1, 1) for statistic in (mean, deviation))
        train, test = (images.float().div_(largest).sub_(shift).div_(scale) for images in (self.train_images, self.test_images))
        return TensorDataset(train, self.train_labels), TensorDataset(test, self.test_labels)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.train_images.shape[1:]))
        return f"DataSet({self.name}: {len(self.train_labels)} training and {len(self.test_labels)} test images, {shape})"


def names() -> tuple[str, ...]:
    """What `load` knows."""
    return (*PUBLISHED, "digits")


def cache_folder() -> Path:
    """Where fetched data sets are kept: the folder named by `TRUESPARSE_DATA`, or one below the user's cache."""
    named = os.environ.get("TRUESPARSE_DATA")
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("truesparse")) / "data"


def load(name: str, *, cache: str | Path | None = None) -> DataSet:
    """A data set by name: "mnist", "fashion-mnist", "cifar10", or "digits", which is part of the package.

    The others are fetched the first time and need no network after it. What is not the published file, by its
    checksum, is neither used nor kept. Several processes may load the same data set at once.

    Args:
        name: which one.
        cache: folder to keep it in instead of `cache_folder()`.

    Raises:
        DataError: if the name is unknown, or the files cannot be had or kept; the message says what to do.
    """
    if name == "digits":
        return _digits()
    if name not in PUBLISHED:
        raise DataError(f"unknown data set {name!r}; known are {', '.join(names())}")
    published = PUBLISHED[name]
    content = fetch(name, published.checksums, published.sources, cache=cache)
    return DataSet(name, published.classes, *published.read(content))


def fetch(name: str, checksums: Mapping[str, str], sources: Sequence[Source], *, cache: str | Path | None = None) -> dict[str, bytes]:
    """The contents of published files, from the cache or from the first source that delivers them right.

    Args:
        name: what to call them in messages, and the folder of the cache that keeps them.
        checksums: MD5 of each file, uncompressed, by its name.
        sources: where to ask, in this order.
        cache: folder to keep them in instead of `cache_folder()`.

    Raises:
        DataError: if the files cannot be had or kept; the message says what to do.
    """
    folder = Path(cache or cache_folder()) / name
    try:
        return _cached(checksums, folder) or _fetched(name, checksums, sources, folder)
    except OSError as error:
        raise DataError(_storage_advice(name, folder, error)) from error


def _digits() -> DataSet:
    """1,797 digits of 8 x 8 pixels, the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, UCI Machine
    Learning Repository, CC BY 4.0) as handed out by scikit-learn (BSD-3-Clause). Of each class, every fifth image is test."""
    with package_files("truesparse.data").joinpath("digits.npz").open("rb") as file, np.load(file) as arrays:
        tensors = {key: torch.from_numpy(arrays[key]) for key in arrays}
    return DataSet(
        "digits",
        tuple("0123456789"),
        tensors["train_images"].unsqueeze(1),
        tensors["train_labels"].long(),
        tensors["test_images"].unsqueeze(1),
        tensors["test_labels"].long(),
    )


def _cached(checksums: Mapping[str, str], folder: Path) -> Files | None:
    """The contents of the cached files, or None if one is missing or damaged, which is then said on stderr."""
    content: Files = {}
    for name, expected in checksums.items():
        path = folder / f"{name}.gz"
        if not path.exists():
            return None
        try:
            content[name] = gzip.decompress(path.read_bytes())
        except (gzip.BadGzipFile, EOFError, zlib.error):
            content[name] = b""
        if _md5(content[name]) != expected:
            print(f"{path} is damaged; fetching it again", file=sys.stderr)
            return None
    return content


def _fetched(name: str, checksums: Mapping[str, str], sources: Sequence[Source], folder: Path) -> Files:
    """The contents of the files from the first source that delivers them right, kept in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    failures: list[str] = []
    for source in sources:
        try:
            content = _verified(source.fetch(), checksums)
        except FetchError as error:
            failures.append(f"{source.label}: {error}")
            continue
        for file, checked in content.items():
            with atomic_file(folder / f"{file}.gz") as kept:
                kept.write(gzip.compress(checked, COMPRESSION, mtime=0))
        return content
    raise DataError(
        f"cannot get the data set {name}. Tried "
        + "; ".join(failures)
        + f". Connect this machine to the network or install what it lacks, or copy the folder {folder} from a machine that has it"
    )


def _verified(files: Files, checksums: Mapping[str, str]) -> Files:
    for name, expected in checksums.items():
        if name not in files:
            raise FetchError(f"it holds no {name}")
        found = _md5(files[name])
        if found != expected:
            raise FetchError(f"wrong checksum: {name} has MD5 {found}, expected {expected}; nothing of it was kept")
    return {name: files[name] for name in checksums}


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _storage_advice(name: str, folder: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"cannot keep the data set {name}: the disk is full ({error.filename or folder}); free space, or set TRUESPARSE_DATA"
    where = error.filename or folder
    return f"cannot use the cache folder {folder}: {where}: {error.strerror or error}; set TRUESPARSE_DATA to a folder you may write to"
