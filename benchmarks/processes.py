"""How many bytes do two processes exchange in a step, dense and sparse?

    python benchmarks/processes.py [--sparsity 0.95]

A perceptron 784-1024-1024-10 in DistributedDataParallel on gloo. Counted are the numbers that each process hands to torch.distributed:
in buckets of gradients, by a communication hook; all else, by a dispatch mode.
"""

import argparse
import os
import tempfile
from typing import Any

import torch
import torch.nn.functional as F
from torch import distributed, multiprocessing, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import truesparse as ts
from truesparse.algorithms import ALGORITHMS

EVERY = 100


class Counted(TorchDispatchMode):
    """Bytes of all tensors that are handed to torch.distributed inside, but for gradients in buckets."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.nbytes += sum(one.nbytes for one in tree_leaves(args[0]) if isinstance(one, torch.Tensor))
        return func(*args, **(kwargs or {}))


def made(kind: Any, sparsity: float) -> Any:
    """An algorithm that ends at the sparsity; those that prune are measured there, with nothing left to prune."""
    return kind(sparsity=sparsity, start_sparsity=0.0) if hasattr(kind, "start_sparsity") else kind()


def measured(sparsity: float, algorithm: str | None) -> tuple[int, int]:
    """(bytes of a step, bytes of a rewiring beside that) of this process."""
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))
    if algorithm is not None:
        kind = ALGORITHMS[algorithm]
        ts.sparsify(model, sparsity, pattern=getattr(kind, "default_pattern", None))
    net, buckets = DistributedDataParallel(model), []

    def hook(_: object, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        buckets.append(bucket.buffer().nbytes)
        return allreduce_hook(None, bucket)  # type: ignore[arg-type]

    net.register_comm_hook(None, hook)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    rewirer = None if algorithm is None else ts.Rewirer(net, optimizer, made(kind, sparsity), every=2, until=20)
    found: list[int] = []
    for _ in range(4):
        buckets.clear()
        with Counted() as others:
            loss = F.cross_entropy(net(torch.randn(32, 784)), torch.randint(10, (32,)))
        loss.backward()
        with others:
            if rewirer is None or rewirer.step():
                optimizer.step()
        optimizer.zero_grad()
        found.append(sum(buckets) + others.nbytes)
    return found[2], found[3] - found[2]  # by now the buckets are in the order of the backward pass


def work(rank: int, folder: str, sparsity: float) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    dense, _ = measured(sparsity, None)
    if rank == 0:
        print(
            f"{'':10}{'step':>12}{'rewiring':>12}{f'a step, every={EVERY}':>20}{'of dense':>10}\n{'dense':10}{dense:12,}{0:12}{dense:20,}"
        )
    for name in ALGORITHMS:
        step, rewiring = measured(sparsity, name)
        mean = step + rewiring // EVERY
        if rank == 0:
            print(f"{name:10}{step:12,}{rewiring:12,}{mean:20,}{mean / dense:10.1%}", flush=True)
    os._exit(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=float, default=0.95)
    with tempfile.TemporaryDirectory() as meeting:
        multiprocessing.spawn(work, (meeting, parser.parse_args().sparsity), 2)
