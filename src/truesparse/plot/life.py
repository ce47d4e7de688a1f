"""How did the connections of a run live? Survival, age, exploration, change, neurons: from the topologies after each update."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..report import Evolution, Run, evolution
from .figure import SERIES, STYLES, AnyRun, as_run, checked_layer, colours, figure, hexadecimal, said, sparse_variant, tidy, whole_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEP = "step of training"
MOST_BIRTHS = 12
MOST_BINS = 40


def survival(run: AnyRun, layer: str | None = None, *, variant: str | None = None, palette: str = "usual") -> Figure:
    """Which share of the first connections has lived ever since.

    Args:
        run: a run, or its folder.
        layer: its name; None: all layers.
        variant: "sparse" or "masked"; None: the truly sparse one if there is one.
        palette: "usual" or "safe".

    Raises:
        ValueError: if there is no such layer, variant or palette. The message says what there is.
        MissingLibrary: if matplotlib is not installed.
        RunError: if a file of the run is missing or damaged.
    """
    return _lines(run, layer, variant, palette, lambda lived: lived.survival, "share of the first connections that live", (0, 1.02))


def explored(run: AnyRun, layer: str | None = None, *, variant: str | None = None, palette: str = "usual") -> Figure:
    """Which share of the positions has ever held a connection: the ITOP rate. Arguments and errors as `survival`."""
    return _lines(run, layer, variant, palette, lambda lived: lived.itop, "share of positions ever connected (ITOP)", (0, 1.02))


def mask_distance(run: AnyRun, layer: str | None = None, *, variant: str | None = None, palette: str = "usual") -> Figure:
    """How far each update went: 1 - both / either, the Jaccard distance of the masks. Arguments and errors as `survival`."""
    measure = "mask distance (Jaccard)"
    return _lines(run, layer, variant, palette, lambda lived: lived.jaccard[1:], measure, None, lambda lived: lived.steps[1:])


def changes(run: AnyRun, layer: str, *, variant: str | None = None, palette: str = "usual") -> Figure:
    """How many connections each update dropped and grew. Arguments and errors as `survival`."""
    run, shades = as_run(run), colours(palette)
    lived = _lived(run, variant, layer)
    drawn = figure(7, 3.6)
    axes = tidy(drawn.add_subplot(), xlabel=STEP, ylabel="connections", title=f"{run.name}, {said(layer)}: changes of each update")
    steps = lived.steps[1:]
    width = min((later - earlier for earlier, later in zip(lived.steps, steps, strict=False)), default=1) * 0.85
    axes.bar(steps, lived.grown[1:], width, color=hexadecimal(shades.grown), label="grown")
    axes.bar(steps, [-count for count in lived.dropped[1:]], width, color=hexadecimal(shades.dropped), label="dropped")
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):,.0f}")
    axes.legend(frameon=False)
    return drawn


def ages(run: AnyRun, layer: str, *, variant: str | None = None) -> Figure:
    """The connections alive at each time, by when they grew: dark are the oldest. Arguments and errors as `survival`."""
    run = as_run(run)
    lived = _lived(run, variant, layer)
    groups = lived.alive.T.tolist()
    ends = [*lived.births[1:], len(lived.steps)]
    spans = [_between(lived.steps[start], lived.steps[end - 1]) for start, end in zip(lived.births[1:], ends[1:], strict=True)]
    names = ["from the beginning", *spans]
    drawn = figure(8, 3.8)
    axes = tidy(drawn.add_subplot(), xlabel=STEP, ylabel="connections", title=f"{run.name}, {said(layer)}: when they grew")
    axes.stackplot(lived.steps, groups, labels=names, colors=_shades(len(groups)), linewidth=0, step="post")
    axes.margins(x=0, y=0)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], fontsize="x-small", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return drawn


def fan(run: AnyRun, layer: str, *, variant: str | None = None, palette: str = "usual") -> Figure:
    """How many neurons have how many connections, at the beginning and at the end. Arguments and errors as `survival`."""
    run = as_run(run)
    lived = _lived(run, variant, layer)
    drawn = figure(9, 3.6)
    for place, (counts, name) in enumerate(((lived.fan_in, "fan-in of output neurons"), (lived.fan_out, "fan-out of input neurons"))):
        axes = tidy(drawn.add_subplot(1, 2, place + 1), xlabel="connections", ylabel="neurons" if not place else "", title=name)
        starts, width, binned = _binned((counts[0], counts[-1]))
        edges = [start - 0.5 for start in (*starts, starts[-1] + width)]
        axes.stairs(binned[0], edges, color="grey", linewidth=1.4, label="at the beginning")
        whole_numbers(axes.xaxis)
        whole_numbers(axes.yaxis)
        axes.stairs(binned[1], edges, color=SERIES[_known(palette)][0], alpha=0.65, fill=True, label="at the end")
        if place:
            axes.legend(frameon=False, fontsize="small")
    drawn.suptitle(f"{run.name}, {said(layer)}", fontsize="medium")
    return drawn


def neurons(run: AnyRun, layer: str | None = None, *, variant: str | None = None, palette: str = "usual") -> Figure:
    """How many output neurons have no input (dead or ablated), and input neurons no output. Arguments and errors as `survival`."""
    run = as_run(run)
    found = _all_lived(run, variant, layer)
    drawn = figure(9, 3.6)
    kinds: tuple[tuple[str, Callable[[Evolution], Sequence[int]]], ...] = (
        ("output neurons without an input", lambda lived: lived.dead_outputs),
        ("input neurons without an output", lambda lived: lived.dead_inputs),
    )
    for place, (title, of) in enumerate(kinds):
        axes = tidy(drawn.add_subplot(1, 2, place + 1), xlabel=STEP, ylabel="neurons" if not place else "", title=title)
        for number, (name, lived) in enumerate(found.items()):
            axes.step(lived.steps, of(lived), where="post", **_style(number, palette), label=name or "the layer")
        axes.set_ylim(0, max(1.0, *(max(of(lived)) * 1.08 for lived in found.values())))
        whole_numbers(axes.yaxis)
        axes.legend(title="layer", frameon=False, fontsize="small")
    drawn.suptitle(run.name, fontsize="medium")
    return drawn


def _lines(
    run: AnyRun,
    layer: str | None,
    variant: str | None,
    palette: str,
    of: Callable[[Evolution], Sequence[float]],
    measure: str,
    limits: tuple[float, float] | None,
    at: Callable[[Evolution], Sequence[int]] = lambda lived: lived.steps,
) -> Figure:
    run = as_run(run)
    found = _all_lived(run, variant, layer)
    drawn = figure(7, 3.8)
    axes = tidy(drawn.add_subplot(), xlabel=STEP, ylabel=measure, title=run.name)
    for number, (name, lived) in enumerate(found.items()):
        axes.plot(at(lived), of(lived), **_style(number, palette), marker="." if len(at(lived)) < 40 else "", label=name or "the layer")
    axes.set_ylim(*(limits or (0, None)))
    axes.legend(title="layer", frameon=False, fontsize="small")
    return drawn


def _all_lived(run: Run, variant: str | None, layer: str | None) -> Mapping[str, Evolution]:
    return {name: _lived(run, variant, name) for name in ([layer] if layer is not None else run.layers or [""])}


def _lived(run: Run, variant: str | None, layer: str) -> Evolution:
    return _evolution(run, sparse_variant(run, variant), checked_layer(run, layer))


@lru_cache(maxsize=16)  # each picture asks for the same
def _evolution(run: Run, variant: str, layer: str) -> Evolution:
    stages = 1 + len(run.change_counts(variant, layer))
    births = [0, *range(1, stages, max(1, ceil((stages - 1) / (MOST_BIRTHS - 1))))]
    return evolution(run.layers[layer].geometry, run.stages(variant, layer), births)


def _style(number: int, palette: str) -> dict[str, Any]:
    series = SERIES[_known(palette)]
    return {"color": series[number % len(series)], "linestyle": STYLES[number // len(series) % len(STYLES)]}


def _known(palette: str) -> str:
    colours(palette)
    return palette


def _between(first: int, last: int) -> str:
    return f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"


def _shades(count: int) -> list[str]:
    """From dark to light blue."""
    old, young = (0x17, 0x43, 0x6E), (0xCF, 0xE3, 0xF4)
    shares = [place / max(count - 1, 1) for place in range(count)]
    mixed = ([round(one + (other - one) * share) for one, other in zip(old, young, strict=True)] for share in shares)
    return [hexadecimal((red, green, blue)) for red, green, blue in mixed]


def _binned(counts: Sequence[Tensor]) -> tuple[list[int], int, list[list[int]]]:
    """(first number of each bin, width of a bin, neurons in each bin): entry `i` of counts is of neurons with `i` connections."""
    least, length = min(int(own.nonzero().min()) for own in counts), max(own.numel() for own in counts)
    width = max(1, ceil((length - least) / MOST_BINS))
    starts = list(range(least, length, width))
    return starts, width, [[int(own[start : start + width].sum()) for start in starts] for own in counts]
