"""Which samples come together, and in which order? The seed and the number of the epoch say so, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

from ..common.devices import CPU
from ..distributed import Processes
from .errors import ConfigError

BYTES_ON_A_DEVICE = 1 << 30  # of a data set that lies on a GPU beside the network: CIFAR-10 has 0.6e9 in float32


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
        augment: of (inputs, generator), the inputs to use instead. It works on the CPU.
        device: on which batches lie. A `TensorDataset` of no more than `BYTES_ON_A_DEVICE` is copied there once, unless there is `augment`.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        seed: int = 0,
        augment: Callable[[Tensor, Generator], Tensor] | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.device = device
        self.samples = len(dataset)  # type: ignore[arg-type]
        self.steps = -(-self.samples // batch_size)

    def shuffled(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, Tensor]]:
        """The batches of `epoch` from step `start` on."""
        order = torch.randperm(self.samples, generator=Generator().manual_seed(derived_seed(self.seed, "order", epoch)), device="cpu")
        if self.augment is None and self._there is not None:
            order = order.to(self.device)  # once an epoch: a step then cuts out its part of it there
        for step in range(start, self.steps):
            indices = order[step * self.batch_size : (step + 1) * self.batch_size]
            if self.augment is None:
                yield self._batch(indices)
                continue
            inputs, targets = self._cut(indices)
            yield self._sent((self.augment(inputs, Generator().manual_seed(derived_seed(self.seed, "augment", epoch, step))), targets))

    def in_order(self) -> Iterator[tuple[Any, Tensor]]:
        """The batches in the order of the data set, not augmented."""
        there = CPU if self._there is None else self.device
        for start in range(0, self.samples, self.batch_size):
            yield self._batch(torch.arange(start, min(start + self.batch_size, self.samples), device=there))

    def only(self, count: int) -> Batches:
        """The batches of the first `count` samples alone."""
        return Batches(Subset(self.dataset, range(min(count, self.samples))), self.batch_size, self.seed, self.augment, self.device)

    def first(self, count: int) -> Any:
        """The inputs of the first `count` samples (fewer if there are fewer)."""
        return self._batch(torch.arange(min(count, self.samples), device="cpu"))[0]

    @property
    def tensors(self) -> tuple[Tensor, Tensor] | None:
        """All inputs and all targets, where the data set has them as tensors."""
        if type(self.dataset) is TensorDataset and len(self.dataset.tensors) == 2:
            return self.dataset.tensors[0], self.dataset.tensors[1]
        return None

    @cached_property
    def _there(self) -> tuple[Tensor, Tensor] | None:
        """All inputs and targets on a device that is not the CPU, where they are few enough."""
        if self.device.type == "cpu" or self.tensors is None or sum(one.nbytes for one in self.tensors) > BYTES_ON_A_DEVICE:
            return None
        inputs, targets = self.tensors
        return inputs.to(self.device), targets.to(self.device)

    def _batch(self, indices: Tensor) -> tuple[Any, Tensor]:
        """On the device."""
        if self._there is None:
            return self._sent(self._cut(indices))
        there = indices.to(self.device)
        return self._there[0].index_select(0, there), self._there[1].index_select(0, there)

    def _sent(self, batch: tuple[Any, Tensor]) -> tuple[Any, Tensor]:
        """To the device, which need not have come to it when this returns: pinned memory can be read meanwhile."""
        return batch if self.device.type == "cpu" else tree_map(self._sent_tensor, batch)

    def _sent_tensor(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        pinned = value.pin_memory() if self.device.type == "cuda" and value.device.type == "cpu" else value
        return pinned.to(self.device, non_blocking=True)

    def _cut(self, indices: Tensor) -> tuple[Any, Tensor]:
        """On the CPU, or wherever the data set is."""
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
