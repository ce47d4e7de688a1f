"""Which samples come together, and in which order? The seed and the number of the epoch say so, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

from ..distributed import Processes
from .errors import ConfigError


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A seed for one purpose, unrelated to the seeds of others."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class Batches:
    """The batches of a data set, by the number of epoch and step: any of them can be had without those before it.

    Args:
        dataset: a `TensorDataset` of inputs and targets (batches are then cut out whole), or any data set with a length and
            items (input, target).
        batch_size: samples in a batch; the last one of an epoch may be smaller.
        seed: of the order.
        augment: of (inputs, generator), the inputs to use instead.
    """

    def __init__(
        self, dataset: Dataset[Any], batch_size: int, seed: int = 0, augment: Callable[[Tensor, Generator], Tensor] | None = None
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.samples = len(dataset)  # type: ignore[arg-type]
        self.steps = -(-self.samples // batch_size)

    def shuffled(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, Tensor]]:
        """The batches of `epoch` from step `start` on."""
        order = torch.randperm(self.samples, generator=Generator().manual_seed(derived_seed(self.seed, "order", epoch)))
        for step in range(start, self.steps):
            inputs, targets = self._batch(order[step * self.batch_size : (step + 1) * self.batch_size])
            if self.augment is not None:
                inputs = self.augment(inputs, Generator().manual_seed(derived_seed(self.seed, "augment", epoch, step)))
            yield inputs, targets

    def in_order(self) -> Iterator[tuple[Any, Tensor]]:
        """The batches in the order of the data set, not augmented."""
        for start in range(0, self.samples, self.batch_size):
            yield self._batch(torch.arange(start, min(start + self.batch_size, self.samples)))

    def only(self, count: int) -> Batches:
        """The batches of the first `count` samples alone."""
        return Batches(Subset(self.dataset, range(min(count, self.samples))), self.batch_size, self.seed, self.augment)

    def first(self, count: int) -> Any:
        """The inputs of the first `count` samples (fewer if there are fewer)."""
        return self._batch(torch.arange(min(count, self.samples)))[0]

    @property
    def tensors(self) -> tuple[Tensor, Tensor] | None:
        """All inputs and all targets, where the data set has them as tensors."""
        if type(self.dataset) is TensorDataset and len(self.dataset.tensors) == 2:
            return self.dataset.tensors[0], self.dataset.tensors[1]
        return None

    def _batch(self, indices: Tensor) -> tuple[Any, Tensor]:
        if self.tensors is not None:
            inputs, targets = self.tensors
            return inputs.index_select(0, indices), targets.index_select(0, indices)  # half the time of inputs[indices]
        # In this process and through no DataLoader, which would draw from torch's generator each time it starts.
        batch = default_collate([self.dataset[index] for index in indices.tolist()])
        if not isinstance(batch, (list, tuple)) or len(batch) != 2 or not isinstance(batch[1], Tensor):
            raise ConfigError("the items of the recipe's data must be (input, target)")
        return batch[0], batch[1]


def part_of(batch: tuple[Any, Tensor], processes: Processes) -> tuple[Any, Tensor, float]:
    """(inputs, targets, weight): what one of several processes takes of a batch, and what its mean loss counts in the mean over them.

    With these weights the mean is that of the whole batch, also where it does not divide. A process for which there is no sample takes
    the first one, which counts nothing.
    """
    inputs, targets = batch
    if processes.size == 1:
        return inputs, targets, 1.0
    count = len(targets)
    bounds = [count * rank // processes.size for rank in (processes.rank, processes.rank + 1)]
    mine = slice(*bounds) if bounds[0] < bounds[1] else slice(0, 1)
    weight = (bounds[1] - bounds[0]) * processes.size / count
    taken = tree_map(lambda one: one[mine] if isinstance(one, Tensor) and one.ndim and len(one) == count else one, inputs)
    return taken, targets[mine], weight
