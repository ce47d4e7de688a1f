"""Which optional library is missing, and what installs it? They are imported here, when they are used."""

from __future__ import annotations

import importlib
from typing import Any


class MissingLibrary(ImportError):
    """A library is wanted that truesparse does not need by itself."""


def library(module: str, extra: str, what: str) -> Any:
    """The module, imported.

    Args:
        module: its full name.
        extra: of truesparse, that installs it.
        what: needs it, for the message.

    Raises:
        MissingLibrary: if it, or something that it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        absent = error.name or module
        raise MissingLibrary(f"{what} needs {absent}, which is not installed: pip install 'truesparse[{extra}]'") from error
