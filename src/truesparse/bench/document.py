"""What is the answer of a measurement? One document: the machine, its peaks, a row for each line of the table.

As JSON (`--json`), schema 1, times in seconds, ratios as "times as fast as dense" (2.0: half the time), names as below:

    {"schema": 1, "command": "linear", "machine": {...}, "dtype": "float32", "peaks": [Peaks...], "rows": [LayerRow...]}

`command` is linear or conv (rows are `LayerRow`), step (`StepRow`), memory (`MemoryRow`), scale (`ScaleRow`), rewire (`RewireRow`) or
inference (`InferenceRow`); `machine` is that of a training run: processor, instruction_set, threads (as torch chose them), torch, ...;
`peaks` has an entry for each number of threads (empty for memory, scale, rewire and inference).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..runs import ConfigError
from .work import Peaks

SCHEMA = 1
WAYS = ("dense", "masked", "csr", "sparse")  # dense PyTorch, dense + mask, torch's CSR weight, truesparse


@dataclass(frozen=True)
class LayerRow:
    """One layer, one sparsity, one batch, one number of threads, one direction.

    Args:
        layer: for people: "3072 -> 768".
        sparsity: as it is, after rounding to whole connections.
        direction: "forward" (no gradients) or "forward + backward" (dx and dW).
        seconds: medians of one call, by way.
        times_as_fast: ratios of these medians to dense, by way.
        left_out: ways that were not timed, and why.
        multiply_adds, least_bytes: of truesparse, as `truesparse.bench.work` counts them.
        share_of_multiply_adds, share_of_bandwidth: of the measured peaks, achieved by truesparse.
        kernel: that ran truesparse.
        device_seconds: medians of a GPU alone, by way, see `timing.interleaved_on_device`; none of a CPU.
    """

    layer: str
    pattern: str
    sparsity: float
    connections: int
    batch: int
    threads: int
    direction: str
    seconds: Mapping[str, float]
    times_as_fast: Mapping[str, float]
    left_out: Mapping[str, str]
    multiply_adds: int
    least_bytes: int
    share_of_multiply_adds: float
    share_of_bandwidth: float
    kernel: str = ""
    device_seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StepRow:
    """Whole training steps of one network.

    Args:
        density: how it was asked for: "90 %", "epsilon 20".
        sparsity: of the layers made sparse, together.
        connections: of the same.
        seconds: of one step by way, rewiring every `every` steps included; with "dense_compiled" and "sparse_compiled" if asked for.
        plain_seconds: medians of steps that do not rewire.
        rewiring_seconds: medians of those that do, with what the step after them takes longer (plans are made anew there).
        times_as_fast: ratios of `seconds` to dense.
        phases: where the plain step's time goes, by way: medians of forward (with the loss), backward, optimizer; and "rewiring",
            what rewiring adds to each step on average.
        share_of_multiply_adds: of the measured peak, by the sparse layers' y, dW and dx over the whole sparse step.
        compile_options: of `torch.compile`, by way, where its defaults computed something else.
    """

    network: str
    density: str
    budget: str
    sparsity: float
    connections: int
    batch: int
    threads: int
    every: int
    seconds: Mapping[str, float]
    plain_seconds: Mapping[str, float]
    rewiring_seconds: Mapping[str, float]
    times_as_fast: Mapping[str, float]
    phases: Mapping[str, Mapping[str, float]]
    share_of_multiply_adds: float
    compile_options: Mapping[str, str] = field(default_factory=dict)
    pattern: str = "Unstructured()"

    @property
    def named(self) -> str:
        """The network, and the pattern of its layers if there is one."""
        return self.network if self.pattern == "Unstructured()" else f"{self.network}, {self.pattern}"

    @property
    def compiled_over_compiled(self) -> float | None:
        """How many times as fast as the compiled dense step the compiled sparse one is; None where they were not measured."""
        both = [self.seconds.get(f"{way}_compiled") for way in ("dense", "sparse")]
        return both[0] / both[1] if both[0] and both[1] else None


@dataclass(frozen=True)
class MemoryRow:
    """Square layers in training with AdamW and RigL, in a process of their own.

    Args:
        size: rows and columns of each layer.
        bytes: held between backward and `zero_grad`, by kind: weights, gradients, optimizer, topology (with its transpose and all plans).
        bytes_per_connection: their sum over the connections.
        resident_before: bytes of the process with torch and truesparse loaded, before the layers; of a GPU, those of its tensors.
        resident_peak: the most it ever had; of a GPU, likewise.
        dense_bytes: what dense weights, gradients and two moments would take, by arithmetic.
        step_seconds, rewiring_seconds: medians of steps that do not rewire, and of those that do.
    """

    layers: int
    size: int
    sparsity: float
    connections: int
    batch: int
    threads: int
    bytes: Mapping[str, int]
    bytes_per_connection: float
    resident_before: int
    resident_peak: int
    dense_bytes: int
    step_seconds: float
    rewiring_seconds: float


@dataclass(frozen=True)
class ScaleRow:
    """Three hidden layers of many neurons with a few connections each, SGD with momentum and GSE, in a process of their own.

    Args:
        neurons: of the hidden layers together.
        bytes: held between the optimizer's step and `zero_grad`, by kind, as in `MemoryRow`.
        bytes_per_connection: their sum over the connections.
        peak_bytes_per_connection: the most the process had at once beyond torch and truesparse, over the connections.
        making_seconds: of drawing the topologies and values.
        first_step_seconds: with the plans of the kernels, which are made in it.
        step_seconds: median of those that neither make plans nor rewire.
        rewiring_seconds: of one rewiring of all layers.
        connections_per_second: trained in a step, over its seconds.
    """

    neurons: int
    connections: int
    batch: int
    threads: int
    bytes: Mapping[str, int]
    bytes_per_connection: float
    peak_bytes_per_connection: float
    making_seconds: float
    first_step_seconds: float
    step_seconds: float
    rewiring_seconds: float
    connections_per_second: float


@dataclass(frozen=True)
class RewireRow:
    """Changes of the topology of one linear layer under AdamW, three tenths of the connections each time.

    Args:
        batch: samples of the gradients searched.
        parts: medians in seconds: "drop" (the weakest chosen and left out), "grow" (the new topology), "follow" (which went where),
            "move" (values, gradient and two moments), "plans" (those of the kernels, transpose included).
        rewiring_seconds: their sum.
        top_gradients_seconds: of finding as many largest absent gradients as grow.
        dense_forward_seconds: of one forward of the dense layer, in turns with the former.
        top_gradients_over_dense: ratio of the two.
        algorithms: seconds of a whole rewiring by a `Rewirer` under AdamW, by the name of the algorithm: its choice, the moves, and all
            that follows them.
    """

    layer: str
    sparsity: float
    connections: int
    batch: int
    threads: int
    parts: Mapping[str, float]
    rewiring_seconds: float
    top_gradients_seconds: float
    dense_forward_seconds: float
    top_gradients_over_dense: float
    algorithms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class InferenceRow:
    """One layer or network without gradients, for one batch, with one kind of values, on one number of threads.

    Args:
        kind: "layer" or "network".
        model: for people: "3072 -> 768".
        sparsity: of the layers made sparse, together, after rounding to whole connections.
        ablated: share of a layer's neurons without connections, as asked for.
        values: as which connections may be held: float32, bfloat16, int8.
        seconds: medians of one call, by way: dense, packed, csr; csr_features_first (layers: input and output transposed beforehand and
            left so); masked (networks); ablated (a dense layer of the neurons that have connections, where some have none).
        times_as_fast: ratios of these medians to dense, by way.
        csr: which of torch's ways with a CSR weight was the fastest on the input that all get; "" without one.
        layouts: how many layers of the packed network have each layout.
        bytes, dense_bytes: of the packed layers, and of dense float32 ones.
        file_bytes, dense_file_bytes: of the model as `truesparse.save` writes it, sparse and dense.
        largest_error: of the packed output against float64, over the largest entry.
        rms_error: the same in Euclidean norms.
        accuracy: of a trained network on its test data, "before" and "packed"; empty for others.
    """

    kind: str
    model: str
    pattern: str
    sparsity: float
    connections: int
    ablated: float
    values: str
    batch: int
    threads: int
    seconds: Mapping[str, float]
    times_as_fast: Mapping[str, float]
    csr: str
    layouts: Mapping[str, int]
    bytes: int
    dense_bytes: int
    file_bytes: int
    dense_file_bytes: int
    largest_error: float
    rms_error: float
    accuracy: Mapping[str, float]

    @property
    def pays(self) -> bool:
        """Whether the packed form is faster than dense, and not because `pack` chose dense layouts."""
        return self.times_as_fast["packed"] > 1 and set(self.layouts) != {"dense"}


Row = LayerRow | StepRow | MemoryRow | ScaleRow | RewireRow | InferenceRow
ROWS: Mapping[str, type[Row]] = {
    "linear": LayerRow,
    "conv": LayerRow,
    "step": StepRow,
    "memory": MemoryRow,
    "scale": ScaleRow,
    "rewire": RewireRow,
    "inference": InferenceRow,
}


@dataclass(frozen=True)
class Document:
    """A measurement, whole."""

    command: str
    machine: Mapping[str, Any]
    dtype: str
    peaks: tuple[Peaks, ...]
    rows: tuple[Row, ...]

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2) + "\n"


def read_document(path: Path) -> Document:
    """The document that `to_json` wrote.

    Raises:
        ConfigError: if the file cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text())
        if found.pop("schema") != SCHEMA:
            raise ConfigError(f"{path} is of another schema than {SCHEMA}: measure anew")
        rows = tuple(ROWS[found["command"]](**row) for row in found.pop("rows"))
        return Document(**{**found, "peaks": tuple(Peaks(**peak) for peak in found["peaks"])}, rows=rows)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} is not what `truesparse bench ... --json` writes: {error}") from error
