"""How does a table become Markdown, and where in a page does it go? Between two markers that bear a name."""

from __future__ import annotations

from pathlib import Path


def table_row(*cells: object) -> str:
    """One line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def table_head(*names: str) -> list[str]:
    """The first two lines of a table."""
    return [table_row(*names), "|" + "---|" * len(names)]


def replaced_between_markers(text: str, name: str, inside: str) -> str:
    """`text` with `inside` as all that is between its markers `<!-- NAME -->` and `<!-- /NAME -->`.

    Raises:
        ValueError: unless each marker is there once, in this order.
    """
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = text.partition(opening)
    _, found_too, after = rest.partition(closing)
    if not found or not found_too or opening in rest or closing in before + after:
        raise ValueError(f"expected {opening} and, after it, {closing}, each once")
    return f"{before}{opening}\n{inside.strip()}\n{closing}{after}"


def write_between_markers(path: Path, name: str, inside: str) -> None:
    """Puts `inside` between the markers of the file at `path`.

    Raises:
        ValueError: if the file cannot be read, or lacks a marker. It is then unchanged.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    try:
        page = replaced_between_markers(text, name, inside)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    path.write_text(page)
