"""Which network is meant where someone hands in a wrapped one? What torch.compile, DDP and averages put around it is no part of it."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

COMPILED = "_orig_mod"  # under this name torch.compile's class holds the network; to import that class takes seconds
HOLDERS = (DataParallel, DistributedDataParallel, AveragedModel)  # under the name "module"


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside `torch.compile`, `DataParallel`, `DistributedDataParallel` and `AveragedModel`, in any order; else `model`."""
    name = _inside(model)
    return model if name is None else unwrapped(getattr(model, name))


def plain_name(model: nn.Module, name: str) -> str:
    """What a module, parameter or buffer of `model` is called when no part of `model` is wrapped."""
    kept, module = [], model
    for part in name.split("."):
        if not isinstance(module, nn.Module) or part != _inside(module):
            kept.append(part)
        module = getattr(module, part, None)
    return ".".join(kept)


def _inside(module: nn.Module) -> str | None:
    return COMPILED if COMPILED in module._modules else "module" if isinstance(module, HOLDERS) else None
