"""How fast is a packed network beside dense PyTorch, torch's CSR weights and a mask, and how far off is it with narrow values?

Called as a user calls it: modules, row-major tensors, no gradients. Layers have a bias. Layouts are chosen anew each time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from ..inference import PackedNetwork, pack
from ..inference.choice import Memory
from ..runs import ConfigError
from ..runs.machine import threads_said
from .document import InferenceRow
from .inference_cases import Case, Subject, Way, subject_of
from .request import Conditions
from .timing import Call, elapsed, interleaved, times_as_fast
from .wrong import WrongResult, refuse_if_far, refuse_if_wrong

# Of a layer: largest error over largest entry. A narrow value has 8 bits, and hundreds of them are summed.
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2, "int8": 3e-2}
# Of a network: Euclidean norms. Errors go through many layers.
NETWORK_TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-1, "int8": 1e-1}
CSR = "csr, "  # ways of which the fastest counts
FAR_SLOWER, SHARE_FOR_CHOICE = 4, 0.1  # of one kind: what is so many times slower is out; of a line's time, to find the fastest


@dataclass(frozen=True)
class InferenceCase:
    """One line.

    Args:
        of: what is run.
        batch: for how many samples.
        values: as which connections may be held: "float32", "bfloat16", "int8".
        tune: whether layouts are chosen by measuring, or by a rule that is the same on every machine.
        rivals: whether to time more than dense and packed.
    """

    of: Case
    batch: int
    values: str = "float32"
    tune: bool = True
    rivals: bool = True


def measure_inference(cases: Sequence[InferenceCase], conditions: Conditions, tell: Callable[[str], None]) -> Iterator[InferenceRow]:
    """A row for each case and each number of threads.

    Args:
        cases: what.
        conditions: how.
        tell: hears which line is about to be taken.

    Raises:
        WrongResult: if any way computes something else than float64 does. Nothing of that line is timed then.
        ConfigError: if a network cannot be packed.
        RunError: if a run has no network.
    """
    before = torch.get_num_threads()
    try:
        with TemporaryDirectory() as folder, torch.no_grad():  # torch's CSR tensors cannot be used under inference_mode
            memory = Memory(Path(folder) / "layouts.json")
            for case in cases:
                for threads in conditions.threads:
                    tell(f"{case.of}, {case.values}, batch {case.batch}, {threads_said(threads)}")
                    torch.set_num_threads(threads)
                    yield _measured(case, conditions.seconds, memory)
    finally:
        torch.set_num_threads(before)


def _measured(case: InferenceCase, seconds: float, memory: Memory) -> InferenceRow:
    subject = subject_of(case.of)
    x = subject.example(case.batch)
    truth = _truth(subject, x)
    packed = _packed(case, subject, x, memory)
    rivals = subject.rivals(x) if case.rivals else {}
    ways = {"dense": Way(lambda: subject.dense(x)), **rivals, "packed": Way(lambda: packed(x))}
    for name, way in ways.items():
        _check(case, name, way, truth)
    calls: dict[str, Call] = {name: way.call for name, way in ways.items()}
    csr = _keep_fastest(calls, CSR, seconds)
    medians = interleaved(calls, seconds, warm=True)
    y, rows = packed(x).double(), packed.explain().rows
    return InferenceRow(
        kind=case.of.kind,
        model=subject.name,
        pattern=str(case.of.pattern),
        sparsity=subject.sparsity,
        connections=subject.connections,
        ablated=getattr(case.of, "ablated", 0.0),
        values=case.values,
        batch=len(x),
        threads=torch.get_num_threads(),
        seconds=medians,
        times_as_fast=times_as_fast(medians),
        csr=csr,
        layouts=dict(Counter(row.layout for row in rows)),
        bytes=sum(row.bytes for row in rows),
        dense_bytes=sum(row.dense_bytes for row in rows),
        file_bytes=subject.file_bytes[0],
        dense_file_bytes=subject.file_bytes[1],
        largest_error=float((y - truth).abs().max() / truth.abs().max()),
        rms_error=float((y - truth).norm() / truth.norm()),
        accuracy=_accuracies(subject, packed),
    )


def _truth(subject: Subject, x: Tensor) -> Tensor:
    """The output in float64, of the very numbers the ways are given."""
    return deepcopy(subject.dense).double()(x.double() if x.is_floating_point() else x)


def _packed(case: InferenceCase, subject: Subject, x: Tensor, memory: Memory) -> PackedNetwork:
    try:
        return pack(subject.sparse, x, values=case.values, tune=case.tune, memory=memory)
    except TypeError as error:
        raise ConfigError(f"{case.of} cannot be packed: {error}") from error
    except RuntimeError as error:
        raise WrongResult(f"{case.of}: {error}; nothing is timed") from error


def _check(case: InferenceCase, name: str, way: Way, truth: Tensor) -> None:
    what, values = f"{case.of}: the output of {name}", case.values if name == "packed" else "float32"
    if case.of.kind == "layer":
        refuse_if_wrong(what, way.call(), way.part(truth), TOLERANCE[values])
    else:
        refuse_if_far(what, way.call(), way.part(truth), NETWORK_TOLERANCE[values])


def _keep_fastest(calls: dict[str, Call], kind: str, seconds: float) -> str:
    """Leaves one of the calls whose names begin with `kind`, under that name; what it was called, "" if there was none."""
    own = {name: calls.pop(name) for name in [name for name in calls if name.startswith(kind)]}
    if not own:
        return ""
    once = {name: elapsed(call) for name, call in own.items()}
    near = {name: call for name, call in own.items() if once[name] <= FAR_SLOWER * min(once.values())}
    medians = interleaved(near, seconds * SHARE_FOR_CHOICE, warm=True) if len(near) > 1 else once
    best = min(near, key=lambda name: medians[name])
    calls[kind.removesuffix(", ")] = own[best]
    return best.removeprefix(kind)


def _accuracies(subject: Subject, packed: PackedNetwork) -> Mapping[str, float]:
    if subject.accuracy is None:
        return {}
    found = {"before": subject.accuracy(subject.sparse), "packed": subject.accuracy(packed)}
    return {name: share for name, share in found.items() if share is not None}
