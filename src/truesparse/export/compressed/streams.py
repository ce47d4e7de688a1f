"""How do small whole numbers become bytes, in about as many bits as their entropy says? By how often each is there, and a coder by range.

A stream is

* a table: its length as a number, then the share of each symbol as a number, in units of 1 / their sum, which is a power of two; after a
  share of 0, how many more shares of 0 follow;
* CRC-32 of the symbols, one byte each, as four bytes;
* words of 32 bits of asymmetric numeral systems (Duda 2013, https://arxiv.org/abs/1311.2540), as the library constriction writes them
  for that table: `AnsCoder`, symbols encoded in reverse;
* zeros, so that nothing large is made of a small file: a stream has at least a byte for 256 symbols, or other entries that are made of it.

The numbers of the table have seven bits a byte, the lowest first; the highest bit says that another byte follows. A table of length 0
stands for symbols as they are, one byte each, in place of the words.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.optional import library

Symbols = NDArray[np.uint8]

SYMBOLS_A_BYTE = 256  # at most: so much larger may be what is read than what was in the file
MOST_PRECISION, LEAST_PRECISION = 14, 4  # bits of a share
WORD, CHECK = 4, 4  # bytes


@dataclass(frozen=True)
class Coded:
    """A stream.

    Attributes:
        content: all of it.
        symbols: how many it holds.
        entropy: of them, in bits all together, by how often each is there.
    """

    content: bytes
    symbols: int
    entropy: float


def encode(symbols: Symbols, entries: int = 0) -> Coded:
    """The stream of symbols, [n] uint8.

    Args:
        entries: of what else is made of them, if these are more.
    """
    counts = np.bincount(symbols)
    entropy = entropy_of(counts)
    content = raw = _written([0]) + _check(symbols) + symbols.tobytes()
    if entropy / 8 < symbols.size:
        shares = _shares(counts)
        coder = _library().stream.stack.AnsCoder()
        coder.encode_reverse(symbols.astype(np.int32), _model(shares))
        words: NDArray[np.uint32] = coder.get_compressed()
        content = b"".join((_written([shares.size, *_runs(shares.tolist())]), _check(symbols), words.astype("<u4").tobytes()))
    content = min(content, raw, key=len)
    return Coded(content.ljust(-(-max(symbols.size, entries) // SYMBOLS_A_BYTE), b"\0"), symbols.size, entropy)


def decode(content: bytes, symbols: int, entries: int = 0) -> Symbols:
    """The symbols of a stream.

    Args:
        symbols: how many there must be.
        entries: as for `encode`.

    Raises:
        ValueError: if it holds no such stream. Nothing larger than in proportion to its bytes has been made then.
    """
    if max(symbols, entries) > SYMBOLS_A_BYTE * len(content):
        raise ValueError(f"{len(content)} bytes cannot hold {max(symbols, entries)} entries")
    length, at = _read(content, 0)
    if length > 256:
        raise ValueError(f"a table has at most 256 shares, got {length}")
    shares: list[int] = []
    while len(shares) < length:
        share, at = _read(content, at)
        more, at = _read(content, at) if share == 0 else (0, at)
        shares += [share] * (1 + min(more, length))
    check, rest = content[at : at + CHECK], content[at + CHECK :]
    if length == 0:
        found = np.frombuffer(rest, dtype=np.uint8)[:symbols]
        if found.size != symbols:
            raise ValueError(f"expected {symbols} symbols, got {found.size}")
    else:
        found = _decoded(rest, np.array(shares[:length], dtype=np.int64), symbols)
    if check != _check(found):
        raise ValueError("its symbols are not those that were written (CRC-32 differs)")
    return found


def entropy_of(counts: NDArray[Any]) -> float:
    """Bits, all together, of symbols that are there so often each."""
    there = counts[counts > 0].astype(np.float64)
    return float((there * np.log2(there.sum() / there)).sum()) if there.size else 0.0


def _decoded(rest: bytes, shares: NDArray[np.int64], symbols: int) -> Symbols:
    whole = int(shares.sum())
    if whole & (whole - 1) or not 0 < whole <= 2**MOST_PRECISION:
        raise ValueError(f"the shares of a table add up to a power of two up to {2**MOST_PRECISION}, got {whole}")
    rest = rest.rstrip(b"\0")  # the last word is never zero
    words = np.frombuffer(rest.ljust(-(-len(rest) // WORD) * WORD, b"\0"), dtype="<u4").astype(np.uint32)
    coder = _library().stream.stack.AnsCoder(words)
    found: NDArray[np.int32] = coder.decode(_model(shares), symbols)
    return found.astype(np.uint8)


def _library() -> Any:
    return library("constriction", "compress", "the coder of compressed networks")


def _model(shares: NDArray[np.int64]) -> Any:
    probabilities = np.append(shares, 0) / shares.sum()  # exact; the library takes no alphabet of one symbol
    return _library().stream.model.Categorical(probabilities.astype(np.float64), perfect=False)


def _shares(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """As near to the counts as whole numbers are that add up to a power of two, and at least 1 where there is a symbol."""
    there = np.flatnonzero(counts)
    precision = max(LEAST_PRECISION, min(MOST_PRECISION, int(counts.sum()).bit_length()), int(there.size).bit_length())
    exact = counts[there] * (2**precision / counts.sum())
    own = np.maximum(1, np.floor(exact)).astype(np.int64)
    while missing := 2**precision - int(own.sum()):
        # Who gains most, or loses least, by one more or one less.
        gain = counts[there] * (np.log2(own + 1) - np.log2(own)) if missing > 0 else -counts[there] * _loss(own)
        chosen = np.argsort(-gain, kind="stable")[: min(abs(missing), there.size)]
        if missing < 0:
            chosen = chosen[own[chosen] > 1]
        own[chosen] += 1 if missing > 0 else -1
    shares = np.zeros(counts.size, dtype=np.int64)
    shares[there] = own
    return shares


def _loss(own: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.where(own > 1, np.log2(own) - np.log2(np.maximum(own - 1, 1)), np.inf)


def _runs(shares: list[int]) -> list[int]:
    """With the zeros that follow a zero counted, in place of them."""
    numbers: list[int] = []
    for share, group in groupby(shares):
        count = len(list(group))
        numbers += [0, count - 1] if share == 0 else [share] * count
    return numbers


def _check(symbols: Symbols) -> bytes:
    return zlib.crc32(symbols.tobytes()).to_bytes(CHECK, "little")


def _written(numbers: list[int]) -> bytes:
    content = bytearray()
    for number in numbers:
        while number > 127:
            content.append(number % 128 + 128)
            number //= 128
        content.append(number)
    return bytes(content)


def _read(content: bytes, at: int) -> tuple[int, int]:
    """(a number, where it ends)."""
    number = 0
    for place, byte in enumerate(content[at : at + 3]):
        number += (byte & 127) << 7 * place
        if byte < 128:
            return number, at + place + 1
    raise ValueError("its table ends too early, or has numbers of more than three bytes")
