"""What is the outside of a compressed file? A mark, a digest, a description, and streams one after the other.

4 bytes    TSZ1
32 bytes   SHA-256 of all that follows
4 bytes    length of the description in the file, lowest byte first
4 bytes    length of the description
...        the description: JSON, compressed by zlib
...        pieces, in the order in which the description says their lengths
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..header import once, refused

MARK = b"TSZ1"
DIGEST, LENGTH = 32, 4
LONGEST_DESCRIPTION = 1 << 24


class Pieces:
    """The pieces of a file that is being read, one after the other."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    def take(self, length: Any) -> bytes:
        """The next one.

        Raises:
            ValueError: if there are not so many bytes.
        """
        if type(length) is not int or not 0 <= length <= len(self._content) - self._at:
            raise ValueError(f"a piece of {length!r:.40} bytes is not there: {len(self._content) - self._at} are left")
        self._at += length
        return self._content[self._at - length : self._at]

    def check_end(self) -> None:
        """
        Raises:
            ValueError: if there are more.
        """
        if self._at != len(self._content):
            raise ValueError(f"{len(self._content) - self._at} bytes follow that nothing is said of")


def put_together(description: Mapping[str, Any], pieces: list[bytes]) -> list[bytes]:
    """What a file consists of."""
    text = json.dumps(description, separators=(",", ":")).encode()
    if len(text) > LONGEST_DESCRIPTION:
        raise ValueError(f"the description of the model has {len(text)} bytes, more than {LONGEST_DESCRIPTION}: save its parts apart")
    short = zlib.compress(text, 9)
    rest = [len(short).to_bytes(LENGTH, "little"), len(text).to_bytes(LENGTH, "little"), short, *pieces]
    digest = hashlib.sha256()
    for piece in rest:
        digest.update(piece)
    return [MARK, digest.digest(), *rest]


def taken_apart(content: bytes) -> tuple[dict[str, Any], Pieces]:
    """(description, pieces) of a whole file.

    Raises:
        ValueError: if it is none, or not byte for byte what was written.
    """
    if not content.startswith(MARK):
        raise ValueError(f"expected a file of truesparse.compress, which begins with {MARK!r}")
    rest = Pieces(content[len(MARK) :])
    if rest.take(DIGEST) != hashlib.sha256(content[len(MARK) + DIGEST :]).digest():
        raise ValueError("its bytes are not those that were written (SHA-256 differs); get the file again")
    short, long = (int.from_bytes(rest.take(LENGTH), "little") for _ in range(2))
    if long > LONGEST_DESCRIPTION:
        raise ValueError(f"its description has {long} bytes, more than {LONGEST_DESCRIPTION}")
    reader = zlib.decompressobj()
    try:
        text = reader.decompress(rest.take(short), long + 1)
    except zlib.error as error:
        raise ValueError(f"its description is damaged: {error}") from error
    if len(text) != long or not reader.eof or reader.unused_data:
        raise ValueError(f"its description has not the {long} bytes that it says")
    found = json.loads(text.decode(), object_pairs_hook=once, parse_constant=refused)
    if type(found) is not dict:
        raise ValueError("its description is no JSON object")
    return found, rest


def is_compressed(path: Path) -> bool:
    """Whether it begins as a compressed file does. A file that cannot be read does not."""
    try:
        with path.open("rb") as file:
            return file.read(len(MARK)) == MARK
    except OSError:
        return False
