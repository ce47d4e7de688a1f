"""How did a run train? Loss and accuracy over epochs, time or operations; layers and their budgets; where the time of a step went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ..report import Run
from .figure import (
    NAMES,
    SERIES,
    STYLES,
    VARIANTS,
    AnyRun,
    as_run,
    as_runs,
    checked_layer,
    colours,
    figure,
    sparse_variant,
    tidy,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OVER = {"epoch": "epoch", "seconds": "seconds of training", "flops": "operations of training"}
BROAD = 3.5  # of the masked twin, on which the truly sparse network lies: they are the same but for rounding
PHASES = {
    "forward": "#1f68ad",
    "dx": "#5a9bd4",
    "dW": "#a3c8e8",
    "backward": "#5a9bd4",
    "rewiring": "#c8501e",
    "optimizer": "#6f9c76",
    "other": "#c2c5c9",
}
SAFE_PHASES = {
    "forward": "#0072b2",
    "dx": "#56b4e9",
    "dW": "#b3dcf5",
    "backward": "#56b4e9",
    "rewiring": "#d55e00",
    "optimizer": "#f0e442",
    "other": "#b8b8b8",
}


def curves(runs: AnyRun | Sequence[AnyRun], over: str = "epoch", *, palette: str = "usual") -> Figure:
    """Loss and accuracy of each variant; of several runs, over each other.

    Args:
        runs: a run or its folder, or several of them.
        over: "epoch", "seconds" of training, or "flops": operations that the method needs, by RigL's convention.
        palette: "usual" or "safe".

    Raises:
        ValueError: if `over` or the palette is unknown, or the runs have no count of operations.
        MissingLibrary: if matplotlib is not installed.
        RunError: if a file of a run is missing or damaged.
    """
    found = as_runs(runs)
    if over not in OVER:
        raise ValueError(f"curves can be drawn over {', '.join(OVER)}, not over {over!r}")
    colours(palette)
    with_accuracy = any(line["test_accuracy"] is not None for run in found for lines in run.metrics.values() for line in lines)
    drawn = figure(10 if with_accuracy else 6, 4)
    loss = tidy(drawn.add_subplot(1, 2 if with_accuracy else 1, 1), xlabel=OVER[over], ylabel="loss", title="test loss (faint: training)")
    accuracy = tidy(drawn.add_subplot(1, 2, 2), xlabel=OVER[over], ylabel="%", title="test accuracy") if with_accuracy else None
    for number, run in enumerate(found):
        for variant, lines in run.metrics.items():
            at = _places(run, lines, over)
            style: dict[str, Any] = {"color": VARIANTS[palette][variant], "linestyle": STYLES[number % len(STYLES)]}
            style |= {"marker": "." if len(at) < 40 else "", "linewidth": BROAD if variant == "masked" else 1.5}
            name = NAMES[variant] if len(found) == 1 else f"{run.name}: {NAMES[variant]}"
            loss.plot(at, [line["test_loss"] for line in lines], **style, label=name)
            loss.plot(
                at, [line["train_loss"] for line in lines], **{**style, "marker": "", "linewidth": style["linewidth"] * 0.6}, alpha=0.35
            )
            if accuracy is not None and lines and lines[0]["test_accuracy"] is not None:
                accuracy.plot(at, [100 * line["test_accuracy"] for line in lines], **style)
    for axes in (loss, accuracy):
        if axes is not None and over == "epoch":
            whole_numbers(axes.xaxis)
    drawn.suptitle(" and ".join(dict.fromkeys(run.name for run in found)), fontsize="medium")
    drawn.legend(loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    return drawn


def layers(run: AnyRun, *, variant: str | None = None, palette: str = "usual") -> Figure:
    """How many connections each layer has at the end, beside its budget, and how sparse that is.

    Raises:
        ValueError: if there is no such variant or palette, or nothing of it is complete.
    """
    run = as_run(run)
    chosen = sparse_variant(run, variant)
    colours(palette)
    last: Mapping[str, Any] = run.metrics[chosen][-1]["layers"] if run.metrics[chosen] else {}
    if not last:
        raise ValueError(f"no epoch of the {chosen} variant of {run.name} is complete")
    names = list(run.layers)
    drawn = figure(8, 1.4 + 0.5 * len(names))
    axes = tidy(drawn.add_subplot(), xlabel="connections", title=f"{run.name}: connections at the end")
    places = range(len(names))
    counts = [last[name]["connections"] for name in names]
    budgets = [run.layers[name].budget for name in names]
    axes.barh(places, counts, 0.6, color=VARIANTS[palette][chosen], label="at the end")
    axes.plot(budgets, places, linestyle="", marker="|", markersize=16, markeredgewidth=2, color="black", label="budget")
    highest = max(*counts, *budgets, 1)
    for place, name, count in zip(places, names, counts, strict=True):
        rows, columns = run.layers[name].shape
        axes.text(
            max(count, budgets[place]) + highest * 0.015,
            place,
            f"{count:,}, {1 - count / max(rows * columns, 1):.1%} sparse",
            va="center",
            fontsize="small",
        )
    axes.set_yticks(places, [f"{name or 'the layer'}\n{' x '.join(map(str, run.layers[name].shape))}" for name in names], fontsize="small")
    axes.set_xlim(0, highest * 1.32)
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize="small", loc="lower right")
    return drawn


def gradients(run: AnyRun, layer: str | None = None, *, variant: str | None = None, palette: str = "usual") -> Figure:
    """The norm of the gradient of the connections, at the last step of each epoch. Arguments and errors as `survival`."""
    run = as_run(run)
    chosen = sparse_variant(run, variant)
    colours(palette)
    names = [checked_layer(run, layer)] if layer is not None else list(run.layers)
    drawn = figure(7, 3.8)
    axes = tidy(drawn.add_subplot(), xlabel="epoch", ylabel="norm of the gradient", title=run.name)
    for number, name in enumerate(names):
        points = [(line["epoch"], line["layers"][name].get("gradient_norm")) for line in run.metrics[chosen]]
        known = [(epoch, norm) for epoch, norm in points if norm is not None]
        series = SERIES[palette]
        style: dict[str, Any] = {"color": series[number % len(series)], "linestyle": STYLES[number // len(series) % len(STYLES)]}
        axes.plot([epoch for epoch, _ in known], [norm for _, norm in known], **style, marker=".", label=name or "the layer")
    whole_numbers(axes.xaxis)
    axes.set_ylim(bottom=0)
    axes.legend(title="layer", frameon=False, fontsize="small")
    return drawn


def step_time(run: AnyRun, *, palette: str = "usual") -> Figure:
    """Where the time of a training step went, for each variant, in milliseconds.

    Raises:
        ValueError: if the run has not recorded it, or there is no such palette.
    """
    run = as_run(run)
    colours(palette)
    parts = {variant: found for variant in run.variants if (found := step_seconds(run, variant))}
    if not parts:
        raise ValueError(f"{run.name} has not recorded where the time of its steps went")
    shades = PHASES if palette == "usual" else SAFE_PHASES
    drawn = figure(8, 1.5 + 0.55 * len(parts))
    axes = tidy(drawn.add_subplot(), xlabel="milliseconds of a step", title=f"{run.name}: where the time of a step goes")
    left = dict.fromkeys(parts, 0.0)
    for phase, shade in shades.items():
        widths = {variant: found.get(phase, 0.0) * 1e3 for variant, found in parts.items()}
        if any(widths.values()):
            look: dict[str, Any] = {"color": shade, "label": phase, "edgecolor": "white", "linewidth": 0.5}
            axes.barh(range(len(parts)), list(widths.values()), 0.6, list(left.values()), **look)
        left = {variant: left[variant] + width for variant, width in widths.items()}
    for place, total in enumerate(left.values()):
        axes.text(total + max(left.values()) * 0.01, place, f"{total:.2f}", va="center", fontsize="small")
    axes.set_yticks(range(len(parts)), [NAMES[variant] for variant in parts])
    axes.set_xlim(0, max(left.values()) * 1.1 or 1)
    axes.invert_yaxis()
    drawn.legend(loc="outside lower center", ncols=7, frameon=False, fontsize="small")
    return drawn


def step_seconds(run: Run, variant: str) -> Mapping[str, float]:
    """Of each phase: of the closing table, or, before the end, the mean over epochs with dx and dW together; nothing if not recorded."""
    if variant in run.results:
        return run.results[variant].get("step_seconds") or {}
    lines = [line["seconds_of"] for line in run.metrics[variant] if "seconds_of" in line]
    return {phase: sum(line[phase] for line in lines) / len(lines) / run.steps for phase in lines[0]} if lines else {}


def _places(run: Run, lines: Sequence[Mapping[str, Any]], over: str) -> list[float]:
    if over == "epoch":
        return [line["epoch"] for line in lines]
    if over == "seconds":
        return list(accumulate(line["seconds"] for line in lines))
    if not all("flops" in line for line in lines):
        raise ValueError(f"{run.name} has not counted its operations: it is from an older version")
    return [line["flops"]["training"] for line in lines]
