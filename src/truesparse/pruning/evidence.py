"""What is known of layers when it is decided what goes? All that a criterion needs, measured, or one line that says why not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from .base import Evidence
from .candidates import Candidate
from .probe import Batch, Probe
from .statistics import STATISTICS

Need = str | Callable[[Probe], Mapping[str, Tensor]]


def held(data: Iterable[Batch] | None) -> Sequence[Batch]:
    if isinstance(data, (Tensor, Mapping)):
        return [data]  # one batch, whose rows are samples, or whose keys are the names of arguments
    return [] if data is None else list(data)


def needs_of(one: object) -> tuple[Need, ...]:
    return tuple(getattr(one, "needs", ()))


def evidence_of(candidates: Mapping[str, Candidate], probe: Probe, needs: Sequence[Need]) -> dict[str, list[Evidence]]:
    """What is known of each group of each layer.

    Raises:
        ValueError: if there is no data to measure on, none reaches a layer, or what was measured is not finite.
    """
    probe = replace(probe, layers=candidates)
    found: dict[str, dict[str, Tensor]] = {name: {} for name in candidates}
    for need in dict.fromkeys(needs):
        name_of_need, measure = (need, STATISTICS.get(need)) if isinstance(need, str) else (need.__name__, need)
        said = name_of_need.replace("_", " ")
        if measure is None:
            raise ValueError(f"a criterion needs {need!r}, which is no statistic; there are: {', '.join(STATISTICS)}")
        if isinstance(need, str) and not probe.data:
            raise ValueError(f"this criterion looks at {said}: pass data=batches")
        for name, tensor in measure(probe).items():
            if not bool(tensor.isfinite().all()):
                raise ValueError(
                    f"layer {name!r}: {said} on this data is not finite: look for NaN or infinity in the data, or in what the layers "
                    "before it give"
                )
            found[name][name_of_need] = tensor
        missing = [name for name in candidates if name_of_need not in found[name]]
        if missing:
            raise ValueError(
                f"no data reached {', '.join(map(repr, missing))}: pass data that goes through all layers, or exclude those that "
                "it does not"
            )
    return {name: one.evidence(name, found[name], probe.generator) for name, one in candidates.items()}
