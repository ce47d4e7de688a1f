"""How is an embedding sparse? Its table is a layer, whose rows are looked up; it may be the output layer of a language model too."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..linear import LinearInterface
from .base import Opened, linear, outside

SETTINGS = ("padding_idx", "scale_grad_by_freq")


class OpenedEmbedding(Opened):
    """`nn.Embedding` whose table [num_embeddings, embedding_dim] is a layer, `table`: y = its rows.

    It takes and gives exactly what `nn.Embedding` does. The table may be a layer of the model that computes products elsewhere, as the
    output layer of a language model: one set of connections, two uses.

    Attributes:
        table: `nn.Linear(embedding_dim, num_embeddings, bias=False)`, or the sparse layer in its place.
        padding_idx: this row gets no gradient from here; None: all do.
        scale_grad_by_freq: divide the gradient of a row by how often it was looked up.
    """

    when_asked = whole = True
    table: nn.Module
    dense_class: type[nn.Module] = nn.Embedding

    def __init__(self, table: nn.Module, padding_idx: int | None = None, scale_grad_by_freq: bool = False) -> None:
        super().__init__()
        self.table, self.padding_idx, self.scale_grad_by_freq = table, padding_idx, scale_grad_by_freq

    @classmethod
    def opening(cls, module: nn.Module, table: nn.Module | None = None) -> Self:
        """
        Args:
            table: a layer that has the very weight of `module`, to be looked up in; None makes one.
        """
        return cls(linear(module.weight, None) if table is None else table, **cls._settings_of(module)).train(module.training)  # type: ignore[arg-type]

    def closed(self) -> nn.Module:
        assert isinstance(self.table, nn.Linear)
        dense = self.dense_class(self.num_embeddings, self.embedding_dim, **self._settings_of(self), device="meta")
        dense.weight = self.table.weight
        return dense.train(self.training)

    @classmethod
    def reason_against(cls, module: nn.Module) -> str:
        if module.max_norm is not None:
            return "writes to its weight at every call (make it without max_norm)"
        return "has gradients of torch's sparse layout, which no sparse layer has (make it without sparse=True)" * bool(module.sparse)

    @classmethod
    def _settings_of(cls, module: nn.Module) -> dict[str, Any]:
        return {name: getattr(module, name) for name in SETTINGS}

    @property
    def num_embeddings(self) -> int:
        """Rows of the table."""
        return self.table.out_features  # type: ignore[return-value]

    @property
    def embedding_dim(self) -> int:
        """Columns of the table."""
        return self.table.in_features  # type: ignore[return-value]

    @property
    def weight(self) -> Tensor:
        """That of the table, [num_embeddings, embedding_dim], to be read."""
        return self.table.weight  # type: ignore[return-value]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            self.table.weight = value  # which takes its own, as tying once more does
        else:
            super().__setattr__(name, value)

    def forward(self, input: Tensor) -> Tensor:
        """[...] indices of int64 or int32 -> [..., embedding_dim]

        Raises:
            IndexError: if an index is none of the table.
            TypeError: if the indices are no whole numbers.
        """
        if torch.compiler.is_compiling():
            return outside(self.forward, input)
        rows, places, padding = self._looked_up(input)
        return F.embedding(places, rows, padding, scale_grad_by_freq=self.scale_grad_by_freq)

    def _looked_up(self, input: Tensor) -> tuple[Tensor, Tensor, int | None]:
        """(rows of the table, each once; where in them each index is, shaped as the input; where the padding is)"""
        if input.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"expected indices of int64 or int32, got {input.dtype}")
        if not isinstance(self.table, LinearInterface):
            return self.weight, input, self.padding_idx
        used, places = input.unique(return_inverse=True)
        padding = None if self.padding_idx is None else (used == self.padding_idx).nonzero()
        return self.table.lookup(used), places, None if padding is None or not len(padding) else int(padding)

    def extra_repr(self) -> str:
        given = "".join(f", {name}={getattr(self, name)}" for name in self._settings_of(self) if getattr(self, name) not in (None, False))
        return f"{self.num_embeddings}, {self.embedding_dim}{given}"


class OpenedEmbeddingBag(OpenedEmbedding):
    """`nn.EmbeddingBag` whose table is a layer: the sum, mean or maximum of its rows.

    Attributes:
        mode: "sum", "mean" or "max".
        include_last_offset: whether the last offset is where the last bag ends.
        padding_idx: this row counts for nothing; None: all count.
    """

    dense_class = nn.EmbeddingBag

    def __init__(
        self,
        table: nn.Module,
        padding_idx: int | None = None,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        include_last_offset: bool = False,
    ) -> None:
        super().__init__(table, padding_idx, scale_grad_by_freq)
        self.mode, self.include_last_offset = mode, include_last_offset

    @classmethod
    def _settings_of(cls, module: nn.Module) -> dict[str, Any]:
        return {name: getattr(module, name) for name in (*SETTINGS, "mode", "include_last_offset")}

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """
        Args:
            input: [bags, n] indices, or [n] with `offsets`.
            offsets: [bags], where in the input each bag begins.
            per_sample_weights: shaped as the input, for the mode "sum".

        Returns:
            [bags, embedding_dim]

        Raises:
            IndexError: if an index is none of the table.
            TypeError: if the indices are no whole numbers.
            ValueError: if shapes do not fit, as `nn.EmbeddingBag`.
        """
        if torch.compiler.is_compiling():
            return outside(self.forward, input, offsets, per_sample_weights)
        rows, places, padding = self._looked_up(input)
        offsets = None if offsets is None else offsets.to(places.dtype)
        return F.embedding_bag(
            places,
            rows,
            offsets,
            mode=self.mode,
            scale_grad_by_freq=self.scale_grad_by_freq,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=padding,
        )


def tied_tables(modules: Iterable[nn.Module], excluded: Container[nn.Module] = ()) -> dict[nn.Module, nn.Linear]:
    """{embedding: the linear layer that has the same weight}: those which can be one layer with two uses.

    That is where one plain `nn.Linear` and plain embeddings of torch are all that has the weight, and none of them is `excluded`.
    """
    holders: dict[Tensor, dict[nn.Module, None]] = {}
    for module in modules:
        for parameter in module._parameters.values():
            if parameter is not None:
                holders.setdefault(parameter, {})[module] = None
    tied: dict[nn.Module, nn.Linear] = {}
    for weight, owners in holders.items():
        layers = [one for one in owners if type(one) is nn.Linear and one.weight is weight]
        embeddings = [one for one in owners if type(one) in DENSE and not OpenedEmbedding.reason_against(one)]
        if len(layers) == 1 and embeddings and len(embeddings) + 1 == len(owners) and not any(one in excluded for one in owners):
            tied.update(dict.fromkeys(embeddings, layers[0]))
    return tied


def opened_one(kind: type[Opened], module: nn.Module, tied: Mapping[nn.Module, nn.Linear]) -> Opened:
    """A dense module opened, where it is an embedding of tied weights with the layer that `tied` names as its table."""
    return kind.opening(module, tied[module]) if issubclass(kind, OpenedEmbedding) and module in tied else kind.opening(module)


def by_use(names: Iterable[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    """Modules with all their names, but for those as a table of layers that compute products elsewhere: that is where they belong."""
    names = list(names)
    tables = {f"{name}.table" if name else "table" for name, module in names if isinstance(module, OpenedEmbedding)}
    elsewhere = {module for name, module in names if name not in tables}
    return [(name, module) for name, module in names if name not in tables or module not in elsewhere]


def named_once(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As `model.named_modules()`, the output layer of tied weights in its own place."""
    met = set[nn.Module]()
    for name, module in by_use(model.named_modules(remove_duplicate=False)):
        if module not in met:
            met.add(module)
            yield name, module


DENSE = (nn.Embedding, nn.EmbeddingBag)
