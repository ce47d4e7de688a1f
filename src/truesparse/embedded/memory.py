"""Where do the buffers of a network lie? In one block of memory, each only as long as something reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .floats import size_of
from .network import Function, Network, Pair, Place, Pool, Softmax, Step, sources_of

ALIGNMENT = 4  # bytes


@dataclass(frozen=True)
class Plan:
    """
    Args:
        offsets: where each buffer begins in the block, in bytes; not of the input, nor of those that lie in the caller's output.
        in_output: buffers that do.
        scratch: where the scratch memory of each step begins; None: it needs none.
        size: of the block, in bytes.
        needed: bytes that are in use at once during each step, input and output of the network aside.
    """

    offsets: Mapping[int, int]
    in_output: frozenset[int]
    scratch: tuple[int | None, ...]
    size: int
    needed: tuple[int, ...]


def plan(network: Network, item: int, scratch: Callable[[Step], int]) -> Plan:
    """A place for every buffer; steps that can write over what they read do so.

    Args:
        item: bytes of a number.
        scratch: bytes that a step needs for itself.
    """
    sizes = size_of(network)
    roots = _in_place(network, sizes)
    first, last = _lifetimes(network, roots)
    in_output = frozenset(buffer for buffer in sizes if roots[buffer] == roots[network.output.buffer])
    blocks: dict[tuple[str, int], tuple[int, int, int]] = {}  # (what, number) -> (bytes, first step, last step)
    for buffer in first:
        if buffer not in in_output and buffer != 0:
            members = max(sizes[one] for one in sizes if roots[one] == buffer)
            blocks["buffer", buffer] = _aligned(members * item), first[buffer], last[buffer]
    for number, step in enumerate(network.steps):
        if scratch(step):
            blocks["scratch", number] = _aligned(scratch(step)), number, number
    placed = _placed(blocks)
    size = max((offset + blocks[key][0] for key, offset in placed.items()), default=0)
    offsets = {one: placed["buffer", root] for one, root in roots.items() if ("buffer", root) in placed}
    steps = range(len(network.steps))
    needed = tuple(sum(size for size, begin, end in blocks.values() if begin <= number <= end) for number in steps)
    return Plan(offsets, in_output, tuple(placed.get(("scratch", number)) for number in steps), size, needed)


def _in_place(network: Network, sizes: Mapping[int, int]) -> dict[int, int]:
    """{buffer: the first of those that it shares memory with}"""
    final_reader: dict[int, int] = {}
    for number, step in enumerate(network.steps):
        final_reader.update({place.buffer: number for place in sources_of(step)})
    before: dict[int, int] = {}
    for number, step in enumerate(network.steps):
        for place in sources_of(step):
            free = final_reader[place.buffer] == number and place.buffer not in (0, network.output.buffer, *before.values())
            if _may_write_over(step) and free and place == Place(place.buffer, place.shape) and place.size == sizes[place.buffer]:
                before[step.target.buffer] = place.buffer
                break
    buffer = network.output.buffer
    while buffer in before:  # what lies in the caller's output must be as large as that
        if sizes[before[buffer]] != network.output.size:
            del before[buffer]
            break
        buffer = before[buffer]
    roots: dict[int, int] = {}
    for buffer in sorted(sizes):
        roots[buffer] = roots[before[buffer]] if buffer in before else buffer
    return roots


def _may_write_over(step: Step) -> bool:
    """Whether the place of each output was read before it is written."""
    return isinstance(step, (Function, Pair, Softmax)) or (isinstance(step, Pool) and step.window.padding == (0, 0))


def _lifetimes(network: Network, roots: Mapping[int, int]) -> tuple[dict[int, int], dict[int, int]]:
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for number, step in enumerate(network.steps):
        first.setdefault(roots[step.target.buffer], number)
        for place in (step.target, *sources_of(step)):
            last[roots[place.buffer]] = number
    return first, last


def _placed(blocks: Mapping[tuple[str, int], tuple[int, int, int]]) -> dict[tuple[str, int], int]:
    """The largest first, each at the lowest place that is free as long as it is needed."""
    placed: dict[tuple[str, int], int] = {}
    for key, (size, first, last) in sorted(blocks.items(), key=lambda one: -one[1][0]):
        taken = sorted(
            (placed[other], placed[other] + blocks[other][0]) for other in placed if blocks[other][1] <= last and first <= blocks[other][2]
        )
        at = 0
        for begin, end in taken:
            if at + size <= begin:
                break
            at = max(at, end)
        placed[key] = at
    return placed


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
