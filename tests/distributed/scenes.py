"""What people do with DistributedDataParallel, as functions of the rank: what each of two processes comes to, or why not."""

from __future__ import annotations

import copy

import torch
from torch import distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, fp16_compress_hook
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from training import backward, topologies, two_layers

from truesparse import DSR, GMP, SET, SNFS, Rewirer, RigL, SparseLinear, sparsify

STEPS, EVERY, UNTIL = 6, 2, 20


def state(model):
    """(connections, values and biases) of a model."""
    return [topology.keys.tolist() for topology in topologies(model).values()], [one.tolist() for one in model.parameters()]


def rewirer_of(net, algorithm, **settings):
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    return Rewirer(net, optimizer, algorithm, EVERY, UNTIL, **settings)


def train(net, algorithm, rank, before_step=None, steps=STEPS, **settings):
    rewirer = rewirer_of(net, algorithm, **settings)
    for step in range(steps):
        backward(net, 10 * step + rank)
        if before_step is not None:
            before_step(net)
        if rewirer.step():
            rewirer.optimizer.step()
        rewirer.optimizer.zero_grad()
    return rewirer


def parallel(model=None, **settings):
    return DistributedDataParallel(model or two_layers(), **settings)


# ---- what is followed


def plain(rank, algorithm=None):
    net = parallel()
    train(net, algorithm or RigL(), rank)
    return state(net.module)


def clipped(rank):
    net = parallel()
    train(net, RigL(), rank, lambda net: nn.utils.clip_grad_norm_(net.parameters(), 0.01))
    return state(net.module)


def averaged_by_hand(rank):
    """Without DistributedDataParallel."""

    def mean(model):
        for parameter in model.parameters():
            distributed.all_reduce(parameter.grad)
            parameter.grad /= 2

    model = two_layers()
    train(model, RigL(), rank, mean)
    return state(model)


def synchronised_in_every_pass(rank, net=None):
    net = net or parallel()
    rewirer = rewirer_of(net, RigL())
    for step in range(STEPS):
        for number in range(3):
            backward(net, 100 * number + 10 * step + rank)
        if rewirer.step():
            rewirer.optimizer.step()
        rewirer.optimizer.zero_grad()
    return state(net.module)


def inner_model(rank):
    """The Rewirer is given the model inside, and is there first."""
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    rewirer = Rewirer(model, optimizer, RigL(), EVERY, UNTIL)
    net = parallel(model)
    for step in range(STEPS):
        backward(net, 10 * step + rank)
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
    return state(model)


def attached(rank):
    net = parallel()
    rewirer = rewirer_of(net, RigL())
    rewirer.attach()
    for step in range(STEPS):
        backward(net, 10 * step + rank)
        rewirer.optimizer.step()
        rewirer.optimizer.zero_grad()
    return state(net.module)


class Branches(nn.Module):
    """Two networks, of which a pass may use one alone."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.both = two_layers(), two_layers(), True

    def forward(self, x):
        return self.first(x) + self.second(x) if self.both else self.first(x)


def uses_both(rank, number):
    return (rank + number) % 2 == 0


def branches(rank, passes=1):
    """Each pass uses the second network in one of the two processes only."""
    model = Branches()
    net = parallel(model, find_unused_parameters=True)
    rewirer = rewirer_of(net, RigL())
    for step in range(STEPS):
        for number in range(passes):
            model.both = uses_both(rank, number)
            backward(net, 100 * number + 10 * step + rank)
        if rewirer.step():
            rewirer.optimizer.step()
        rewirer.optimizer.zero_grad()
    return state(model)


def branches_three_times(rank):
    return branches(rank, 3)


def communication_hook(rank):
    """[numbers exchanged in each bucket], while the count of connections falls."""
    sizes = []

    def hook(_, bucket):
        sizes.append(bucket.buffer().numel())
        return allreduce_hook(None, bucket)

    net = parallel()
    net.register_comm_hook(None, hook)
    train(net, GMP(0.9), rank)
    return sizes, state(net.module)


def built_in_hook(rank):
    net = parallel()
    net._register_builtin_comm_hook(distributed.BuiltinCommHookType.ALLREDUCE)
    train(net, GMP(0.9), rank)
    return net._get_ddp_logging_data()["comm_hook"], state(net.module)


def falling_count(rank):
    net = parallel(static_graph=True, gradient_as_bucket_view=True)
    train(net, GMP(0.9), rank)
    return state(net.module)


def loaded_after_wrapping(rank):
    """Gradients of a model that has loaded a state with other counts, after DistributedDataParallel was made."""
    net = parallel()
    backward(net, rank)
    net.zero_grad()
    torch.manual_seed(3)
    net.module.load_state_dict(sparsify(two_layers_dense(), 0.8).state_dict())
    backward(net, rank)
    return [one.grad.tolist() for one in net.parameters()]


def two_layers_dense():
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4)).double()


def compressed_where_nothing_grows_by_gradients(rank):
    net = parallel()
    net.register_comm_hook(None, fp16_compress_hook)
    train(net, SET(), rank)
    return state(net.module)


def no_generator(rank):
    """Each process has another seed by the time it rewires."""
    net = parallel()
    torch.manual_seed(rank + 5)
    train(net, DSR(threshold=0.1), rank)
    return state(net.module)


def masked(rank):
    net = parallel(two_layers(masked=True))
    train(net, RigL(), rank)
    return state(net.module)


def window_resumed(rank):
    """Stopped within the window of SNFS and gone on with what each process has saved, or with what the first one has."""

    def go_on(saved):
        net, saved = parallel(), copy.deepcopy(saved)
        rewirer = rewirer_of(net, SNFS(window=2))
        net.module.load_state_dict(saved["model"])
        rewirer.optimizer.load_state_dict(saved["optimizer"])
        rewirer.load_state_dict(saved["rewirer"])
        for step in range(3, STEPS):
            backward(net, 10 * step + rank)
            if rewirer.step():
                rewirer.optimizer.step()
            rewirer.optimizer.zero_grad()
        return state(net.module)

    whole, half = parallel(), parallel()
    train(whole, SNFS(window=2), rank)
    rewirer = train(half, SNFS(window=2), rank, steps=3)
    saved = {"model": half.module.state_dict(), "optimizer": rewirer.optimizer.state_dict(), "rewirer": rewirer.state_dict()}
    firsts = [saved]
    distributed.broadcast_object_list(firsts)
    return state(whole.module), go_on(saved), go_on(firsts[0])


def sharded_without_rewirer(rank):
    """`fully_shard` of a model whose topologies stay."""
    model = two_layers()
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for step in range(STEPS):
        backward(model, 10 * step + rank)
        optimizer.step()
        optimizer.zero_grad()
    return [one.full_tensor().tolist() for one in model.parameters()]


# ---- what is refused


def compressed(rank):
    net = parallel()
    net.register_comm_hook(None, fp16_compress_hook)
    train(net, RigL(), rank)


def not_synchronised(rank):
    net = parallel()
    with net.no_sync():
        train(net, RigL(), rank)


def other_topology(rank):
    torch.manual_seed(rank)
    parallel(sparsify(two_layers_dense(), 0.6))


def other_topology_without_wrapper(rank):
    torch.manual_seed(rank)
    rewirer_of(sparsify(two_layers_dense(), 0.6), SET())


def other_algorithm(rank):
    rewirer_of(parallel(), RigL(0.1 * (rank + 1)))


def other_parameters(rank):
    net = parallel()
    Rewirer(net, torch.optim.SGD(net.module[2 * rank].parameters(), 0.1), SET())


def other_seed(rank):
    rewirer_of(parallel(), SET(), generator=torch.Generator().manual_seed(rank))


def sparse_after_wrapping(rank):
    sparsify(parallel(two_layers_dense()), 0.9)


def sparse_inside_the_wrapper(rank):
    net = parallel(two_layers_dense())
    sparsify(net.module, 0.9)


def layer_put_into_the_wrapper(rank):
    net = parallel()
    net.module[0] = SparseLinear(8, 12)


def drifted(rank):
    """Values change in one process; (what is said, whether a topology has changed)."""
    net = parallel()
    began = state(net.module)[0]

    def push(net):
        if rank == 1:
            net.module[2].values.data[:4] += 3

    try:
        train(net, SET(), rank, push)
    except RuntimeError as error:
        return f"RuntimeError: {error}", state(net.module)[0] == began


def drawn_from_alone(rank):
    net, generator = parallel(), torch.Generator().manual_seed(0)

    def draw(net):
        if rank == 1:
            torch.rand(3, generator=generator)

    train(net, SET(grown_std=0.1), rank, draw, generator=generator)


def joined(rank):
    net = parallel()
    with net.join():
        train(net, RigL(), rank)


def dealt_out_optimizer(rank):
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns of something in torch itself

    net = parallel()
    Rewirer(net, ZeroRedundancyOptimizer(net.parameters(), torch.optim.SGD, lr=0.1), RigL())


def sharded(rank):
    model = two_layers()
    fully_shard(model)
    rewirer_of(model, RigL())


FOLLOWED = (
    plain,
    clipped,
    averaged_by_hand,
    synchronised_in_every_pass,
    inner_model,
    attached,
    branches,
    branches_three_times,
    communication_hook,
    built_in_hook,
    falling_count,
    loaded_after_wrapping,
    compressed_where_nothing_grows_by_gradients,
    no_generator,
    masked,
    window_resumed,
    sharded_without_rewirer,
)
REFUSED = (
    compressed,
    not_synchronised,
    other_topology,
    other_topology_without_wrapper,
    other_algorithm,
    other_parameters,
    other_seed,
    sparse_after_wrapping,
    sparse_inside_the_wrapper,
    layer_put_into_the_wrapper,
    drifted,
    drawn_from_alone,
    joined,
    dealt_out_optimizer,
    sharded,
)
