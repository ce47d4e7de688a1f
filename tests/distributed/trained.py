"""One network trained by several processes, and the same by one process that sees all of their samples.

    python tests/distributed/trained.py

prints the table: algorithm x layer x accumulation.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from truesparse import Rewirer, sparsify
from truesparse.algorithms import ALGORITHMS
from truesparse.algorithms.base import AnyAlgorithm
from truesparse.nn import topology_layers
from truesparse.testing import default_pattern

SAMPLES, STEPS, EVERY, UNTIL = 6, 5, 2, 5  # samples are those of a process in a pass
OPTIMIZERS = {
    "momentum": lambda parameters: torch.optim.SGD(parameters, 0.05, momentum=0.9),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, 0.02),
}


@dataclass(frozen=True)
class Case:
    """What is trained.

    Args:
        algorithm: a new one.
        layer: "linear" or "convolution".
        passes: of a step; all but the last under `no_sync`.
        optimizer: a name in `OPTIMIZERS`.
        wrapped: further arguments of DistributedDataParallel.
    """

    algorithm: AnyAlgorithm
    layer: str = "linear"
    passes: int = 1
    optimizer: str = "momentum"
    wrapped: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        settings = "".join(f", {name}={value}" for name, value in self.wrapped)
        return f"{type(self.algorithm).__name__}, {self.layer}, {self.passes}, {self.optimizer}{settings}"


@dataclass
class Trained:
    losses: list[float]
    connections: list[list[list[int]]]  # after each step, of each layer
    values: list[Tensor]


def cases(optimizers: Iterable[str] = OPTIMIZERS) -> list[Case]:
    """Every algorithm of the registry with each layer, with and without accumulation."""
    every = itertools.product(ALGORITHMS.values(), ("linear", "convolution"), (1, 2), optimizers)
    return [Case(made(kind), layer, passes, optimizer) for kind, layer, passes, optimizer in every]


def made(kind: type) -> AnyAlgorithm:
    """An algorithm with settings that let it rewire something in so few steps."""
    return kind(threshold=0.1) if kind.__name__ == "DSR" else kind()


def network(case: Case) -> nn.Module:
    torch.manual_seed(0)
    if case.layer == "linear":
        model = nn.Sequential(nn.Flatten(), nn.Linear(32, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 4))
    else:
        model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Conv2d(6, 8, 2, groups=2), nn.Flatten(), nn.Linear(8, 4))
    sparsity = getattr(case.algorithm, "start_sparsity", 0.6)
    return sparsify(model.double(), sparsity, pattern=default_pattern(case.algorithm), generator=torch.Generator().manual_seed(1))


def batch(step: int, number: int, rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + 10 * number + rank)
    x = torch.randn(SAMPLES, 2, 4, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(4, (SAMPLES,), generator=generator)


def trained(case: Case, ranks: list[int], wrap: bool) -> Trained:
    """What this process has trained with the samples of `ranks`, in a DistributedDataParallel or alone."""
    warnings.simplefilter("ignore")
    model = network(case)
    net = DistributedDataParallel(model, **dict(case.wrapped)) if wrap else model
    optimizer = OPTIMIZERS[case.optimizer](net.parameters())
    generator = torch.Generator().manual_seed(2)
    rewirer = Rewirer(net, optimizer, case.algorithm, EVERY, UNTIL, generator)
    done = Trained([], [], [])
    for step in range(STEPS):
        total = 0.0
        for number in range(case.passes):
            x, y = (torch.cat(parts) for parts in zip(*(batch(step, number, rank) for rank in ranks), strict=True))
            with net.no_sync() if wrap and number < case.passes - 1 else nullcontext():
                loss = F.cross_entropy(net(x), y) / case.passes
                loss.backward()
            total += loss.item()
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
        done.losses.append(total)
        done.connections.append([layer.topology.keys.tolist() for layer in topology_layers(model).values()])
    done.values = [parameter.detach().clone() for parameter in model.parameters()]
    return done


def compared(alone: Trained, processes: list[Trained]) -> dict[str, float]:
    """How far several processes are from one: steps after which a topology differs, and the largest differences of losses and values."""
    losses = torch.tensor([one.losses for one in processes], dtype=torch.float64).mean(0)
    first = processes[0]
    alike = all(one.connections == first.connections and all(map(torch.equal, one.values, first.values)) for one in processes)
    topologies = sum(here != there for here, there in zip(alone.connections, first.connections, strict=True))
    return {
        "processes differ": float(not alike),
        "topologies": float(topologies),
        "losses": float((losses - torch.tensor(alone.losses, dtype=torch.float64)).abs().max()),
        "values": max((float((a - b).abs().max()) for a, b in zip(alone.values, first.values, strict=True)), default=0.0)
        if not topologies
        else torch.inf,
        "rewired": float(sum(here != there for here, there in itertools.pairwise(alone.connections))),
    }


def main() -> None:
    from pairs import answers

    chosen = cases()
    one, other = answers(lambda rank: [trained(case, [rank], True) for case in chosen])
    print("algorithm, layer, passes, optimizer: rewirings that changed something; topologies that differ; losses, values up to")
    for case, *processes in zip(chosen, one, other, strict=True):
        found = compared(trained(case, [0, 1], False), processes)
        print(f"{case}: {found['rewired']:.0f}; {found['topologies']:.0f}; {found['losses']:.1e}, {found['values']:.1e}")
        assert not found["processes differ"]


if __name__ == "__main__":
    main()
