"""By which scale does int8 hold each buffer? As the layer that reads it was told to round it; else by what calibration has seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from .floats import size_of
from .network import Copy, Function, Network, Place, Pool, Recurrent, Softmax, Step, Transpose, matrices_of, sources_of
from .scale import LEAST, MOST, PROBABILITIES, SIGNED, Scale

FIXED = {"sigmoid": PROBABILITIES, "hardsigmoid": PROBABILITIES, "tanh": SIGNED}


def scaled(network: Network, found: Mapping[int, tuple[float, float]]) -> tuple[Network, dict[int, Scale]]:
    """(the network, with copies where a layer rounds what it reads in another way than whoever writes it; the scale of each buffer).

    Args:
        found: the range of each buffer; of those that a quantised layer reads, it is not asked for.

    Raises:
        ValueError: if one of these is missing.
    """
    wanted = _wanted(network)
    scales = {0: wanted.get(0) or _of_range(found, 0, "")}
    copies: dict[tuple[Place, Scale], Place] = {}
    buffers = max(size_of(network))
    steps: list[Step] = []
    for step in network.steps:
        source = step.source
        rounding = _rounding(step)
        if rounding is not None and scales[source.buffer] != rounding:
            if (source, rounding) not in copies:
                place = Place(buffers + len(copies) + 1, source.shape)
                copies[source, rounding], scales[place.buffer] = place, rounding
                steps.append(Copy(f"{step.name}.rounded", source, place))
            step = replace(step, source=copies[source, rounding])
        steps.append(step)
        if step.target.buffer not in scales:
            scales[step.target.buffer] = _target(step, scales, wanted, found)
    return replace(network, steps=tuple(steps)), scales


def _target(step: Step, scales: Mapping[int, Scale], wanted: Mapping[int, Scale], found: Mapping[int, tuple[float, float]]) -> Scale:
    buffer = step.target.buffer
    if isinstance(step, Transpose) or (isinstance(step, Pool) and not step.mean):
        return scales[step.source.buffer]
    if isinstance(step, Softmax):
        return PROBABILITIES
    if buffer in wanted:
        return wanted[buffer]
    if isinstance(step, Function) and step.kind in FIXED:
        return FIXED[step.kind]
    if isinstance(step, Recurrent):
        return SIGNED
    stated = None if buffer in found else _stated_target(step)
    return stated or _of_range(found, buffer, step.name)


def _wanted(network: Network) -> dict[int, Scale]:
    """Of each buffer that a quantised layer reads, or reads after steps that leave scales as they are, how it rounds it."""
    readers = Counter(place.buffer for step in network.steps for place in sources_of(step))
    readers[network.output.buffer] += 1
    wanted: dict[int, Scale] = {}
    for step in reversed(network.steps):  # so that of several readers the first one counts
        source, rounding = step.source.buffer, _rounding(step)
        if rounding is not None:
            wanted[source] = rounding
        elif _leaves_scales(step) and readers[source] == 1 and step.target.buffer in wanted:
            wanted[source] = wanted[step.target.buffer]
    return wanted


def _rounding(step: Step) -> Scale | None:
    """How a step rounds what it reads."""
    return next((one.stated.source for one in matrices_of(step)[:1] if one.stated is not None), None)  # of the state: gates.py


def _leaves_scales(step: Step) -> bool:
    if isinstance(step, Pool):
        return not step.mean
    return isinstance(step, (Transpose, Copy)) or (isinstance(step, Function) and step.kind == "clamp")


def _stated_target(step: Step) -> Scale | None:
    """Of what a quantised layer gives, within what it is clamped to."""
    for one in matrices_of(step):
        if one.stated is not None and one.stated.target is not None:
            ends = [(end - one.stated.target.zero) * one.stated.target.scale for end in (LEAST, MOST)]
            clamped = one.low > ends[0] or one.high < ends[1]
            return Scale.of_range(max(one.low, ends[0]), min(one.high, ends[1])) if clamped else one.stated.target
    return None


def _of_range(found: Mapping[int, tuple[float, float]], buffer: int, name: str) -> Scale:
    if buffer not in found:
        what = f"what {name!r} gives" if name else "the input"
        raise ValueError(
            f"int8 needs calibration=batches, inputs like those to come, to know how large {what} becomes: no layer that ts.quantize has "
            "rounded reads it, and what such a layer gives was only known before it was trained on"
        )
    return Scale.of_range(*found[buffer])
