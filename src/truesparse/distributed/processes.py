"""What is the mean, the largest, or the same in all processes that train a model together? Of one process alone: what it has."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from ..common.devices import module_of


@dataclass(frozen=True)
class Processes:
    """The processes that train one model together. All of them call the same methods in the same order.

    Args:
        group: of torch.distributed; None is its default one.
        size: how many they are.
        rank: which of them this is.
    """

    group: Any = None
    size: int = 1
    rank: int = 0

    @classmethod
    def of(cls, group: Any = None) -> Processes:
        """Those of a process group; None is all there are: one, unless `init_process_group` was called."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return ALONE
        return cls(group, distributed.get_world_size(group), distributed.get_rank(group))

    def total(self, array: Tensor) -> Tensor:
        """The sum over all of them. `array` may be written to."""
        return self._reduced(array, "SUM")

    def mean(self, array: Tensor) -> Tensor:
        """The mean over all of them. `array` may be written to."""
        return array if self.size == 1 else self.total(array).div_(self.size)

    def most(self, array: Tensor) -> Tensor:
        """The largest of each entry. `array` may be written to."""
        return self._reduced(array, "MAX")

    def means(self, arrays: Sequence[Tensor]) -> list[Tensor]:
        """The mean of each of several arrays of one dimension, in one exchange for each dtype."""
        means: list[Tensor] = list(arrays)
        for dtype in dict.fromkeys(array.dtype for array in arrays):
            chosen = [number for number, array in enumerate(arrays) if array.dtype == dtype]
            together = self.mean(torch.cat([arrays[number] for number in chosen]))
            for number, mean in zip(chosen, together.split([arrays[number].numel() for number in chosen]), strict=True):
                means[number] = mean
        return means

    def all(self, holds: bool, device: torch.device) -> bool:
        """Whether it holds in all of them."""
        return holds if self.size == 1 else not bool(self.most(torch.tensor([not holds], dtype=torch.int64, device=device)))

    def of_first(self, number: int, device: torch.device) -> int:
        """What the first of them has."""
        return number if self.size == 1 else int(self.total(torch.tensor([number if self.rank == 0 else 0], device=device)))

    def difference(self, codes: Sequence[int], device: torch.device) -> tuple[int, int] | None:
        """(which of the `codes`, in which process) is the first that differs from the first process's; None if all are alike.

        Args:
            codes: as many in all processes, each in [0, 2^62).
            device: that the processes exchange from.
        """
        if self.size == 1 or not codes:
            return None
        own = torch.tensor(codes, dtype=torch.int64, device=device)
        most, least = self.most(torch.cat([own, -own])).chunk(2)
        if torch.equal(most, -least):
            return None
        each = [torch.empty_like(own) for _ in range(self.size)]
        distributed.all_gather(each, own, group=self.group)
        differs = torch.stack(each, 1) != each[0][:, None]
        which = int(differs.any(1).nonzero()[0])
        return which, int(differs[which].nonzero()[0])

    def _reduced(self, array: Tensor, how: str) -> Tensor:
        if self.size == 1:
            return array
        array = array.contiguous()
        distributed.all_reduce(array, getattr(distributed.ReduceOp, how), group=self.group)
        return array


ALONE = Processes()
BACKENDS = {"cuda": "nccl"}  # of torch.distributed, which exchange tensors of that type of device and no others; gloo those of the CPU


def join(device: torch.device) -> None:
    """This process, one of those that torchrun or `truesparse train --nproc` has begun, joins the others, to exchange from `device`."""
    if device.type == "cpu":
        distributed.init_process_group("gloo")
        return
    module_of(device).set_device(device)  # what a barrier exchanges lies on the current one
    distributed.init_process_group(BACKENDS[device.type], device_id=device)


def code_of(*parts: Tensor | str) -> int:
    """A number in [0, 2^62) that differs where the parts do, but for one case in 2^62."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part.cpu().contiguous().numpy())  # type: ignore[arg-type]
        digest.update(b"/")
    return int.from_bytes(digest.digest(), "big") >> 2


def shared_generator(processes: Processes, device: torch.device) -> torch.Generator:
    """A CPU generator that begins alike in all processes, with the seed of the first (`torch.initial_seed()`).

    Args:
        processes: that train together.
        device: to exchange from.
    """
    return torch.Generator().manual_seed(processes.of_first(torch.initial_seed() % 2**62, device))
