"""How does the speed-up grow with sparsity? One picture, drawn with matplotlib, which is an extra: `pip install truesparse[bench]`."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from pathlib import Path

from ..runs import ConfigError
from ..runs.machine import threads_said
from .document import Document
from .layers import FORWARD
from .page import curves
from .timing import break_even

TICKS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
RATIOS = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")


def write_plot(path: Path, documents: Sequence[Document]) -> None:
    """Draws the layer measured at most sparsities: times as fast as dense against sparsity, break-even points marked.

    Args:
        path: of the picture; its ending says the format.
        documents: at least one of `bench linear` or `bench conv`.

    Raises:
        ConfigError: if there is nothing to draw, or matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("a plot needs matplotlib: pip install 'truesparse[bench]'") from error
    name, of_layer = curves(documents)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axhline(1, color="grey", linewidth=1)
    threads = sorted({count for _, count in of_layer})
    for (direction, count), curve in of_layer.items():
        points = sorted(curve.items())
        style = "-" if direction == FORWARD else "--"
        colour, even = COLOURS[threads.index(count) % len(COLOURS)], break_even(curve)
        label = f"{direction}, {threads_said(count)}" + (f": break-even at {even:.0%}" if even is not None else "")
        axes.plot([_place(at) for at, _ in points], [ratio for _, ratio in points], style, marker=".", color=colour, label=label)
        if even is not None:
            axes.plot([_place(even)], [1], marker="o", color=colour, fillstyle="none")
    axes.set_xticks([_place(tick) for tick in TICKS], [f"{tick:.0%}" for tick in TICKS])
    axes.set_yscale("log")
    axes.set_yticks(RATIOS, [f"{ratio:g}" for ratio in RATIOS])
    axes.minorticks_off()
    ratios = [ratio for curve in of_layer.values() for ratio in curve.values()]
    axes.set_ylim(min(*ratios, 1) / 1.3, max(*ratios, 1) * 1.3)
    axes.set(xlabel="sparsity", ylabel="times as fast as dense PyTorch", title=f"{name} ({documents[0].machine['instruction_set']})")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None} if path.suffix == ".png" else None)


def _place(sparsity: float) -> float:
    """Equal steps for equal factors of density."""
    return -log10(1 - sparsity)
