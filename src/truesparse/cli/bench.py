"""`truesparse bench`: which options make which measurement?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..bench import Conditions, LayerCase
    from ..bench.document import Row
    from ..bench.work import Peaks

    Take = Callable[[Sequence[Peaks], Callable[[str], None]], Iterator[Row]]

STDOUT = Path("-")
WITHOUT_PEAKS = ("memory", "scale", "rewire", "inference")  # no line of theirs is a share of a peak

bench = typer.Typer(
    help="Measure truesparse beside dense PyTorch on this machine: medians of interleaved calls, in one process.\n\n"
    "Nothing is timed that computes something else than float64 does.",
    no_args_is_help=True,
)

Sparsity = Annotated[str | None, typer.Option(metavar="S[,S]", help="Shares of the weights left out.", show_default="0.8,0.9,0.95,0.99")]
Batch = Annotated[str | None, typer.Option(metavar="N[,N]", help="Samples in a batch.")]
Threads = Annotated[str | None, typer.Option(metavar="N[,N]", help="Of torch and of the kernels.", show_default="1 and as torch chooses")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")]
Isa = Annotated[str | None, typer.Option(help="Instruction set of truesparse: scalar, avx2, avx512, neon.", show_default="the best")]
Seconds = Annotated[float, typer.Option(help="Of timing for each line of the table, three rounds at least.")]
Dtype = Annotated[str, typer.Option(help="float32, or bfloat16: under autocast, all ways of it. On a GPU also tf32, float16.")]
PatternOption = Annotated[
    str, typer.Option(help="unstructured, fan-in, shared-fan-in:ROWS, N:M such as 2:4, block (of 4 x 4), block:SIZE, neurons.")
]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write everything as JSON, too; - is stdout, without the table.")]


@bench.command()
def linear(
    shape: Annotated[list[str] | None, typer.Option(metavar="INxOUT", help="May be repeated.", show_default="3072x768")] = None,
    sparsity: Sparsity = None,
    batch: Batch = "256",
    pattern: PatternOption = "unstructured",
    threads: Threads = None,
    isa: Isa = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seconds: Seconds = 1.0,
    json: Json = None,
) -> None:
    """Linear layers: dense, dense + mask, torch's CSR weight, truesparse."""
    from ..bench import LayerCase
    from ..bench.request import counts_of, matrix_of, pattern_of, sparsities_for

    rule = pattern_of(pattern)
    cases = [
        LayerCase(matrix, (samples, matrix.columns), share, rule)
        for matrix in map(matrix_of, shape or ["3072x768"])
        for samples in counts_of("--batch", batch or "256")
        for share in sparsities_for(rule, sparsity)
    ]
    _measure_layers("linear", cases, threads, isa, device, dtype, seconds, json)


@bench.command()
def conv(
    layer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="conv64, conv128, conv256, pointwise, stride2, or IN,OUT,KERNEL,STRIDE,SIZE; may be repeated.",
            show_default="all named",
        ),
    ] = None,
    sparsity: Sparsity = None,
    batch: Annotated[str | None, typer.Option(metavar="N[,N]", help="Samples.", show_default="the named layer's, else 16")] = None,
    pattern: PatternOption = "unstructured",
    threads: Threads = None,
    isa: Isa = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seconds: Seconds = 1.0,
    json: Json = None,
) -> None:
    """Convolutions: dense, dense + mask, truesparse. The padding is half of the kernel."""
    from ..bench import LayerCase
    from ..bench.request import CONVOLUTIONS, convolution_of, counts_of, pattern_of, sparsities_for

    rule = pattern_of(pattern)
    cases = [
        LayerCase(geometry, (samples, geometry.in_channels, size, size), share, rule)
        for geometry, size, own_batch in map(convolution_of, layer or CONVOLUTIONS)
        for samples in (counts_of("--batch", batch) if batch is not None else (own_batch,))
        for share in sparsities_for(rule, sparsity)
    ]
    _measure_layers("conv", cases, threads, isa, device, dtype, seconds, json)


@bench.command()
def step(
    network: Annotated[
        list[str] | None,
        typer.Option(
            help="cifar-mlp, mnist-cnn, resnet20, gpt; for GPUs resnet50, gpt2-small; may be repeated.", show_default="all not for GPUs"
        ),
    ] = None,
    sparsity: Annotated[
        str | None, typer.Option(metavar="S[,S]", help="Shares of the weights left out.", show_default="the network's")
    ] = None,
    budget: Annotated[str, typer.Option(help="How layers share what is kept: erk, er, uniform.")] = "erk",
    pattern: PatternOption = "unstructured",
    batch: Annotated[str | None, typer.Option(metavar="N[,N]", help="Samples in a step.", show_default="128, gpt 16")] = None,
    threads: Threads = None,
    isa: Isa = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    compiled: Annotated[bool, typer.Option("--compile", help="Also both networks under torch.compile, which takes a minute each.")] = False,
    seconds: Annotated[float, typer.Option(help="Of timing for each line of the table, three steps of each kind at least.")] = 4.0,
    json: Json = None,
) -> None:
    """Whole training steps: forward, loss, backward, AdamW, and RigL every 100 steps."""
    from ..bench import NETWORKS, StepCase, measure_steps
    from ..bench.networks import USUAL, Density
    from ..bench.request import counts_of, make_conditions, pattern_of, sparsities_of
    from ..runs import ConfigError
    from ..topology.budgets import BUDGETS

    names = network or list(USUAL)
    for option, given, known in (("--network", names, NETWORKS), ("--budget", [budget], BUDGETS)):
        for name in given:
            if name not in known:
                raise ConfigError(f"{option}: unknown {name!r}; known are {', '.join(known)}")
    densities = None if sparsity is None else tuple(Density(share) for share in sparsities_of(sparsity))
    batches = (None,) if batch is None else counts_of("--batch", batch)
    conditions = make_conditions(threads, seconds, dtype, device, isa)
    if compiled and conditions.device.type != "cpu":
        raise ConfigError(f"--compile is of the CPU: torch.compile of sparse layers is not tried on {conditions.device.type}; leave it out")
    cases = [
        StepCase(NETWORKS[name], density, budget, samples, compiled, pattern_of(pattern))
        for name in names
        for samples in batches
        for density in densities or NETWORKS[name].densities
    ]
    lines = len(cases) * len(conditions.threads)
    _measure("step", conditions, isa, json, lines, lambda peaks, tell: measure_steps(cases, conditions, peaks, tell))


@bench.command()
def memory(
    size: Annotated[int, typer.Option(help="Rows and columns of each layer.")] = 16384,
    layers: Annotated[int, typer.Option(help="How many layers.")] = 3,
    sparsity: Annotated[str, typer.Option(metavar="S[,S]", help="Shares of the weights left out.")] = "0.99",
    batch: Annotated[int, typer.Option(help="Samples in a step.")] = 32,
    threads: Annotated[int | None, typer.Option(help="Of torch and of the kernels.", show_default="as torch chooses")] = None,
    isa: Isa = None,
    device: Device = "cpu",
    json: Json = None,
) -> None:
    """Bytes per connection and peak memory of training with AdamW and RigL, in a process of its own."""
    import torch

    from .. import _core
    from ..bench import MemoryCase, measure_memory
    from ..bench.request import make_conditions, sparsities_of

    count = threads if threads is not None else torch.get_num_threads()
    given = str(count) if threads is not None or device == "cpu" else None
    conditions = make_conditions(given, 1.0, "float32", device, isa)
    cases = [MemoryCase(layers, size, share, batch, count, str(conditions.device)) for share in sparsities_of(sparsity)]
    _measure("memory", conditions, isa, json, len(cases), lambda _, tell: (measure_memory(case, _core.isa(), tell) for case in cases))


@bench.command()
def scale(
    neurons: Annotated[str, typer.Option(metavar="N[,N]", help="Of three hidden layers together; 1e6 is a million.")] = "1e6,1e7",
    fan_in: Annotated[int, typer.Option(help="Connections of a neuron.")] = 10,
    batch: Annotated[int, typer.Option(help="Samples in a step.")] = 8,
    threads: Annotated[int, typer.Option(help="Of torch and of the kernels.")] = 1,
    isa: Isa = None,
    device: Device = "cpu",
    json: Json = None,
) -> None:
    """Millions of neurons with a few connections each: connections a second, bytes a connection, each size in a process of its own."""
    from .. import _core
    from ..bench import ScaleCase, measure_scale
    from ..bench.request import large_counts_of, make_conditions

    _only_on_the_cpu("scale", device)
    conditions = make_conditions(str(threads), 1.0, "float32")
    cases = [ScaleCase(count, fan_in, batch, threads) for count in large_counts_of("--neurons", neurons)]
    _measure("scale", conditions, isa, json, len(cases), lambda _, tell: (measure_scale(case, _core.isa(), tell) for case in cases))


@bench.command()
def rewire(
    shape: Annotated[list[str] | None, typer.Option(metavar="INxOUT", help="May be repeated.", show_default="4096x4096")] = None,
    sparsity: Annotated[str, typer.Option(metavar="S[,S]", help="Shares of the weights left out.")] = "0.94",
    batch: Batch = "128",
    algorithm: Annotated[
        list[str] | None, typer.Option(help="Whose whole rewirings are timed too: rigl, set, ...; may be repeated.", show_default="none")
    ] = None,
    threads: Threads = None,
    isa: Isa = None,
    device: Device = "cpu",
    seconds: Seconds = 2.0,
    json: Json = None,
) -> None:
    """Changing a topology, part by part, and RigL's search for the largest absent gradients beside a dense forward."""
    from ..bench import RewireCase, measure_rewirings
    from ..bench.request import counts_of, make_conditions, matrix_of, sparsities_of

    conditions = make_conditions(threads, seconds, "float32", device, isa)
    cases = [
        RewireCase(matrix, share, samples, tuple(algorithm or ()))
        for matrix in map(matrix_of, shape or ["4096x4096"])
        for samples in counts_of("--batch", batch or "128")
        for share in sparsities_of(sparsity)
    ]
    lines = len(cases) * len(conditions.threads)
    _measure("rewire", conditions, isa, json, lines, lambda _, tell: measure_rewirings(cases, conditions, tell))


@bench.command()
def inference(
    table: Annotated[
        str | None, typer.Option(metavar="NAME", help="The lines of a table of the guide: one-sample, srigl, break-even, values.")
    ] = None,
    shape: Annotated[list[str] | None, typer.Option(metavar="INxOUT", help="May be repeated.", show_default="3072x768")] = None,
    network: Annotated[
        list[str] | None, typer.Option(help="cifar-mlp, mnist-cnn, resnet20, gpt, resnet50, gpt2-small; may be repeated.")
    ] = None,
    run: Annotated[Path | None, typer.Option(metavar="FOLDER", help="The sparse network of a run, and its accuracy.")] = None,
    sparsity: Annotated[
        str | None,
        typer.Option(metavar="S[,S]", help="Shares of the weights left out.", show_default="0.5,0.8,0.9,0.95,0.99, a network's own"),
    ] = None,
    batch: Annotated[str | None, typer.Option(metavar="N[,N]", help="Samples in a call.", show_default="1, or the table's")] = None,
    values: Annotated[str, typer.Option(metavar="V[,V]", help="As what weights may be held: float32, bfloat16, int8.")] = "float32",
    pattern: PatternOption = "unstructured",
    ablated: Annotated[float, typer.Option(help="Share of neurons without connections, of a constant fan-in.")] = 0.0,
    tune: Annotated[bool, typer.Option(help="Choose layouts by measuring; else by rule.")] = True,
    threads: Annotated[str, typer.Option(metavar="N[,N]", help="Of torch and of the kernels.")] = "1",
    isa: Isa = None,
    device: Device = "cpu",
    seconds: Annotated[float, typer.Option(help="Of timing for each line of the table, three rounds at least.")] = 0.3,
    json: Json = None,
) -> None:
    """Packed layers and networks: dense, dense + mask, torch's CSR weight, a dense layer without ablated neurons, `truesparse.pack`."""
    from ..bench import measure_inference
    from ..bench.request import make_conditions
    from ..bench.request_inference import InferenceRequest

    _only_on_the_cpu("inference", device)
    request = InferenceRequest(table, shape, network, run, sparsity, batch, values, pattern, ablated, tune)
    cases, conditions = request.cases(), make_conditions(threads, seconds, "float32")
    lines = len(cases) * len(conditions.threads)
    _measure("inference", conditions, isa, json, lines, lambda _, tell: measure_inference(cases, conditions, tell))


@bench.command()
def page(
    documents: Annotated[list[Path], typer.Argument(help="What the other commands wrote with --json.")],
    into: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the tables between the markers of this file.")] = None,
    marker: Annotated[str, typer.Option(metavar="NAME", help="The markers are <!-- NAME --> and <!-- /NAME -->.")] = "bench",
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw speed-up against sparsity here (needs matplotlib).")] = None,
    glance: Annotated[bool, typer.Option("--glance", help="One short table of everything, a column for each instruction set.")] = False,
) -> None:
    """Tables, a plot and the break-even points of several measurements."""
    import os

    from ..bench import read_document
    from ..bench.page import as_markdown, break_even_lines, write_page
    from ..bench.page_glance import glance_table
    from ..bench.plot import write_plot
    from ..runs import ConfigError

    if glance and plot is not None:
        raise ConfigError("--glance does not go with --plot: leave one of them out")
    found = [read_document(path) for path in documents]
    if plot is not None:
        write_plot(plot, found)
    shown = plot if plot is None or into is None else Path(os.path.relpath(plot, into.parent))
    tables = glance_table(found) if glance else as_markdown(found, None if shown is None else shown.as_posix())
    if into is None:
        print(tables)
        return
    write_page(into, marker, tables)
    print(tables if glance else "\n".join(break_even_lines(found)))


def _measure_layers(
    command: str,
    cases: Sequence[LayerCase],
    threads: str | None,
    isa: str | None,
    device: str,
    dtype: str,
    seconds: float,
    json: Path | None,
) -> None:
    from ..bench import measure_layers
    from ..bench.request import make_conditions

    conditions = make_conditions(threads, seconds, dtype, device, isa)
    lines = 2 * len(cases) * len(conditions.threads)
    _measure(command, conditions, isa, json, lines, lambda peaks, tell: measure_layers(cases, conditions, peaks, tell))


def _measure(command: str, conditions: Conditions, isa: str | None, json: Path | None, lines: int, take: Take) -> None:
    """Takes all rows, with a word to those who wait, then shows the table and writes the document."""
    from ..bench import Document
    from ..bench.request import instruction_set, multiplied_in
    from ..bench.work import measure_peaks
    from ..runs.machine import machine
    from .bench_tables import print_document
    from .progress import show_progress

    _refuse_unwritable(json)
    device = conditions.device
    with instruction_set(isa), multiplied_in(conditions.tf32), show_progress(lines) as tell:
        described = machine(device)
        peaks = () if command in WITHOUT_PEAKS else tuple(measure_peaks(threads, device) for threads in conditions.threads)
        document = Document(command, described, conditions.dtype_name, peaks, tuple(take(peaks, tell)))
    if json == STDOUT:
        print(document.to_json(), end="")
        return
    print_document(document)
    if json is not None:
        json.write_text(document.to_json())


def _only_on_the_cpu(command: str, device: str) -> None:
    if device != "cpu":
        raise typer.BadParameter(f"bench {command} measures the CPU only, got {device}: leave it out", param_hint="--device")


def _refuse_unwritable(json: Path | None) -> None:
    """Before minutes are spent."""
    if json is not None and json != STDOUT and (json.is_dir() or not json.parent.is_dir()):
        why = "it is a folder" if json.is_dir() else f"there is no folder {json.parent}"
        raise typer.BadParameter(f"cannot write {json}: {why}", param_hint="--json")
