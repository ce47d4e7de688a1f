"""Readers: right on whole files, a plain ValueError on anything else."""

import gzip
import io
import json
import tarfile
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from truesparse.data.formats import cifar_batch_from_png, read_cifar_batch, read_deb, read_idx, read_tar


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(extent.to_bytes(4, "big") for extent in array.shape) + array.tobytes()


def deb(*members: tuple[str, bytes]) -> bytes:
    content = b"!<arch>\n"
    for name, data in members:
        content += f"{name + '/':<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    return content


def tar(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_idx_round_trip(shape, random):
    array = np.frombuffer(random.randbytes(int(np.prod(shape))), np.uint8).reshape(shape)
    assert torch.equal(read_idx(idx(array)), torch.from_numpy(array.copy()))


@given(st.integers(0, 40))
def test_a_truncated_idx_file_is_refused(length):
    whole = idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    assert len(whole) == 40
    if length < len(whole):
        with pytest.raises(ValueError, match="IDX"):
            read_idx(whole[:length])


@given(st.data())
def test_a_damaged_idx_file_gives_its_shape_or_a_value_error(data):
    content = bytearray(idx(np.zeros((2, 3), np.uint8)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content += data.draw(st.binary(max_size=3))
    try:
        array = read_idx(bytes(content))
    except ValueError:
        return
    assert 4 + 4 * array.ndim + array.numel() == len(content)


@given(st.binary(max_size=60))
def test_any_bytes_are_an_idx_file_or_a_value_error(content):
    with suppress(ValueError):
        read_idx(content)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "two zero bytes, got nothing"),
        (b"\x1f\x8b\x08\x00", "two zero bytes, got 1f8b0800"),
        (b"\0\0\x0d\x01" + b"\0\0\0\0", r"unsigned bytes \(type 08\), got type 0d"),
        (b"\0\0\x08\x03" + b"\0\0\0\1", "3 dimensions in 16 bytes, this one ends after 8"),
        (b"\0\0\x08\x01" + b"\0\0\0\5" + b"abc", "states 5 bytes of data but holds 3"),
    ],
)
def test_idx_errors(content, text):
    with pytest.raises(ValueError, match=text):
        read_idx(content)


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w"])
def test_deb(mode):
    packed = tar({"./usr/share/x": b"hello"}, mode)
    assert read_deb(deb(("debian-binary", b"2.0\n"), ("odd", b"1"), ("data.tar" + mode[1:].replace(":", "."), packed))) == {
        "usr/share/x": b"hello"
    }


@given(st.integers(0, 5000), st.integers(0, 255))
def test_a_damaged_deb_is_refused_or_read(at, byte):
    content = bytearray(deb(("debian-binary", b"2.0\n"), ("data.tar.gz", tar({"a": b"x" * 300}))))
    content[at % len(content)] = byte
    with suppress(ValueError):
        read_deb(bytes(content))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"PK\3\4", "starts with !<arch>"),
        (deb(("debian-binary", b"2.0\n")), "a member data.tar, found none"),
        (deb(("data.tar.gz", b"x" * 100))[:-20], "damaged at its member 'data.tar.gz'"),
        (deb(("data.tar.zst", b"\x28\xb5\x2f\xfd" * 9)), "cannot read data.tar.zst"),
    ],
)
def test_deb_errors(content, text):
    with pytest.raises(ValueError, match=text):
        read_deb(content)


def test_a_truncated_tar_is_refused():
    noise = bytes(np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8))
    with pytest.raises(ValueError, match="cannot read it"):
        read_tar(tar({"a": noise})[:2000], "it")
    with pytest.raises(ValueError, match="cannot read it"):
        read_tar(gzip.compress(b"no tar"), "it")


def test_cifar_from_png_is_the_binary_version():
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(images.transpose(0, 2, 3, 1).reshape(4, 1024, 3)).save(out, "PNG")
    read, labels = read_cifar_batch(cifar_batch_from_png(out.getvalue(), json.dumps([3, 1, 4, 1]).encode()))
    assert torch.equal(read, torch.from_numpy(images))
    assert labels.tolist() == [3, 1, 4, 1]
    with pytest.raises(ValueError, match=r"expected 3 images of 1024 pixels, got \(4, 1024, 3\)"):
        cifar_batch_from_png(out.getvalue(), b"[1, 2, 3]")
    with pytest.raises(ValueError, match="damaged PNG or labels"):
        cifar_batch_from_png(out.getvalue()[:500], b"[1, 2, 3, 4]")
    with pytest.raises(ValueError, match="damaged PNG or labels"):
        cifar_batch_from_png(out.getvalue(), b"[1, 2,")


def test_a_cifar_batch_of_broken_records_is_refused():
    with pytest.raises(ValueError, match="records of 3073 bytes, got 3072"):
        read_cifar_batch(bytes(3072))
