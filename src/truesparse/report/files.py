"""How is a file of a run folder read, so that whoever asked learns which file is wrong, and what to do?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ..runs import RunError


@dataclass(frozen=True, eq=False)
class Stored:
    """A safetensors file of a run.

    Attributes:
        described: what its metadata say.
        tensors: by name.
    """

    described: Mapping[str, Any]
    tensors: Mapping[str, NDArray[Any]]


def damaged(path: Path, reason: str) -> RunError:
    """The error that says so."""
    return RunError(f"{path} is damaged: {reason}; restore it from a copy, or train again with another --out")


def read_json(path: Path) -> Any:
    """
    Raises:
        RunError: if the file cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise damaged(path, str(error)) from error


def read_lines(path: Path) -> list[Mapping[str, Any]]:
    """A JSON object of each line.

    Raises:
        RunError: if the file cannot be read, or a line is none.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise damaged(path, str(error)) from error
    if not all(isinstance(line, dict) for line in lines):
        raise damaged(path, "expected a JSON object in each line")
    return lines


def read_tensors(path: Path, names: Sequence[str] | None = None) -> Stored:
    """The tensors `names` of a file; None: all.

    Raises:
        RunError: if the file is missing or damaged, or has no such tensor.
    """
    try:
        with safe_open(path, framework="np") as file:
            described = json.loads((file.metadata() or {}).get("truesparse", "{}"))
            return Stored(described, {name: file.get_tensor(name) for name in (file.keys() if names is None else names)})
    except FileNotFoundError as error:
        raise RunError(f"the run lacks {path}; restore it from a copy, or train again with another --out") from error
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error
    except (SafetensorError, ValueError, TypeError) as error:
        raise damaged(path, (str(error).splitlines() or [type(error).__name__])[0]) from error
