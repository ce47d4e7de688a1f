"""Which modules are the blocks of a model, called one after the other, and with what is each called?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..inference.shrink import without_cache
from .probe import Batch, Forward, evaluating

Call = tuple[tuple[Any, ...], dict[str, Any]]  # arguments after the first, and those by name


@dataclass(frozen=True)
class Walk:
    """The blocks of a model on some data: what goes into one of them, and what else each is called with.

    Attributes:
        inputs: first argument of the block that is next, of each batch.
        calls: [blocks][batches] the other arguments: attention masks, positions, ...
    """

    inputs: list[Tensor]
    calls: list[list[Call]]

    def batches(self, place: int) -> list[tuple[Tensor, Call]]:
        """What the block at this place is called with, if `inputs` are its own."""
        return list(zip(self.inputs, self.calls[place], strict=True))

    def after(self, place: int, block: nn.Module) -> Walk:
        """The walk with what `block` gives as the inputs of the next."""
        with evaluating(block), torch.no_grad():
            return replace(self, inputs=[output_of(run(block, batch)) for batch in self.batches(place)])


class _Stopped(Exception):
    """All blocks were seen."""


def find_blocks(model: nn.Module, blocks: str | None = None) -> dict[str, nn.Module]:
    """The blocks of a model by name: the members of that `nn.ModuleList` or `nn.Sequential` which holds the most parameters.

    Args:
        model: in which they are.
        blocks: name of the list, as "model.layers"; None: found. Of two with as many the inner one.

    Raises:
        ValueError: if there is none, or none of that name.
    """
    lists = {name: one for name, one in model.named_modules() if isinstance(one, (nn.ModuleList, nn.Sequential)) and len(one)}
    if blocks is not None:
        if blocks not in lists:
            raise ValueError(
                f"blocks={blocks!r} is no nn.ModuleList or nn.Sequential of this model; there are: {', '.join(lists) or 'none'}"
            )
        name = blocks
    else:
        several = {name: one for name, one in lists.items() if len(one) > 1}
        if not several:
            raise ValueError("found no blocks: the model has no nn.ModuleList or nn.Sequential of two members or more")
        name = max(several, key=lambda name: (sum(weight.numel() for weight in several[name].parameters()), name.count(".")))
    return {f"{name}.{place}" if name else place: block for place, block in lists[name].named_children()}


def walk(model: nn.Module, blocks: dict[str, nn.Module], data: Sequence[Batch], forward: Forward) -> Walk:
    """Run the model on every batch as far as its last block, and keep what its blocks are called with.

    Where all blocks give what is like their input, they run on the first batch only: on the others each hands on what it got, for what else
    the model calls them with does not depend on what they compute.

    Raises:
        ValueError: if they are not called once each, one after the other, each first with what the one before gave.
    """
    recorder = _Recorder(list(blocks))
    handles = [
        handle
        for place, block in enumerate(blocks.values())
        for handle in (
            block.register_forward_pre_hook(partial(recorder.called, place), with_kwargs=True),
            block.register_forward_hook(partial(recorder.gave, place)),
        )
    ]
    try:
        with evaluating(model), without_cache(model), torch.no_grad(), ExitStack() as stack:
            for batch in data:
                try:
                    forward(model, batch)
                except _Stopped:
                    if not recorder.batches and recorder.alike:
                        stack.enter_context(_handing_on(blocks.values()))
                    recorder.next_batch()
                    continue
                raise ValueError(f"the model did not call {recorder.names[len(recorder.seen)]!r} on this data: name other blocks")
    finally:
        for handle in handles:
            handle.remove()
    return Walk(recorder.inputs, [list(calls) for calls in zip(*recorder.batches, strict=True)])


def run(block: nn.Module, batch: tuple[Tensor, Call]) -> Any:
    """What a block gives on one batch of `Walk.batches`."""
    x, (args, kwargs) = batch
    return block(x, *args, **kwargs)


def output_of(result: Any) -> Tensor:
    """What goes on to the next block: the result, or its first."""
    return result if isinstance(result, Tensor) else result[0]


class _Recorder:
    """Hooks on the blocks, and what they have heard."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.inputs: list[Tensor] = []
        self.batches: list[list[Call]] = []
        self.seen: list[Call] = []  # of this batch, one a block
        self.last: Tensor | None = None
        self.alike = True  # all results so far are tensors like the input of their block

    def called(self, place: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not args or not isinstance(args[0], Tensor):
            raise ValueError(f"block {self.names[place]!r} is not called with a tensor first: name other blocks")
        if place != len(self.seen) or (self.last is not None and self.last is not args[0] and not torch.equal(self.last, args[0])):
            raise ValueError(
                f"block {self.names[place]!r} is not called once, with what the block before it gave: blocks must follow on one "
                "another with nothing between them; name others, or prune without blocks"
            )
        if place == 0:
            self.inputs.append(args[0].detach())
        self.seen.append((args[1:], kwargs))

    def gave(self, place: int, module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        self.last = output_of(result)
        self.alike &= result is self.last and self.last.shape == args[0].shape and self.last.dtype == args[0].dtype
        if place == len(self.names) - 1:
            raise _Stopped

    def next_batch(self) -> None:
        self.batches.append(self.seen)
        self.seen, self.last = [], None


@contextmanager
def _handing_on(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Within this context blocks give what they get."""
    blocks = list(blocks)
    for block in blocks:
        block.forward = lambda x, *args, **kwargs: x
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
