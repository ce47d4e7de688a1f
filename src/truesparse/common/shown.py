"""How do values look to people: as a table of text, and as HTML in a notebook? Everything that HTML is made of is escaped here."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.table import Table as RichTable

T = TypeVar("T")

MOST_ROWS = 100
"""Rows that a notebook shows of a table: a network may have more layers than anyone reads, and each cell is kept in the notebook's file."""

NAMES_SAID = 6
"""Names that a message tells of many."""

# Seen on white and on black.
CELL = "padding:.15em .6em;border-bottom:1px solid rgba(128,128,128,.4)"
TABLE = '<table style="color:inherit;border-collapse:collapse">'


@dataclass(frozen=True)
class Table:
    """A table in words; the medium decides how it is drawn.

    Args:
        heads: names of the columns.
        rows: cells, as many in each row as there are heads.
        total: a last row below a line, or nothing.
        numeric: which columns stand to the right.
        title, caption: above and below, or "".
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    total: tuple[str, ...] = ()
    numeric: frozenset[int] = frozenset()
    title: str = ""
    caption: str = ""

    def rich(self) -> RichTable:
        """For a `rich.console.Console`."""
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=self.title or None, caption=self.caption or None)
        for place, head in enumerate(self.heads):
            table.add_column(head, justify="right" if place in self.numeric else "left")
        for row in self.rows:
            table.add_row(*map(Text, row))  # as Text: names may have the brackets that rich reads as its own
        if self.total:
            table.add_section()
            table.add_row(*map(Text, self.total))
        return table

    def text(self, width: int = 160) -> str:
        """With lines around it, at most `width` characters wide."""
        from rich.console import Console

        console = Console(width=width, color_system=None)
        with console.capture() as captured:
            console.print(self.rich())
        return captured.get()

    def html(self) -> str:
        """For a notebook, in light and dark; of many rows the first and the last."""
        rows = [self._row(row, "td") for row in ends(self.rows, MOST_ROWS)]
        if len(self.rows) > MOST_ROWS:
            left_out = f'<tr><td colspan="{len(self.heads)}">&hellip; {len(self.rows) - MOST_ROWS:,} more &hellip;</td></tr>'
            rows.insert(MOST_ROWS // 2, left_out)
        caption = f'<caption style="text-align:left;font-weight:bold">{escape(self.title)}</caption>' if self.title else ""
        total = f"<tfoot>{self._row(self.total, 'th')}</tfoot>" if self.total else ""
        below = f"<div><small>{escape(self.caption)}</small></div>" if self.caption else ""
        return f"{TABLE}{caption}<thead>{self._row(self.heads, 'th')}</thead><tbody>{''.join(rows)}</tbody>{total}</table>{below}"

    def _row(self, cells: Sequence[str], kind: str) -> str:
        aligned = ("right" if place in self.numeric else "left" for place in range(len(cells)))
        made = (f'<{kind} style="text-align:{side};{CELL}">{escape(cell)}</{kind}>' for side, cell in zip(aligned, cells, strict=True))
        return f"<tr>{''.join(made)}</tr>"


def facts(title: str, pairs: Sequence[tuple[str, str]], beside: str = "") -> str:
    """HTML of names and what they are, with HTML of a picture beside them."""
    cell = f'style="text-align:left;{CELL}"'
    rows = "".join(f"<tr><th {cell}>{escape(name)}</th><td {cell}>{escape(value)}</td></tr>" for name, value in pairs)
    told = f"<div><b>{escape(title)}</b>{TABLE}<tbody>{rows}</tbody></table></div>"
    return f'<div style="display:flex;gap:1.5em;align-items:flex-start;flex-wrap:wrap">{told}{beside}</div>'


def picture(png: bytes, width: int, caption: str) -> str:
    """HTML of a picture, `width` CSS pixels wide, that needs nothing but itself."""
    source = f"data:image/png;base64,{b64encode(png).decode()}"
    look = f"width:{width}px;max-width:none;image-rendering:pixelated;border:1px solid rgba(128,128,128,.6);margin:0"
    text = escape(caption)
    return (
        f'<figure style="margin:0"><img src="{source}" alt="{text}" style="{look}"/><figcaption><small>{text}</small></figcaption></figure>'
    )


def ends(values: Sequence[T], most: int) -> Sequence[T]:
    """The first and the last of them, `most` in all."""
    half = most // 2
    return values if len(values) <= most else [*values[:half], *values[len(values) - (most - half) :]]


def nbytes_said(count: int) -> str:
    """For people: "12.3 kB"."""
    if count < 1_000_000:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.2f} MB" if count < 1_000_000_000 else f"{count / 1e9:.2f} GB"


def listed(names: Collection[str]) -> str:
    """The first of some names, for a message: "'a', 'b' and 3 more"."""
    said = ", ".join(map(repr, islice(names, NAMES_SAID))) or "none"
    return said if len(names) <= NAMES_SAID else f"{said} and {len(names) - NAMES_SAID} more"
