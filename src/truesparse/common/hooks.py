"""Which hooks on a model's modules are a user's? Those of this library only watch training, and mean nothing to a copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

LIBRARY = __name__.partition(".")[0]
# What may change what a forward pass gives, and how to call it.
FORWARD = {"_forward_hooks": "forward hook", "_forward_pre_hooks": "forward pre-hook"}
BACKWARD = ("_backward_hooks", "_backward_pre_hooks")


def user_hooks(model: nn.Module) -> dict[str, str]:
    """{name of a module: which hooks of a user are called with its forward pass}, of those modules where there are any."""
    named = {name: users_on(module) for name, module in model.named_modules()}
    return {name: kinds for name, kinds in named.items() if kinds}


def users_on(module: nn.Module) -> str:
    """Which hooks of a user are called with the forward pass of this module: "forward hook, forward pre-hook"; "" without any."""
    kinds = [said for attribute, said in FORWARD.items() if any(not _is_own(hook) for hook in getattr(module, attribute).values())]
    return ", ".join(kinds)


class Watched:
    """Whether hooks are on any of a model's modules now; asked at every call."""

    def __init__(self, model: nn.Module) -> None:
        self._tables: list[Mapping[int, Any]] = [getattr(module, attribute) for module in model.modules() for attribute in FORWARD]

    def __bool__(self) -> bool:
        return any(self._tables) or bool(_has_any_global_hook())


def without_training_hooks(model: nn.Module) -> nn.Module:
    """The same model; of the hooks on its modules those that users put on forward passes are left."""
    for module in model.modules():
        for attribute in FORWARD:
            hooks = getattr(module, attribute)
            for key in [key for key, hook in hooks.items() if _is_own(hook)]:
                del hooks[key]
        for attribute in BACKWARD:
            getattr(module, attribute).clear()
    return model


def _is_own(hook: Any) -> bool:
    """A function knows the file that it is from, an object that of its class."""
    return str(getattr(hook, "__module__", "")).partition(".")[0] == LIBRARY
