"""How does a file of this package come to its place? Whole, or not at all and with a line that says why."""

from __future__ import annotations

import errno
from pathlib import Path

from ..common.files import atomic_file
from .errors import FileError

ADVICE = "choose a folder that exists and can be written. Nothing was changed"


def check_place(path: Path) -> None:
    """To be asked before the work whose result comes to `path`.

    Raises:
        FileError: if no file can come there, as far as can be told without writing it.
    """
    if path.is_dir():
        raise FileError(f"cannot write {path}: it is a folder; name a file in it. Nothing was changed")
    if not path.parent.is_dir():
        raise FileError(f"cannot write {path}: there is no folder {path.parent}; {ADVICE}")


def write_file(path: Path, *pieces: bytes | memoryview) -> None:
    """The pieces one after the other as the file at `path`.

    Raises:
        FileError: if it cannot be written; what was there is still there.
    """
    try:
        with atomic_file(path) as file:
            for piece in pieces:
                file.write(piece)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise FileError(f"cannot write {path}: the disk is full; free space. Nothing was changed") from error
        raise FileError(f"cannot write {path}: {error.strerror}; {ADVICE}") from error
