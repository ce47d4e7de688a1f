"""`truesparse pack`: how fast does this machine run a trained network, and in which layouts?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .language import pack_language_model, refuse_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table
    from torch import Tensor, nn

    from ..inference import PackedNetwork
    from ..runs import Trained

Source = Annotated[Path, typer.Argument(metavar="RUN_OR_FILE", help="The folder of a run, or a file of truesparse.save.")]
PackedSource = Annotated[
    str,
    typer.Argument(
        metavar="RUN_OR_FILE_OR_MODEL",
        help="The folder of a run, a file of truesparse.save; or a language model: smollm2, a folder of transformers, a GGUF file.",
    ),
]
Recipe = Annotated[str | None, typer.Option(metavar="TASK", help="For a file: the task, or FILE.py, whose model() its weights belong to.")]
Variant = Annotated[str | None, typer.Option(help="Of a run: dense, masked or sparse.", show_default="sparse if there")]

SECONDS, LEAST_ROUNDS = 1.0, 10  # of timing
WRONG = 1e-4  # of the largest output: more than rounding of float32 adds up to


def pack(
    source: PackedSource,
    recipe: Recipe = None,
    variant: Variant = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples in a call that is to be fast.")] = 1,
    threads: Annotated[int | None, typer.Option(help="Of torch and of the kernels.", show_default="as torch chooses")] = None,
    values: Annotated[str, typer.Option(help="How connections may be held: float32, bfloat16, int8; on a GPU float16.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1.", show_default="cpu")] = None,
    tune: Annotated[bool, typer.Option("--tune/--no-tune", help="Measure each layer's layouts here, or choose by rule.")] = True,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the packed network as a pickle, which only a trusting reader may load.")
    ] = None,
) -> None:
    """Pack a trained network for this machine: the layout of each layer, and calls beside dense PyTorch."""
    import torch

    from ..common.processor import processor
    from ..export.written import check_place
    from ..inference import pack as packed_form
    from ..inference.target import known_values
    from ..language import is_language_model
    from ..runs import ConfigError, RunError
    from ..runs.devices import device_here
    from ..runs.machine import require_cores, threads_said
    from .results import wide_console

    place = device_here(device or "cpu")
    known = known_values(place)
    if values not in known:
        raise typer.BadParameter(f"expected one of {', '.join(known)}, got {values!r}", param_hint="--values")
    if threads is not None and place.type != "cpu":
        raise ConfigError(f"--threads: with --device {device}, the GPU computes; leave the option out")
    if out is not None:
        check_place(out)
    if threads is not None:
        require_cores("--threads", threads)
        torch.set_num_threads(threads)
    if is_language_model(source):
        refuse_options(
            source, {"--recipe": recipe, "--variant": variant, "--out": out, "--device": device if place.type != "cpu" else None}
        )
        pack_language_model(source, batch, values, tune)
        return
    network = network_of(Path(source), recipe, variant)
    model, example = network.model.to(place), network.example(batch).to(place)
    try:
        packed = packed_form(model, example, values=values, tune=tune)
    except (TypeError, ValueError) as error:
        raise RunError(f"cannot pack {source}: {error}") from error
    difference = _difference(model, packed, example)
    if values == "float32" and difference > WRONG:
        raise RunError(f"the packed network computes something else, off by {difference:.1g} of the largest output; please report this")
    console = wide_console()
    console.print(network.said, markup=False, highlight=False, soft_wrap=True)
    console.print(packed.explain().table().rich())
    console.print(_times_table(_seconds(model, packed, example)))
    where = packed.explain().gpu or f"{threads_said(torch.get_num_threads())}, {processor()}"
    how = f"medians of calls in turns, batch {batch}, {where}"
    console.print(f"{how}. Outputs are off by {difference:.1g} of the largest", highlight=False, soft_wrap=True)
    if out is not None:
        _keep(packed, out)
        said = "a pickle, which runs code when loaded: torch.load(path, weights_only=False), where you trust it"
        console.print(f"{out}: {out.stat().st_size:,} bytes, {said}", markup=False, highlight=False, soft_wrap=True)


def network_of(source: Path, recipe: str | None, variant: str | None) -> Trained:
    """The network of a run's folder, or of a file.

    Raises:
        ConfigError: if an option is missing, or says what cannot be.
        RunError, FileError: if the network cannot be read.
    """
    from ..runs import ConfigError, saved_network, trained_network

    if source.is_dir():
        if recipe is not None:
            raise ConfigError(f"--recipe: the run in {source} knows its own; leave the option out")
        return trained_network(source, variant)
    if not source.exists():
        raise ConfigError(f"{source} is neither the folder of a run nor a file")
    if variant is not None:
        raise ConfigError(f"--variant: {source} is a file and holds one network; leave the option out")
    if recipe is None:
        raise ConfigError("--recipe: a file holds weights, not the model: name the task or the FILE.py whose model() they belong to")
    return saved_network(source, recipe)


def _difference(model: nn.Module, packed: PackedNetwork, example: Tensor) -> float:
    """Largest difference of the outputs, as a share of the largest output."""
    import torch
    from torch.utils._pytree import tree_leaves

    with torch.inference_mode():
        pairs = list(zip(tree_leaves(packed(example)), tree_leaves(model(example)), strict=True))
    largest = max(float(expected.abs().max()) for _, expected in pairs)
    return max(float((given - expected).abs().max()) for given, expected in pairs) / (largest or 1.0)


def _seconds(model: nn.Module, packed: PackedNetwork, example: Tensor) -> Mapping[str, float]:
    """Median seconds of a call, in turns: dense, as it was trained (if that is not dense), packed; on a GPU also as a CUDA graph."""
    import copy
    import sys

    import torch

    from ..bench.timing import interleaved
    from ..common.devices import synchronize
    from ..inference.captured import DEVICES
    from ..nn import densify
    from ..nn.convert import topology_layers
    from ..nn.masked import MaskedLayer

    layers = topology_layers(model).values()
    ways = {"dense": densify(copy.deepcopy(model)), "packed": packed}
    if example.device.type in DEVICES:
        try:
            ways["captured"] = copy.deepcopy(packed).capture(example)
        except RuntimeError as error:
            print(f"no CUDA graph: {error}", file=sys.stderr)
    if layers:
        ways["masked" if any(isinstance(layer, MaskedLayer) for layer in layers) else "sparse"] = model

    def call(way: nn.Module) -> None:
        way(example)
        synchronize(example.device)

    with torch.inference_mode():
        for way in ways.values():
            call(way)
        return interleaved({name: lambda way=way: call(way) for name, way in ways.items()}, SECONDS, LEAST_ROUNDS, warm=True)


def _times_table(seconds: Mapping[str, float]) -> Table:
    from rich.table import Table

    from ..bench.timing import times_as_fast
    from ..runs.results import NAMES

    table = Table("", title="the network")
    table.add_column("a call", justify="right")
    table.add_column("times as fast", justify="right")
    ratios = {"dense": 1.0, **times_as_fast(seconds)}
    for name in ("dense", "masked", "sparse", "packed", "captured"):
        if name in seconds:
            table.add_row(
                "packed, as a CUDA graph" if name == "captured" else NAMES.get(name, name),
                f"{seconds[name] * 1e3:.3f} ms",
                f"{ratios[name]:.1f}",
            )
    return table


def _keep(packed: PackedNetwork, path: Path) -> None:
    import io

    import torch

    from ..export.written import write_file

    content = io.BytesIO()
    torch.save(packed, content)
    write_file(path, content.getbuffer())
