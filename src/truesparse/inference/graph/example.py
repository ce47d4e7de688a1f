"""How does an example say what a model is called with? By position or by name, in tensors or dicts; a graph takes all tensors in a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Example = Tensor | tuple[Tensor | Mapping[str, Tensor], ...] | Mapping[str, Tensor]


@dataclass(frozen=True)
class Form:
    """How tensors in a row become the arguments of a call.

    Args:
        keys: of each positional argument that is a dict; None for each that is a tensor.
        names: of the arguments, if they are by name; then there are no positional ones.
    """

    keys: tuple[tuple[str, ...] | None, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def has_dicts(self) -> bool:
        """Whether a positional argument is a dict."""
        return any(own is not None for own in self.keys)

    @property
    def labels(self) -> tuple[str, ...]:
        """What to call each of the tensors."""
        parts = ([f"input {place}"] if own is None else [f"input {place}[{key!r}]" for key in own] for place, own in enumerate(self.keys))
        return self.names or tuple(label for part in parts for label in part)

    def arguments(self, row: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(positional, by name) of tensors in a row, or of what stands for them."""
        if self.names:
            return (), dict(zip(self.names, row, strict=True))
        waiting = iter(row)
        return tuple(next(waiting) if own is None else {key: next(waiting) for key in own} for own in self.keys), {}

    def row(self, args: Sequence[Any]) -> tuple[Any, ...]:
        """The tensors of positional arguments in a row.

        Raises:
            TypeError: if they are others.
        """
        given = tuple(tuple(one) if isinstance(one, Mapping) else None for one in args)
        if [own and set(own) for own in given] != [own and set(own) for own in self.keys]:
            said = [", ".join("a tensor" if own is None else f"a dict of {', '.join(own)}" for own in form) for form in (self.keys, given)]
            raise TypeError(f"expected the positional arguments of the example, {said[0]}, got {said[1] or 'none'}")
        return tuple(one for own, arg in zip(self.keys, args, strict=True) for one in ([arg] if own is None else map(arg.get, own)))


def form_of(example: Example) -> Form:
    """
    Raises:
        TypeError: if the example is anything else than a tensor, a tuple of tensors or dicts of tensors, or tensors by name.
    """
    if isinstance(example, Mapping):
        form, row = Form(names=tuple(example)), list(example.values())
    else:
        given = example if isinstance(example, tuple) else (example,)
        form = Form(tuple(tuple(one) if isinstance(one, Mapping) else None for one in given))
        row = [leaf for one in given for leaf in (one.values() if isinstance(one, Mapping) else [one])]
    if not all(isinstance(one, Tensor) for one in row):
        kinds = ", ".join(type(one).__name__ for one in row)
        raise TypeError(
            f"an example is a tensor or a tuple of tensors, got {kinds}; arguments by name are a dict of tensors, and a dict that is an "
            "argument itself stands in a tuple, ({'name': tensor},)"
        )
    return form


def inputs_of(example: Example) -> tuple[Tensor, ...]:
    """The tensors of an example in a row.

    Raises:
        TypeError: as `form_of`.
    """
    form = form_of(example)
    if isinstance(example, Mapping):
        return tuple(example.values())
    return form.row(example if isinstance(example, tuple) else (example,))


def call(model: nn.Module, example: Example) -> Any:
    """What the model gives for an example."""
    args, named = form_of(example).arguments(inputs_of(example))
    return model(*args, **named)
