"""How is a Python file of a user run, and what is said if it cannot be? For recipes and for algorithms alike."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from .errors import ConfigError

MOST_SAID = 400  # characters of an error: torch's own go on for pages
INSTALLED = frozenset({"site-packages", "dist-packages"})
PACKAGE = Path(__file__).parent.parent


def read_source(path: Path, what: str, given: str) -> bytes:
    """The text of the file.

    Args:
        path: of the file.
        what: names its kind in messages.
        given: what the user called it.

    Raises:
        ConfigError: if it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the {what} {given}: {error.strerror}") from error


def executed(path: Path, what: str, may_import_neighbours: bool = True) -> ModuleType:
    """The file as a module. With `may_import_neighbours` it can import what stands beside it, as `python FILE.py` can.

    Raises:
        ConfigError: if it is not Python, or raises. The message names the line.
    """
    if may_import_neighbours and str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    name = f"truesparse_{what}_{path.stem}"
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise ConfigError(f"the {what} {path.name} is not a Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except SyntaxError as error:
        raise ConfigError(f"the {what} {path.name} is not Python: line {error.lineno}: {error.msg}") from error
    except Exception as error:
        raise ConfigError(failure(f"the {what} {path.name} could not be imported", error, path)) from error
    return module


def failure(happened: str, error: Exception, *files: Path) -> str:
    """One line: what happened, the last place in the user's own code that led to it, and the error.

    Args:
        happened: begins the line.
        error: what was raised; its traceback is searched.
        files: of the user. What lies below their folders is the user's too, unless it is an installed package.
    """
    frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    places = [f", {shown}:{line}" for path, line in frames if (shown := _among(path, files)) is not None]
    said = " ".join(str(error).split())
    shortened = said if len(said) <= MOST_SAID else f"{said[:MOST_SAID]}..."
    return f"{happened}{places[-1] if places else ''}: {type(error).__name__}: {shortened}; --traceback shows all of it"


def _among(path: Path, files: Sequence[Path]) -> str | None:
    """What to call a file of the user, None if it is none."""
    for file in files:
        if path == file:
            return path.name
        if path.is_relative_to(file.parent) and not INSTALLED & set(path.parts) and not path.is_relative_to(PACKAGE):
            return str(path.relative_to(file.parent))
    return None
