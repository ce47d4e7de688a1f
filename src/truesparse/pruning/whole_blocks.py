"""Which whole blocks can go? Those that change least of what goes through them. Men et al. 2024, https://arxiv.org/abs/2403.03853"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .probe import Batch, Forward, called, evaluating

Model = TypeVar("Model", bound=nn.Module)
NUMBERED = "layer_idx"
"""The attribute by which blocks of transformers find their place in a cache."""


def block_influence(model: nn.Module, blocks: str, data: Iterable[Batch], forward: Forward = called) -> Tensor:
    """How much each block changes: 1 - the mean cosine of what goes in and what comes out (equation 1), [blocks] float64.

    Args:
        model: run in eval mode, left as it is.
        blocks: name of the `nn.ModuleList` or `nn.Sequential` of blocks, each of which gives what it is given, changed: "model.layers".
        data: batches, as for `prune`.
        forward: calls the model on a batch.

    Raises:
        ValueError: if there are no such blocks, one gives a tensor of another shape than it is given, or no data reaches one.
    """
    held = _held(model, blocks)
    sums, counts = torch.zeros(len(held), dtype=torch.float64, device="cpu"), torch.zeros(len(held), dtype=torch.int64, device="cpu")

    def hear(place: int, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        x, y = (next((leaf for leaf in tree_leaves(one) if isinstance(leaf, Tensor)), None) for one in ((args, kwargs), output))
        if x is None or y is None or x.shape != y.shape:
            shapes = ", ".join("nothing" if one is None else str(tuple(one.shape)) for one in (x, y))
            raise ValueError(f"block {place} of {blocks!r} cannot be left out: expected an output of the shape of its input, got {shapes}")
        # The features of convolutions stand before the positions.
        axis = 1 if any(isinstance(one, nn.modules.conv._ConvNd) for one in held[place].modules()) else -1
        cosine = torch.cosine_similarity(x.double(), y.double(), axis)
        sums[place] += cosine.sum().cpu()
        counts[place] += cosine.numel()

    def hook(place: int) -> Any:
        return lambda module, args, kwargs, output: hear(place, args, kwargs, output)

    handles = [block.register_forward_hook(hook(place), with_kwargs=True) for place, block in enumerate(held)]
    try:
        with evaluating(model), torch.no_grad():
            for batch in [data] if isinstance(data, Tensor) else data:
                forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    missed = [place for place, count in enumerate(counts.tolist()) if not count]
    if missed:
        raise ValueError(f"no data reached block {missed[0]} of {blocks!r}: pass batches that go through all of them")
    return 1.0 - sums / counts


def drop_blocks(model: Model, count: int, blocks: str, data: Iterable[Batch], *, forward: Forward = called) -> Model:
    """Leave out the `count` blocks that change least of what goes through them, in place.

        ts.drop_blocks(model, 4, "model.layers", data=batches)

    Where blocks of transformers are numbered for their cache, those that stay are numbered anew, and their configuration says how many
    there are. On an error the model is as it was.

    Args:
        model: any model whose forward goes through a list of blocks.
        count: of blocks to leave out.
        blocks, data, forward: as for `block_influence`.

    Returns:
        The same model.

    Raises:
        ValueError: as `block_influence` does, or if no block would be left.
    """
    held = _held(model, blocks)
    if not 0 <= count < len(held):
        raise ValueError(f"{blocks!r} has {len(held)} blocks, of which one must stay: count is at most {len(held) - 1}, got {count}")
    influence = block_influence(model, blocks, data, forward)
    stay = influence.argsort(stable=True)[count:].sort().values.tolist()
    kept = [held[place] for place in stay]
    del held[len(kept) :]
    for place, block in enumerate(kept):
        held[place] = block
        for module in block.modules():
            if isinstance(getattr(module, NUMBERED, None), int):
                setattr(module, NUMBERED, place)
    for config in {id(one): one for module in model.modules() if (one := getattr(module, "config", None)) is not None}.values():
        if getattr(config, "num_hidden_layers", None) == len(kept) + count:
            config.num_hidden_layers = len(kept)
            if isinstance(kinds := getattr(config, "layer_types", None), list):
                config.layer_types = [kinds[place] for place in stay]
    return model


def _held(model: nn.Module, blocks: str) -> nn.ModuleList | nn.Sequential:
    modules = dict(model.named_modules())
    found = modules.get(blocks)
    if not isinstance(found, (nn.ModuleList, nn.Sequential)) or not len(found):
        lists = [name for name, one in modules.items() if isinstance(one, (nn.ModuleList, nn.Sequential))]
        raise ValueError(f"{blocks!r} is no list of blocks; there are: {', '.join(map(repr, lists)) or 'none'}")
    return found
