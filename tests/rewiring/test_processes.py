"""Two real processes train one model: what is refused, and that what is not stays the same in both."""

import multiprocessing
import os

import pytest
import torch
from torch import distributed, nn
from training import backward, two_layers

from truesparse import DSR, SET, Rewirer, RigL
from truesparse.nn import topology_layers

pytestmark = [
    pytest.mark.skipif(not distributed.is_gloo_available(), reason="this torch has no gloo"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

# (algorithm, the seed of the generator of each process, what is said)
REFUSED = [
    (RigL(), (0, 0), "RigL grows by the gradients of each process, so the topologies of 2 processes would drift apart"),
    (DSR(), (0, 0), "DSR changes how many connections a layer has, which DistributedDataParallel does not follow"),
    (SET(), None, "2 processes would draw other connections each: pass generator=torch.Generator().manual_seed"),
    (SET(), (0, 1), "the 2 processes do not begin alike"),
]
TAKEN = (SET(0.5), (3, 3))


def trained(rank, algorithm, seeds):
    """(rewirings, connections and values of each layer), or why not."""
    model = two_layers()
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.1, momentum=0.9)
    generator = None if seeds is None else torch.Generator().manual_seed(seeds[rank])
    try:
        rewirer = Rewirer(parallel, optimizer, algorithm, every=2, until=10, generator=generator)
    except RuntimeError as error:
        return str(error)
    for step in range(6):
        backward(parallel, 10 * step + rank)
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
    return rewirer.rewirings, [(layer.topology.keys.tolist(), layer.values.tolist()) for layer in topology_layers(model).values()]


def work(rank, folder, answers):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    answers.put([*(trained(rank, algorithm, seeds) for algorithm, seeds, _ in REFUSED), trained(rank, *TAKEN)])
    answers.close()
    answers.join_thread()
    os._exit(0)


def test_what_would_drift_apart_is_refused_and_all_else_stays_the_same(tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=work, args=(rank, tmp_path, answers)) for rank in range(2)]
    for process in processes:
        process.start()
    (*refused, one), (*refused_too, other) = (answers.get(timeout=100) for _ in processes)
    for process in processes:
        process.join(60)
    for said, again, (_, _, expected) in zip(refused, refused_too, REFUSED, strict=True):
        assert said.startswith(expected)
        assert again == said
    assert one == other
    assert one[0] == 3
