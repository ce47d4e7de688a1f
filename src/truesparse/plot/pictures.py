"""Which pictures are there of a run, and in which files? All that it has anything for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.files import write_atomically
from ..runs import RunError
from . import life, masks, training
from .figure import AnyRun, as_run, as_runs, colours, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..report import Run


def write_pictures(run: AnyRun, folder: Path | str, *, palette: str = "usual") -> tuple[Path, ...]:
    """Writes every picture of a run as a PNG file.

    Args:
        run: a run, or its folder.
        folder: where to; made if there is none. Files of the same names are replaced.
        palette: "usual", or "safe" for every kind of colour vision.

    Returns:
        The files, in the order of the page.

    Raises:
        RunError: if a file of the run is missing or damaged, or the folder cannot be written.
        ValueError: if there is no such palette.
        MissingLibrary: if matplotlib is not installed.
    """
    run, folder = as_run(run), Path(folder)
    colours(palette)
    return tuple(_written(folder / f"{name}.png", draw()) for name, draw in pictures(run, palette))


def write_all(runs: Sequence[AnyRun], folder: Path | str, *, palette: str = "usual") -> tuple[Path, ...]:
    """The same of several runs: each in a folder of its own, named as the run, and the curves of all over each other beside them.

    One run alone goes into `folder` itself.
    """
    found, folder = as_runs(runs), Path(folder)
    if len(found) == 1:
        return write_pictures(found[0], folder, palette=palette)
    written: list[Path] = []
    for number, run in enumerate(found):
        again = sum(other.name == run.name for other in found[:number])
        written += write_pictures(run, folder / (f"{run.name}-{again + 1}" if again else run.name), palette=palette)
    for over in training.OVER:
        if over != "flops" or all("flops" in line for run in found for lines in run.metrics.values() for line in lines):
            written.append(_written(folder / f"curves-{over}.png", training.curves(found, over, palette=palette)))
    return tuple(written)


def pictures(run: Run, palette: str = "usual") -> Iterator[tuple[str, Callable[[], Figure]]]:
    """(name, what draws it) of each picture that the run has anything for."""
    lines = [line for of_variant in run.metrics.values() for line in of_variant]
    yield "curves-epoch", lambda: training.curves(run, palette=palette)
    yield "curves-seconds", lambda: training.curves(run, "seconds", palette=palette)
    if all("flops" in line for line in lines):
        yield "curves-flops", lambda: training.curves(run, "flops", palette=palette)
    if any(training.step_seconds(run, variant) for variant in run.variants):
        yield "step-time", lambda: training.step_time(run, palette=palette)
    if run.sparse_variant is None or not run.layers or not run.metrics[run.sparse_variant]:
        return
    yield "layers", lambda: training.layers(run, palette=palette)
    for name in ("survival", "explored", "mask_distance", "neurons"):
        yield name.replace("_", "-"), _whole(run, name, palette)
    yield "gradients", lambda: training.gradients(run, palette=palette)
    if run.sample is not None and any(layer.sees_sample for layer in run.layers.values()):
        yield "input-heat-map", lambda: masks.input_heat_map(run)
    for layer in run.layers:
        yield from _of_layer(run, layer, palette)


def _whole(run: Run, name: str, palette: str) -> Callable[[], Figure]:
    return lambda: getattr(life, name)(run, palette=palette)


def _of_layer(run: Run, layer: str, palette: str) -> Iterator[tuple[str, Callable[[], Figure]]]:
    end = f"-{safe_name(layer)}" if layer else ""
    yield f"mask-evolution{end}", lambda: masks.mask_evolution(run, layer, palette=palette)
    yield f"changes{end}", lambda: life.changes(run, layer, palette=palette)
    yield f"ages{end}", lambda: life.ages(run, layer)
    yield f"fan{end}", lambda: life.fan(run, layer, palette=palette)


def _written(path: Path, drawn: Figure) -> Path:
    content = png(drawn)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error
    return path


def safe_name(layer: str) -> str:
    """The name of a layer as part of a file's."""
    return re.sub(r"[^\w.-]", "_", layer)
