"""What do all figures share? How they are made and shown, their colours, and how a run, a variant or a layer is named."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.optional import library
from ..report import Run, read_run
from ..topology.picture import PALETTES, Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

AnyRun = Run | Path | str

DPI = 120
# Those of the page of `truesparse report`.
VARIANTS = {
    "usual": {"dense": "#7d848d", "masked": "#bd7a14", "sparse": "#1f68ad"},
    "safe": {"dense": "#8a8a8a", "masked": "#d98c00", "sparse": "#0072b2"},
}
SERIES = {
    "usual": ("#1f68ad", "#c8501e", "#2f8a57", "#8a4aa5", "#a37b00", "#4d5560"),
    "safe": ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#6b6b6b"),
}
NAMES = {"dense": "dense", "masked": "dense + mask", "sparse": "truly sparse"}
STYLES = ("-", "--", ":", "-.")


def figure(width: float, height: float) -> Figure:
    """An empty one, in inches. It belongs to no window and shows itself in a notebook once."""
    return _kind()(figsize=(width, height), dpi=DPI, layout="constrained")


@lru_cache
def _kind() -> type[Figure]:
    base: Any = library("matplotlib.figure", "plot", "a picture").Figure

    class Shown(base):
        # Without pyplot, whose figures stay in memory, notebooks would show a figure as text.
        def _repr_png_(self) -> bytes:
            return png(self)

    return Shown


def png(drawn: Figure) -> bytes:
    """The file's content. Equal figures give equal files."""
    content = BytesIO()
    drawn.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
    return content.getvalue()


def colours(palette: str) -> Palette:
    """
    Raises:
        ValueError: if there is no such palette.
    """
    if palette not in PALETTES:
        raise ValueError(f"unknown palette {palette!r}; known are {', '.join(PALETTES)}")
    return PALETTES[palette]


def hexadecimal(colour: tuple[int, int, int]) -> str:
    """As matplotlib takes it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def as_run(run: AnyRun) -> Run:
    """The run, read if its folder is given."""
    return run if isinstance(run, Run) else read_run(run)


def as_runs(runs: AnyRun | Sequence[AnyRun]) -> tuple[Run, ...]:
    """One or several.

    Raises:
        ValueError: if there is none.
    """
    found = tuple(map(as_run, [runs] if isinstance(runs, Run | Path | str) else runs))
    if not found:
        raise ValueError("expected at least one run, got none")
    return found


def sparse_variant(run: Run, variant: str | None) -> str:
    """`variant`, or the one whose topologies tell most.

    Raises:
        ValueError: if it has no topologies.
    """
    known = [name for name in run.variants if name != "dense"]
    chosen = variant or run.sparse_variant
    if chosen not in known:
        raise ValueError(f"expected a variant of {run.name} with topologies: {', '.join(known) or 'there is none'}; got {chosen!r}")
    return chosen


def checked_layer(run: Run, layer: str) -> str:
    """
    Raises:
        ValueError: if the run has no such layer.
    """
    if layer not in run.layers:
        raise ValueError(f"{run.name} has no sparse layer {layer!r}; its layers are {', '.join(map(repr, run.layers)) or 'none'}")
    return layer


def said(layer: str) -> str:
    """The name of a layer in a title."""
    return f"layer {layer}" if layer else "the layer"


def tidy(axes: Axes, **labels: Any) -> Axes:
    """The look of all diagrams: a faint grid, no box."""
    axes.set(**labels)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return axes


def whole_numbers(axis: Axis) -> None:
    """No fractions of an epoch, or of a neuron."""
    axis.set_major_locator(library("matplotlib.ticker", "plot", "a picture").MaxNLocator(integer=True))
