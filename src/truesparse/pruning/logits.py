"""What did the teacher answer? Its logits in a file, by the number of the sample, so that it runs once and not in every epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..common.files import write_atomically
from .probe import Batch, Forward, called, evaluating

ENTRY = "logits"


class Logits:
    """The logits of a teacher, [samples, ..., classes]; `logits[index]` are those of some samples."""

    def __init__(self, logits: Tensor, said: str = "these logits") -> None:
        self.logits, self._said = logits, said

    def __len__(self) -> int:
        return self.logits.shape[0]

    def __getitem__(self, index: Tensor) -> Tensor:
        """
        Args:
            index: [samples] int, from 0.

        Raises:
            ValueError: if there is no such sample.
        """
        here = index.to(self.logits.device)
        if here.numel() and (int(here.min()) < 0 or int(here.max()) >= len(self)):
            raise ValueError(f"{self._said} are of samples 0 to {len(self) - 1}, asked for {int(here.min())} to {int(here.max())}")
        return self.logits[here]


@torch.no_grad()
def teacher_logits(teacher: nn.Module, data: Iterable[Batch], path: str | Path, *, forward: Forward = called) -> Logits:
    """What a teacher answers to `data`: read from the file at `path`, or computed and kept there if there is none.

        known = ts.pruning.teacher_logits(dense, in_order, "teacher.safetensors")
        distillation = ts.distill(model, known)
        for x, y, index in shuffled:
            distillation(model(x), x, y, index=index).backward()

    The file appears whole or not at all. Of one that is there the first batch is computed and compared.

    Args:
        teacher: run in eval mode.
        data: batches in the order of the samples' numbers, all inputs of one shape, not augmented: the first sample is number 0.
        path: of the file, whose folder must exist.
        forward: calls the teacher on a batch, see `prune`.

    Raises:
        ValueError: if there is no data, a file is truncated or no file of logits, or holds those of another teacher or other data.
        OSError: if the file cannot be read or written.
    """
    path = Path(path)
    with evaluating(teacher):
        if path.exists():
            known = _read(path)
            _check_first(known, next((logits_of(forward(teacher, batch)).cpu() for batch in data), None), path)
            return Logits(known, f"the logits in {path}")
        parts = [logits_of(forward(teacher, batch)).cpu() for batch in data]
    if not parts:
        raise ValueError("there is no data to ask the teacher about")
    found = torch.cat(parts)
    write_atomically(path, safetensors.torch.save({ENTRY: found}))
    return Logits(found, f"the logits in {path}")


def logits_of(output: Any) -> Tensor:
    """Of what a model returned: itself, or its `logits`.

    Raises:
        ValueError: if it is neither.
    """
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(found, Tensor):
        raise ValueError(f"expected logits, or an output that has logits, got {type(output).__name__}")
    return found


def _read(path: Path) -> Tensor:
    try:
        return safetensors.torch.load_file(path)[ENTRY]
    except (safetensors.SafetensorError, KeyError) as error:
        raise ValueError(
            f"{path} is truncated, or no file of logits ({' '.join(str(error).split())}): remove it to have them computed anew"
        ) from error


def _check_first(known: Tensor, first: Tensor | None, path: Path) -> None:
    same = first is not None and first.shape == known[: len(first)].shape
    if not same or not torch.allclose(first, known[: len(first)], rtol=1e-3, atol=1e-3 * float(first.abs().max())):  # type: ignore[union-attr, arg-type]
        raise ValueError(f"{path} holds the logits of another teacher or of other data: remove it to have them computed anew")
