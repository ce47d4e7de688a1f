"""MiniLM-L6, the 10.6 M weights of its encoder's linear layers. Score: that of benchmarks/minilm.py. Fine-tuned on glosses apart from those
that are scored, towards the dense network's own vectors: no label is looked at."""

from __future__ import annotations

import tempfile
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import minilm
from ..minilm import CLASSES, QUERIES, REFERENCES
from .network import Batch, Network, fitted

FIRST = REFERENCES + QUERIES  # of the glosses that are not scored
CALIBRATION, TRAINING, BATCH, RATE = 1024, 25600, 64, 5e-4
TEMPERATURE = 0.05


def network() -> Network:
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = minilm.encoder(folder)

    texts, labels = minilm.glosses(FIRST, FIRST + TRAINING)
    batches = minilm.batches(tokenizer, texts, BATCH)

    @cache
    @torch.no_grad()
    def targets() -> list[Tensor]:
        """The vectors of each batch by the dense network."""
        return [minilm.vectors(model, inputs) for _, inputs in batches]

    def tune(student: nn.Module) -> None:
        found = targets()
        order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(0)).tolist()
        student.train()
        fitted(student, order, len(order), lambda place: _apart(minilm.vectors(student, batches[place][1]), found[place]), RATE)

    chosen, kinds = texts[:CALIBRATION], labels[:CALIBRATION]
    calibration = [(inputs, kinds[places]) for places, inputs in minilm.batches(tokenizer, chosen, BATCH)]
    with torch.no_grad():
        middles = torch.zeros(CLASSES, 384)
        for inputs, kind in calibration:
            middles.index_add_(0, kind, minilm.vectors(model, inputs))

    return Network(
        title="MiniLM-L6",
        measure="15 nearest",
        model=model,
        score=torch.no_grad()(lambda model: 100 * minilm.score(model.eval(), tokenizer)),
        calibration=calibration,
        samples=calibration[::4],
        loss=partial(_kind_lost, F.normalize(middles)),
        tune=tune,
        forward=_vectors,
        exclude=["pooler.*"],
        own_teacher=True,
    )


def _vectors(model: nn.Module, batch: Batch) -> Tensor:
    return minilm.vectors(model, batch[0])


def _apart(found: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared distance of sentence vectors, and that of their cosines to one another, which is what neighbours are found by."""
    return (found - wanted).square().sum(1).mean() + (found @ found.T - wanted @ wanted.T).square().mean()


def _kind_lost(middles: Tensor, vectors: Tensor, kinds: Tensor) -> Tensor:
    """For criteria that want a loss: the vector is to be nearest to the middle of its kind."""
    return F.cross_entropy(vectors @ middles.T / TEMPERATURE, kinds)
