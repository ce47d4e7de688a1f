"""Which connections exist? A `Topology` says so, and a `Move` says how arrays follow from one to the next.

Connections are kept in one order everywhere: row by row, columns ascending. Values, gradients and
optimizer state are arrays in that order, so position `i` of any of them belongs to the same connection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, TypeVarTuple

import torch
from torch import Tensor

from ..common import shown
from . import merge, picture

T = TypeVar("T")
Settings = TypeVarTuple("Settings")

OCCUPIED = "a connection can grow only where there is none; some of the given positions are connected already"
LARGEST_COUNT = 2**31 - 1  # indptr and indices are int32; linear positions are int64 and may be larger


@dataclass(frozen=True, eq=False)
class Topology:
    """The connections of one layer, as an immutable value. Changing one means making another.

    A convolution is the matrix [out_channels, in_channels / groups * kernel height * kernel width].

    Args:
        shape: (rows, columns) of the matrix; rows are outputs, columns are inputs.
        indptr: [rows + 1] int32; the connections of row `r` are `indptr[r]` to `indptr[r + 1]`.
        indices: [nnz] int32; the column of each connection, ascending within a row.

    Raises:
        ValueError: if the arrays do not describe a legal topology of this shape.
        TypeError: if they are not int32.
    """

    shape: tuple[int, int]
    indptr: Tensor
    indices: Tensor
    _derived: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _checked_shape(self.shape))
        _check(self.shape, self.indptr, self.indices)

    @classmethod
    def _trusted(cls, shape: tuple[int, int], indptr: Tensor, indices: Tensor) -> Topology:
        """A topology from arrays known to be legal, without reading them."""
        topology = object.__new__(cls)
        for name, value in (("shape", shape), ("indptr", indptr), ("indices", indices), ("_derived", {})):
            object.__setattr__(topology, name, value)
        return topology

    @classmethod
    def from_keys(cls, shape: tuple[int, int], keys: Tensor) -> Topology:
        """The topology whose connections stand at the linear positions `row * columns + column`.

        Args:
            shape: (rows, columns).
            keys: [nnz] integers in any order, without repeats.

        Raises:
            ValueError: if a position lies outside the matrix or is given twice.
            TypeError: if the positions are not integers.
        """
        shape = _checked_shape(shape)
        return cls._from_sorted_keys(shape, _ascending(shape, keys))

    @classmethod
    def _from_sorted_keys(cls, shape: tuple[int, int], keys: Tensor) -> Topology:
        check_count(keys.numel())
        return cls._trusted(shape, *merge.compressed(shape, keys))

    @classmethod
    def _collected(cls, shape: tuple[int, int], rows: Tensor, columns: Tensor) -> Topology:
        """The topology of the pairs (rows[i], columns[i]), [n] integers each, legal and in any order; repeats count once."""
        check_count(rows.numel())
        return cls._trusted(shape, *merge.collected(shape, rows, columns))

    @classmethod
    def from_mask(cls, mask: Tensor) -> Topology:
        """The topology of the true entries of `mask`, [rows, ...]; trailing dimensions are flattened to columns."""
        if mask.ndim < 2:
            raise ValueError(f"expected a mask of two or more dimensions, got shape {tuple(mask.shape)}")
        flat = mask.flatten(1).bool()
        return cls._from_sorted_keys((flat.shape[0], flat.shape[1]), flat.flatten().nonzero().squeeze(1))

    @property
    def nnz(self) -> int:
        """Number of connections."""
        return self.indices.numel()

    @property
    def size(self) -> int:
        """Number of positions, rows x columns."""
        return self.shape[0] * self.shape[1]

    @property
    def sparsity(self) -> float:
        """Share of positions without a connection, 0 to 1."""
        return 1.0 - self.nnz / self.size if self.size else 0.0

    @property
    def _connections(self) -> merge.Connections:
        return self.indptr, self.indices

    @property
    def device(self) -> torch.device:
        return self.indices.device

    @property
    def fan_in(self) -> Tensor:
        """Connections of each row, [rows] int32."""
        return self.indptr.diff()

    @property
    def fan_out(self) -> Tensor:
        """Connections of each column, [columns] int64."""
        return merge.counted(self.indices, self.shape[1])

    @property
    def empty_rows(self) -> int:
        """Rows without a connection: neurons that were ablated, or never had one."""
        return int((self.fan_in == 0).sum())

    # Rows and keys are computed when asked for: kept, they would cost more than the topology itself.
    @property
    def rows(self) -> Tensor:
        """Row of each connection, [nnz] int32."""
        return merge.row_of_each(self._connections)

    @property
    def keys(self) -> Tensor:
        """Linear position `row * columns + column` of each connection, [nnz] int64, ascending."""
        return merge.key_of_each(self.shape[1], self._connections)

    def mask(self) -> Tensor:
        """The dense [rows, columns] bool mask. Costs rows x columns: for tests, masked twins and pictures."""
        mask = torch.zeros(self.size, dtype=torch.bool, device=self.device)
        mask[self.keys] = True
        return mask.view(self.shape)

    def scatter(self, values: Tensor) -> Tensor:
        """`values` [nnz] as a dense [rows, columns] matrix, zero elsewhere. Differentiable."""
        return values.new_zeros(self.size).index_put((self.keys,), values).view(self.shape)

    def equal(self, other: Topology) -> bool:
        """Whether both have the same shape and the same connections."""
        return self is other or (
            self.shape == other.shape and torch.equal(self.indptr, other.indptr) and torch.equal(self.indices, other.indices)
        )

    def contains(self, keys: Tensor) -> Tensor:
        """Which of the linear positions `keys` hold a connection, bool of the same shape."""
        return merge.position_in(self.keys, keys) >= 0

    def keep(self, kept: Tensor, count: int | None = None) -> Topology:
        """The connections where `kept` [nnz] bool is true; `count` is how many, which a GPU need not be asked where it is known."""
        if kept.shape != self.indices.shape or kept.dtype != torch.bool:
            raise ValueError(f"expected a bool of shape ({self.nnz},), one per connection, got {kept.dtype} {tuple(kept.shape)}")
        return Topology._trusted(self.shape, *merge.kept(self.shape[1], self._connections, kept, count))

    def drop(self, dropped: Tensor, distinct: bool = False) -> Topology:
        """Without the connections at the indices `dropped` (integers in [0, nnz)); `distinct` says that each is there once."""
        kept = torch.ones(self.nnz, dtype=torch.bool, device=self.device)
        kept[dropped] = False
        return self.keep(kept, self.nnz - dropped.numel() if distinct else None)

    def grow(self, keys: Tensor) -> Topology:
        """With new connections at the linear positions `keys`.

        Raises:
            ValueError: if a position is outside the matrix, repeated, or already connected.
        """
        keys = _ascending(self.shape, keys)
        if not merge.here(keys) and bool(self.contains(keys).any()):
            raise ValueError(OCCUPIED)
        return self._grow(keys)

    def _grow(self, keys: Tensor) -> Topology:
        """The same with ascending positions, of which a GPU is not asked whether they are free: they were found to be."""
        check_count(self.nnz + keys.numel())
        grown = merge.grown(self.shape[1], self._connections, keys)
        if grown is None:
            raise ValueError(OCCUPIED)
        return Topology._trusted(self.shape, *grown)

    def derived(self, build: Callable[[Topology, *Settings], T], *settings: *Settings) -> T:
        """`build(self, *settings)`, computed once. Never stale, because a topology cannot change."""
        key = (build, settings)
        try:
            return self._derived[key]
        except KeyError:
            # What is built may hold the topology it is given. Were that this very object, the two would hold each other, and after
            # each rewiring the old plans would stay in memory until Python looks for such circles.
            built = self._derived[key] = build(Topology._trusted(self.shape, self.indptr, self.indices), *settings)
            return built

    def derives(self, value: T, build: Callable[[Topology, *Settings], T], *settings: *Settings) -> None:
        """`value` is what `build(self, *settings)` would give: who made this topology of it knows."""
        self._derived[build, settings] = value

    def forget(self) -> None:
        """Let go of what was derived; it is made anew when asked for."""
        self._derived.clear()

    def to(self, device: torch.device | str) -> Topology:
        """The same topology on another device."""
        device = torch.device(device)
        return self if device == self.device else Topology._trusted(self.shape, self.indptr.to(device), self.indices.to(device))

    def __deepcopy__(self, memo: dict[int, Any]) -> Topology:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Topology, (self.shape, self.indptr, self.indices)

    def __repr__(self) -> str:
        return f"Topology({self.shape[0]} x {self.shape[1]}, {self.nnz} connections, sparsity {self.sparsity:.4f})"

    def _repr_html_(self) -> str:
        """For a notebook: counts and a small picture."""
        pairs = [("connections", f"{self.nnz:,} of {self.size:,}"), ("sparsity", f"{self.sparsity:.2%}")]
        keys = self.indices if self.indices.is_meta else self.keys
        return shown.facts(f"Topology {self.shape[0]:,} x {self.shape[1]:,}", pairs, picture.html(self.shape, keys))


@dataclass(frozen=True, eq=False)
class Move:
    """How arrays in the order of one topology become arrays in the order of the next.

    Args:
        old: the topology the arrays are in now.
        new: the topology they go to.
        source: [new.nnz] int32 or int64; index in the old order, or -1 for a grown connection.
        grown_values: [number of -1 in source] initial values of grown connections; None means 0.
        acting: [new.nnz] bool, which connections act. The others exist and are trained, by the gradient they would have if they
            acted, but the layer computes without them. None means all act.
    """

    old: Topology
    new: Topology
    source: Tensor
    grown_values: Tensor | None = None
    acting: Tensor | None = None

    @classmethod
    def between(cls, old: Topology, new: Topology) -> Move:
        """Every connection found in both topologies keeps what it has."""
        return cls.through(old, old, new)

    @classmethod
    def through(
        cls, old: Topology, survivors: Topology, new: Topology, grown_values: Tensor | None = None, acting: Tensor | None = None
    ) -> Move:
        """Only `survivors` (a part of `old`) keep what they have: a connection dropped and grown again starts anew.

        Raises:
            ValueError: if the shapes differ.
        """
        if not old.shape == survivors.shape == new.shape:
            raise ValueError(f"a move stays within one shape, got {old.shape}, {survivors.shape} and {new.shape}")
        columns = old.shape[1]
        source = merge.followed(columns, survivors._connections, new._connections)
        if survivors is not old:
            source = merge.moved(merge.followed(columns, old._connections, survivors._connections), source, -1)
        return cls(old, new, source, grown_values, acting)

    @property
    def grown(self) -> Tensor:
        """Which connections of the new topology start anew, [new.nnz] bool."""
        return self.source < 0

    def __call__(self, array: Tensor, fill: float = 0.0) -> Tensor:
        """`array` [old.nnz] in the order of the new topology, [new.nnz], grown connections set to `fill`."""
        if array.shape != (self.old.nnz,):
            raise ValueError(f"expected an array of shape ({self.old.nnz},), one entry per connection, got {tuple(array.shape)}")
        return merge.moved(array, self.source, fill)

    def values(self, array: Tensor) -> Tensor:
        """Like calling the move, with grown connections set to their initial values."""
        moved = self(array)
        if self.grown_values is not None:
            moved[merge.places(self.grown, self.grown_values.numel())] = merge.sent(self.grown_values.to(moved.dtype), moved.device)
        return moved


def _ascending(shape: tuple[int, int], keys: Tensor) -> Tensor:
    """`keys` as ascending int64, checked."""
    rows, columns = shape
    if keys.numel() and (keys.is_floating_point() or keys.dtype == torch.bool):
        raise TypeError(f"positions are whole numbers, got {keys.dtype}; a mask goes to Topology.from_mask")
    keys = keys.to(torch.int64).flatten()
    if keys.numel() > 1 and not bool((keys[1:] > keys[:-1]).all()):
        keys = merge.sort_(keys.clone())
        if bool((keys[1:] == keys[:-1]).any()):
            twice = int(keys[1:][keys[1:] == keys[:-1]][0])
            raise ValueError(f"each connection may be given once, got position {twice} twice; pass unique positions")
    if keys.numel() and (int(keys[0]) < 0 or int(keys[-1]) >= rows * columns):
        raise ValueError(f"positions in shape {(rows, columns)} lie in [0, {rows * columns}), got {int(keys[0])} to {int(keys[-1])}")
    return keys


def check_count(nnz: int) -> None:
    if nnz > LARGEST_COUNT:
        raise ValueError(f"a topology holds at most {LARGEST_COUNT} connections, got {nnz}; split the layer")


def _checked_shape(shape: tuple[int, int]) -> tuple[int, int]:
    rows, columns = (int(extent) for extent in shape)
    if not (0 <= rows <= LARGEST_COUNT and 0 <= columns <= LARGEST_COUNT):
        raise ValueError(f"rows and columns lie in [0, {LARGEST_COUNT}], got {(rows, columns)}")
    return rows, columns


def _check(shape: tuple[int, int], indptr: Tensor, indices: Tensor) -> None:
    rows, columns = shape
    for name, array in (("indptr", indptr), ("indices", indices)):
        if array.dtype != torch.int32:
            raise TypeError(f"{name} must be int32, got {array.dtype}; convert with .to(torch.int32)")
        if array.ndim != 1 or not array.is_contiguous():
            raise ValueError(f"{name} must be one contiguous dimension, got shape {tuple(array.shape)}")
    if indptr.device != indices.device:
        raise ValueError(f"indptr and indices must be on one device, got {indptr.device} and {indices.device}")
    if indptr.numel() != rows + 1:
        raise ValueError(f"indptr must have rows + 1 = {rows + 1} entries, got {indptr.numel()}")
    nnz = indices.numel()
    if int(indptr[0]) != 0 or int(indptr[-1]) != nnz or bool((indptr.diff() < 0).any()):
        raise ValueError(f"indptr must rise from 0 to the number of connections, {nnz}; got {int(indptr[0])} to {int(indptr[-1])}")
    if not nnz:
        return
    if int(indices.min()) < 0 or int(indices.max()) >= columns:
        raise ValueError(f"columns lie in [0, {columns}), got {int(indices.min())} to {int(indices.max())}")
    starts = torch.zeros(nnz + 1, dtype=torch.bool, device=indices.device)
    starts[indptr.long()] = True  # position nnz collects the empty rows at the end
    if not bool(((indices[1:] > indices[:-1]) | starts[1:-1]).all()):
        raise ValueError("columns must ascend within each row, without repeats; build with Topology.from_keys to have them sorted")
