"""What do masks look like? Connections of a layer in a run, or at hand: black absent, white unchanged, red dropped, green grown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..nn import TopologyLayer
from ..report import Run, Stage, input_heat
from ..topology import Topology
from ..topology.picture import Extent, Palette, pixels, positions_of_a_pixel
from .figure import AnyRun, as_run, checked_layer, colours, figure, hexadecimal, said, sparse_variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_FRAMES = 6
ALONE, IN_A_ROW = (512, 800), (256, 256)  # pixels at most, (height, width)


def topology(layer: TopologyLayer | Topology, palette: str = "usual") -> Figure:
    """The connections of a layer at hand, or of a topology.

    Args:
        layer: a sparse or masked layer, or a topology.
        palette: "usual", or "safe" for every kind of colour vision.

    Raises:
        MissingLibrary: if matplotlib is not installed.
    """
    held = layer if isinstance(layer, Topology) else layer.topology
    return change(held, held, palette)


def change(old: TopologyLayer | Topology, new: TopologyLayer | Topology, palette: str = "usual") -> Figure:
    """How one topology differs from another of the same shape.

    Raises:
        ValueError: if the shapes differ.
    """
    before, after = (one if isinstance(one, Topology) else one.topology for one in (old, new))
    if before.shape != after.shape:
        raise ValueError(f"expected topologies of one shape, got {before.shape} and {after.shape}")
    was, stays = before.contains(after.keys), after.contains(before.keys)
    stage = Stage(0, after, before.keys[~stays], after.keys[~was])
    width, height = _size(after.shape, 1)
    drawn = figure(width, height - (0.75 if before is after else 0.3))
    told = f"{after.shape[0]:,} x {after.shape[1]:,}, {after.nnz:,} connections"
    _draw(drawn.add_subplot(), stage, colours(palette), ALONE, told if before is after else _counts(stage))
    if before is not after:
        _legend(drawn, colours(palette))
    return drawn


def mask_evolution(run: AnyRun, layer: str, step: int | None = None, *, variant: str | None = None, palette: str = "usual") -> Figure:
    """How the mask of a layer changed, update by update.

    Args:
        run: a run, or its folder.
        layer: its name in the model.
        step: the last update at or before this step of training; None: the beginning, the end, and updates between them.
        variant: "sparse" or "masked"; None: the truly sparse one if there is one.
        palette: "usual", or "safe" for every kind of colour vision.

    Raises:
        ValueError: if there is no such layer, variant or palette, or the step comes before the beginning. The message says what there is.
        MissingLibrary: if matplotlib is not installed.
        RunError: if a file of the run is missing or damaged.
    """
    run, shades = as_run(run), colours(palette)
    of = sparse_variant(run, variant), checked_layer(run, layer)
    if step is not None and step < 0:
        raise ValueError(f"expected a step of training, 0 or later, got {step}")
    stages = _before(run, *of, step) if step is not None else _spread(run, *of)
    shape = run.layers[layer].shape
    drawn = figure(*_size(shape, len(stages)))
    for place, stage in enumerate(stages):
        axes = drawn.add_subplot(*_grid(shape, len(stages)), place + 1)
        _draw(axes, stage, shades, ALONE if len(stages) == 1 else IN_A_ROW, f"step {stage.step:,}\n{_counts(stage)}")
    shared = _shared(shape, ALONE if len(stages) == 1 else IN_A_ROW)
    drawn.suptitle(f"{run.name}, {said(layer)}, {shape[0]:,} x {shape[1]:,}{shared}", fontsize="medium")
    _legend(drawn, shades)
    return drawn


def input_heat_map(run: AnyRun, layer: str | None = None, step: int | None = None, *, variant: str | None = None) -> Figure:
    """How many connections look at each pixel of a sample; channels are summed.

    Args:
        run: a run, or its folder.
        layer: one that sees samples; None: the first of them.
        step: the last update at or before this step; None: the beginning and the end side by side.
        variant: as in `mask_evolution`.

    Raises:
        ValueError: if no layer, or not this one, sees samples; and as `mask_evolution` does.
    """
    run = as_run(run)
    chosen = sparse_variant(run, variant)
    seeing = [name for name, own in run.layers.items() if own.sees_sample]
    name = checked_layer(run, layer) if layer is not None else next(iter(seeing), "")
    stages = _before(run, chosen, name, step) if step is not None else _ends(run, chosen, name) if name in seeing else ()
    heats = [input_heat(run.layers[name], stage.topology, run.sample) for stage in stages]
    found = [heat.sum(0) for heat in heats if heat is not None]
    if not found or len(found) < len(heats):
        raise ValueError(f"expected a layer of {run.name} that sees its samples: {', '.join(map(repr, seeing)) or 'there is none'}")
    drawn = figure(1.2 + 3.2 * len(found), 3.9)
    highest = max(int(heat.max()) for heat in found)
    panels = [drawn.add_subplot(1, len(found), place + 1) for place in range(len(found))]
    images = []
    for axes, heat, stage in zip(panels, found, stages, strict=True):
        images.append(axes.imshow(heat.numpy(), cmap="inferno", vmin=0, vmax=highest, interpolation="nearest"))
        unseen = int((heat == 0).sum())
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"step {stage.step:,}\n{unseen:,} of {heat.numel():,} pixels unseen", fontsize="small")
    drawn.colorbar(images[0], ax=panels, label="connections", shrink=0.8)
    drawn.suptitle(f"{run.name}, {said(name)}: connections that look at a pixel", fontsize="medium")
    return drawn


def _before(run: Run, variant: str, layer: str, step: int) -> tuple[Stage, ...]:
    last = None
    for stage in run.stages(variant, layer):
        if stage.step > step:
            break
        last = stage
    assert last is not None
    return (last,)


def _ends(run: Run, variant: str, layer: str) -> tuple[Stage, ...]:
    first = last = None
    for last in run.stages(variant, layer):
        first = first or last
    assert first is not None
    assert last is not None
    return (first,) if first is last else (first, last)


def _spread(run: Run, variant: str, layer: str) -> tuple[Stage, ...]:
    """The first, the last, and some between; each with the changes of its own update."""
    count = 1 + len(run.change_counts(variant, layer))
    wanted = {round(place * (count - 1) / (MOST_FRAMES - 1)) for place in range(MOST_FRAMES)}
    return tuple(stage for number, stage in enumerate(run.stages(variant, layer)) if number in wanted)


def _draw(axes: Axes, stage: Stage, palette: Palette, most: Extent, title: str) -> None:
    topology = stage.topology
    unchanged = topology.keys[~Topology.from_keys(topology.shape, stage.grown).contains(topology.keys)]
    image = pixels(topology.shape, unchanged, stage.dropped, stage.grown, palette, most)
    axes.imshow(image.numpy(), interpolation="nearest", aspect="auto" if _is_long(topology.shape) else "equal")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize="small")


def _counts(stage: Stage) -> str:
    dropped, grown = stage.dropped.numel(), stage.grown.numel()
    return f"{dropped:,} dropped, {grown:,} grown" if dropped or grown else f"{stage.topology.nnz:,} connections"


def _legend(drawn: Figure, palette: Palette) -> None:
    from matplotlib.patches import Patch

    shades = {"unchanged": palette.unchanged, "dropped": palette.dropped, "grown": palette.grown, "absent": (0, 0, 0)}
    patches = [Patch(facecolor=hexadecimal(shade), edgecolor="grey", label=name) for name, shade in shades.items()]
    drawn.legend(handles=patches, loc="outside lower center", ncols=4, fontsize="small", frameon=False)


def _shared(shape: Extent, most: Extent) -> str:
    high, wide = positions_of_a_pixel(shape, most)
    return "" if (high, wide) == (1, 1) else f" (a pixel is {high} x {wide} positions)"


def _is_long(shape: Extent) -> bool:
    """Too long for its own proportions."""
    return max(shape) > 5 * max(min(shape), 1)


def _proportion(shape: Extent) -> float:
    """Height over width of a picture."""
    return min(max(shape[0] / max(shape[1], 1), 0.25), 2.0)


def _grid(shape: Extent, count: int) -> tuple[int, int]:
    """(rows, columns) of `count` pictures: wide ones above each other."""
    columns = count if _proportion(shape) > 0.7 else min(count, 3) if _proportion(shape) > 0.3 else min(count, 2)
    return -(-count // columns), columns


def _size(shape: Extent, count: int) -> tuple[float, float]:
    rows, columns = _grid(shape, count)
    width = 6.0 if count == 1 else 12.0 / columns
    width = min(width, 6.0 / _proportion(shape)) if count == 1 else width
    return max(width * columns, 4.5), max(width * _proportion(shape), 0.8) * rows + 0.55 * rows + 0.9
