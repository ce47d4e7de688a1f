"""What is a trained network still worth once it is sparse? Networks pruned by several criteria, at once and with fine-tuning.

    pip install 'truesparse[onnx,pretrained]'
    python -m benchmarks.dense_to_sparse --network mnist --criterion magnitude lamp --sparsity 0.8 0.98 --tune
    python -m benchmarks.dense_to_sparse --network mnist --criterion magnitude:network --sparsity 0.8 0.9 0.95 0.98 --rounds
    python -m benchmarks.dense_to_sparse --page docs/guide/from-dense.md

A criterion may be followed by who competes (magnitude:network) or by a budget (magnitude:erk). Each row is written to its network's file in
the folder of results as soon as it is there, and rows that are there are not done again. `--rounds` goes from one sparsity to the next on
one network, fine-tuning after each. The dense network is scored too, and with --tune or --rounds fine-tuned in the same way.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import get_args

import torch
from torch import nn

import truesparse as ts
from truesparse.common.markdown import write_between_markers
from truesparse.data import DataError
from truesparse.pruning import CRITERIA
from truesparse.pruning.compete import Across

from .network import Network
from .table import DENSE, Results, Row, markdown

NETWORKS = ("mnist", "minilm", "efficientnet", "g2p", "magika")
MARKER = "dense-to-sparse"


def pruned(model: nn.Module, network: Network, criterion: str, sparsity: float) -> float:
    """Prunes the model in place; the seconds of a core that took."""
    name, _, how = criterion.partition(":")
    chosen = CRITERIA[name]()
    of_samples = any(need.startswith(("gradient", "hessian")) for need in getattr(chosen, "needs", ()))
    competition = {"across": how} if how in get_args(Across) else {"budget": how} if how else {}
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        ts.prune(
            model,
            sparsity,
            chosen,
            network.samples if of_samples else network.calibration,
            loss=network.loss,
            forward=network.forward,
            exclude=network.exclude,
            generator=torch.Generator().manual_seed(0),
            **competition,
        )
    return time.process_time() - began


def megabytes(model: nn.Module) -> float:
    """Of the file that holds the model."""
    with tempfile.TemporaryDirectory() as folder:
        ts.save(model, Path(folder, "model"))
        return Path(folder, "model").stat().st_size / 1e6


def tuned(model: nn.Module, network: Network) -> float:
    began = time.process_time()
    torch.manual_seed(0)
    network.tune(model)
    return time.process_time() - began


def at_once(name: str, network: Network, criterion: str, sparsity: float, tune: bool, results: Results) -> None:
    """Adds what is wanted and not there: the row of a network that is pruned in one go, and the one after fine-tuning."""
    keys = [(name, criterion, sparsity, way) for way in ("one-shot", "fine-tuned")[: 1 + tune]]
    if all(key in results for key in keys):
        return
    model = deepcopy(network.model)
    seconds = pruned(model, network, criterion, sparsity) if criterion != DENSE else 0.0
    if keys[0] not in results:
        results.add(Row(*keys[0], network.score(model), seconds, megabytes(model), network.title, network.measure))
    if tune and keys[1] not in results:
        seconds = tuned(model, network)
        results.add(Row(*keys[1], network.score(model), seconds, megabytes(model), network.title, network.measure))


def in_rounds(name: str, network: Network, criterion: str, sparsities: list[float], results: Results) -> None:
    """Adds the rows of one network that loses more and more, with fine-tuning after each round."""
    if all((name, criterion, sparsity, "rounds") in results for sparsity in sparsities):
        return
    model, seconds = deepcopy(network.model), 0.0
    for sparsity in sparsities:
        seconds += pruned(model.eval(), network, criterion, sparsity) + tuned(model, network)
        results.add(
            Row(name, criterion, sparsity, "rounds", network.score(model), seconds, megabytes(model), network.title, network.measure)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=[])
    parser.add_argument("--criterion", nargs="+", default=[], metavar="NAME[:COMPETITION]")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.8])
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--tune", action="store_true", help="fine-tune what was pruned, too")
    way.add_argument("--rounds", action="store_true", help="prune and fine-tune from one sparsity to the next")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder")
    parser.add_argument("--page", type=Path, help="write the table of all results into this page")
    settings = parser.parse_args()
    unknown = [name for name in settings.criterion if name.partition(":")[0] not in CRITERIA]
    if unknown:
        parser.error(f"unknown criteria {', '.join(unknown)}; known: {', '.join(CRITERIA)}")
    results = Results(settings.results)
    for name in settings.network:
        network = import_module(f"{__package__}.{name}").network()
        at_once(name, network, DENSE, 0.0, (settings.tune or settings.rounds) and not network.own_teacher, results)
        for criterion in settings.criterion:
            if settings.rounds:
                in_rounds(name, network, criterion, settings.sparsity, results)
                continue
            for sparsity in settings.sparsity:
                at_once(name, network, criterion, sparsity, settings.tune, results)
    if settings.page:
        write_between_markers(settings.page, MARKER, markdown(results.rows))


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        sys.exit(str(error))
