"""How is a mask drawn in a terminal? Two positions in a character where there are colours, one where there are none."""

from __future__ import annotations

from rich.color import Color
from rich.style import Style
from rich.text import Text
from torch import Tensor

from ..report import Stage
from ..topology.picture import USUAL, pixels

SIGNS = {"unchanged": "#", "dropped": "-", "grown": "+", "absent": "."}


def mask_text(stage: Stage, rows: int, columns: int, in_colours: bool) -> Text:
    """The first rows and columns of a layer.

    Args:
        stage: its topology, and what its last update changed.
        rows, columns: to draw at most.
        in_colours: white unchanged, red dropped, green grown; otherwise as `SIGNS` says.
    """
    shape = stage.topology.shape
    part = min(rows, shape[0]), min(columns, shape[1])
    unchanged = stage.topology.keys
    unchanged = unchanged[~_among(unchanged, stage.grown)]
    unchanged, dropped, grown = (_cut(keys, shape[1], part) for keys in (unchanged, stage.dropped, stage.grown))
    return _coloured(pixels(part, unchanged, dropped, grown, USUAL, part)) if in_colours else _signed(part, unchanged, dropped, grown)


def _among(keys: Tensor, others: Tensor) -> Tensor:
    return (keys[:, None] == others[None, :]).any(1) if others.numel() else keys != keys


def _cut(keys: Tensor, width: int, part: tuple[int, int]) -> Tensor:
    """The positions that lie in the upper left part, by its own numbers."""
    row, column = keys // width, keys % width
    inside = (row < part[0]) & (column < part[1])
    return row[inside] * part[1] + column[inside]


def _coloured(image: Tensor) -> Text:
    colours = image.tolist()
    drawn = Text(no_wrap=True, end="")
    for upper in range(0, len(colours), 2):
        for place, above in enumerate(colours[upper]):
            below = colours[upper + 1][place] if upper + 1 < len(colours) else None
            style = Style(color=Color.from_rgb(*above), bgcolor=None if below is None else Color.from_rgb(*below))
            drawn.append("▀", style)
        drawn.append("\n")
    return drawn


def _signed(part: tuple[int, int], unchanged: Tensor, dropped: Tensor, grown: Tensor) -> Text:
    signs = [SIGNS["absent"]] * (part[0] * part[1])
    for name, keys in (("unchanged", unchanged), ("dropped", dropped), ("grown", grown)):
        for key in keys.tolist():
            signs[key] = SIGNS[name]
    lines = ("".join(signs[start : start + part[1]]) for start in range(0, len(signs), part[1]))
    return Text("".join(f"{line}\n" for line in lines), no_wrap=True, end="")
