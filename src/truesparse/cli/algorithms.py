"""`truesparse algorithms`: what is registered, with which settings, from which paper?"""

from __future__ import annotations


def algorithms() -> None:
    """List the algorithms with their settings, defaults and papers."""
    import dataclasses
    import inspect
    import sys

    from rich.table import Table

    from ..algorithms import ALGORITHMS
    from .results import wide_console

    table = Table("algorithm", "settings and defaults", "what it does, paper", show_lines=True)
    for name, kind in sorted(ALGORITHMS.items()):
        settings = "\n".join(f"{field.name}={field.default}" for field in dataclasses.fields(kind))
        described = inspect.getdoc(sys.modules[kind.__module__]) or ""
        table.add_row(name, settings or "-", described.splitlines()[0] if described else "-")
    wide_console().print(table)
