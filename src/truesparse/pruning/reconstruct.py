"""How do blocks learn again, after pruning, to give what the dense ones gave? One after the other, by training each for that alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from .evidence import held as held_batches
from .probe import Batch, Forward, called, evaluating
from .walk import Call, find_blocks, output_of, run, walk

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
ADAM: MakeOptimizer = partial(Adam, lr=1e-3)


def reconstruct(
    model: nn.Module,
    data: Iterable[Batch],
    dense: nn.Module,
    *,
    epochs: int = 4,
    optimizer: MakeOptimizer = ADAM,
    blocks: str | None = None,
    forward: Forward = called,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> dict[str, tuple[float, float]]:
    """Train each block of a pruned model, in place, to give what the same block of the dense model gives, topologies fixed.

    Every block learns on what the blocks before it give once they have learned, so that it makes up for their errors too; its target is
    what the dense block gives in the dense model. The loss is the squared error over the square of the target. A block that does not come
    nearer keeps its parameters. It is sparse training: parameters, gradients and optimizer have an entry a connection.

        dense = copy.deepcopy(model)
        ts.prune_blocks(model, 0.5, "sparsegpt", batches)
        ts.reconstruct(model, batches, dense)

    Args:
        model: pruned. Its blocks are the members of an `nn.ModuleList` or `nn.Sequential`; of a small model they may be its layers.
        data: batches, targets are not needed; held while this runs. A step is taken on each.
        dense: the model before it was pruned.
        epochs: how often each block sees the data.
        optimizer: makes the optimizer of a block from its parameters; any of torch. By default Adam with a learning rate of 0.001.
        blocks: name of the list of blocks, as in `prune_blocks`; None: found.
        forward: calls the model on a batch, as in `prune`.
        generator: CPU generator of the order of batches; None is torch's global one.
        progress: say on stderr of each block how near it came.

    Returns:
        {name of block: (error before, error after)}, the mean over batches of the loss.

    Raises:
        ValueError: if there is no data, the blocks are not called one after the other, or the dense model has no such blocks.
    """
    held = held_batches(data)
    if not held:
        raise ValueError("reconstruction compares both models on data: pass batches")
    found = find_blocks(model, blocks)
    try:
        targets = {name: dense.get_submodule(name) for name in found}
    except AttributeError as error:
        raise ValueError(f"the dense model must have the blocks of the pruned one, {', '.join(found)}: {error}") from error
    own, true = walk(model, found, held, forward), walk(dense, targets, held, forward)
    errors: dict[str, tuple[float, float]] = {}
    for place, (name, block) in enumerate(found.items()):
        true = true.after(place, targets[name])
        errors[name] = before, after = learned(block, own.batches(place), true.inputs, epochs, optimizer, generator)
        if progress:
            print(f"{place + 1}/{len(found)} {name}: error {before:.3g}, then {after:.3g}", file=sys.stderr, flush=True)
        own = own.after(place, block)
    return errors


def learned(
    block: nn.Module,
    batches: Sequence[tuple[Tensor, Call]],
    targets: Sequence[Tensor],
    epochs: int,
    optimizer: MakeOptimizer,
    generator: torch.Generator | None,
) -> tuple[float, float]:
    """Train a block, in eval mode, from what it is called with to what it is to give; (error before, error after)."""
    scale = sum(float(target.square().mean()) for target in targets) / len(targets) or 1.0

    def error(place: int) -> Tensor:
        return (output_of(run(block, batches[place])) - targets[place]).square().mean() / scale

    def mean_error() -> float:
        with torch.no_grad():
            return sum(float(error(place)) for place in range(len(batches))) / len(batches)

    parameters = [parameter for parameter in block.parameters() if parameter.requires_grad]
    with evaluating(block):
        before = mean_error()
        if not parameters:
            return before, before
        best = [parameter.detach().clone() for parameter in parameters]
        rule = optimizer(parameters)
        with torch.enable_grad():
            for _ in range(epochs):
                for place in torch.randperm(len(batches), generator=generator, device="cpu").tolist():
                    rule.zero_grad()
                    error(place).backward()
                    rule.step()
        rule.zero_grad()
        after = mean_error()
        if not after < before:  # nor NaN
            with torch.no_grad():
                for parameter, value in zip(parameters, best, strict=True):
                    parameter.copy_(value)
            after = before
    return before, after
