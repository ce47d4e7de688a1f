"""Rewirer: when it acts, what an algorithm sees, and that nothing is kept or changed that should not be."""

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from oracles import Watched, images, made, network, pairs_of
from torch import nn
from torch.optim import SGD, Adam, AdamW
from training import Spy, backward, topologies, two_layers

from truesparse import SET, MaskedLinear, Move, Rewirer, RigL, SparseLinear, Static, ops, rewire, sparsify
from truesparse.algorithms import DSR, GMP, SNFS, GraNet
from truesparse.nn import topology_layers


def test_rigl_takes_the_place_of_the_step():
    model = two_layers()
    optimizer = SGD(model.parameters(), 0.1)
    rewirer = Rewirer(model, optimizer, RigL(), every=3, until=10)
    answers = []
    for step in range(1, 14):
        before, values = topologies(model), model[0].values.detach().clone()
        backward(model, step)
        answers.append(rewirer.step())
        changed = any(topology is not before[name] for name, topology in topologies(model).items())
        assert changed == (step in (3, 6, 9))
        if not answers[-1]:
            old = dict(zip(sorted(pairs_of(before["0"])), values.tolist(), strict=True))
            new = dict(zip(sorted(pairs_of(model[0].topology)), model[0].values.tolist(), strict=True))
            assert new == {pair: old.get(pair, 0.0) for pair in new}, "weights change only by being dropped and grown"
        else:
            optimizer.step()
        optimizer.zero_grad()
    assert [step for step, answer in enumerate(answers, 1) if not answer] == [3, 6, 9]
    assert (rewirer.steps, rewirer.rewirings) == (13, 3)


def test_set_rewires_after_the_step():
    model = two_layers()
    optimizer = SGD(model.parameters(), 0.1)
    rewirer = Rewirer(model, optimizer, SET(), every=2, generator=torch.Generator().manual_seed(0))
    for step in range(1, 7):
        before = topologies(model)
        backward(model, step)
        assert rewirer.step() is True
        assert topologies(model) == before
        optimizer.step()
        assert all((topology is not before[name]) == (step % 2 == 0) for name, topology in topologies(model).items())
        optimizer.zero_grad()
    assert rewirer.rewirings == 3


def test_an_algorithm_that_follows_the_step_sees_the_weights_after_it():
    model, seen = two_layers(), []
    optimizer = SGD(model.parameters(), 0.1)
    rewirer = Rewirer(model, optimizer, Spy(lambda topology, signals: seen.append(signals.values.clone()) or topology), every=1)
    backward(model)
    before = model[0].values.detach().clone()
    rewirer.step()
    optimizer.step()
    assert torch.equal(seen[0], model[0].values)
    assert not torch.equal(seen[0], before)


def test_a_step_that_never_came_has_its_rewiring_after_the_next():
    model, expected = two_layers(), []
    spy = Spy(lambda topology, signals: torch.testing.assert_close(signals.absent.at(topology), signals.gradients) or topology)
    optimizer = SGD(model.parameters(), 0.1)
    rewirer = Rewirer(model, optimizer, spy, every=4)
    for step in range(1, 10):
        backward(model, step)
        rewirer.step()
        if step not in (4, 5):  # as where a gradient scaler finds an overflow
            optimizer.step()
        expected.append(rewirer.rewirings)
        optimizer.zero_grad()
    assert expected == [0, 0, 0, 0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("masked", [False, True])
def test_progress_pattern_and_generator_reach_the_algorithm(masked):
    model, spy = two_layers(masked), Spy(replaces_step=True)
    generator = torch.Generator()
    rewirer = Rewirer(model, SGD(model.parameters(), 0.1), spy, every=2, until=8, generator=generator)
    for step in range(1, 12):
        backward(model, step)
        rewirer.step()
    assert [signals.progress for signals in spy.seen] == [0.25, 0.25, 0.5, 0.5, 0.75, 0.75]
    for signals in spy.seen:
        assert signals.generator is generator
        assert signals.pattern == model[0].pattern
    without_end = Spy(replaces_step=True)
    rewirer = Rewirer(model, SGD(model.parameters(), 0.1), without_end, every=1)
    backward(model)
    rewirer.step()
    assert [signals.progress for signals in without_end.seen] == [0.0, 0.0]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("passes", [1, 3])
def test_gradients_are_those_of_all_backward_passes_since_the_last_step(masked, passes):
    model, seen = two_layers(masked), {}

    def look(topology, signals):
        dense = signals.absent.rows(0, topology.shape[0])
        half = torch.cat([signals.absent.rows(0, 2), signals.absent.rows(2, topology.shape[0])])
        torch.testing.assert_close(half, dense)
        seen[topology.shape] = dense, signals.gradients.clone(), signals.absent.top(topology, 5)
        return topology

    rewirer = Rewirer(model, SGD(model.parameters(), 0.1), Spy(look, replaces_step=True), every=2)
    backward(model, 77)
    assert rewirer.step()
    model.zero_grad()
    dense_model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4)).double()
    for index in (0, 2):
        dense_model[index].weight.data = model[index].to_dense().detach()
        dense_model[index].bias.data = model[index].bias.detach()
    for number in range(passes):
        backward(model, number)
        backward(dense_model, number)
    with torch.no_grad():
        model(torch.randn(3, 8, dtype=torch.float64))
    model(torch.randn(3, 8, dtype=torch.float64))  # never taken backward
    assert rewirer.step() is False
    for index in (0, 2):
        topology, expected = model[index].topology, dense_model[index].weight.grad
        dense, gradients, top = seen[topology.shape]
        torch.testing.assert_close(dense, expected)
        torch.testing.assert_close(gradients, expected.flatten()[topology.keys])
        scores = expected.abs().flatten().masked_fill(topology.mask().flatten(), -1)
        assert top.tolist() == sorted(scores.topk(5).indices.tolist())


@pytest.mark.parametrize("algorithm", [RigL(0.4), SET(0.4, 0.1), Static()], ids=["RigL", "SET", "Static"])
@pytest.mark.parametrize("make", [lambda parameters: Adam(parameters, 0.05), lambda parameters: AdamW(parameters, 0.05, fused=True)])
def test_attach_is_step_bit_for_bit(algorithm, make):
    def train(attached):
        model = two_layers()
        optimizer = make(list(model.parameters()))
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 4)
        rewirer = Rewirer(model, optimizer, algorithm, every=3, until=15, generator=torch.Generator().manual_seed(2))
        handle = rewirer.attach() if attached else None
        for step in range(20):
            backward(model, step)
            if attached or rewirer.step():
                optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if handle:
            handle.remove()
            optimizer.step()
        assert (rewirer.steps, rewirer.rewirings) == (20, 4)
        return model

    by_hand, by_hook = train(False), train(True)
    for name, entry in by_hand.state_dict().items():
        assert torch.equal(entry, by_hook.state_dict()[name]), name


def test_detach_leaves_no_hook():
    model = two_layers()
    optimizer = SGD(model.parameters(), 0.1)
    rewirer = Rewirer(model, optimizer, RigL(), every=1)
    rewirer.attach()
    rewirer.detach()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert not any(module._forward_hooks for module in model.modules())
    topology = model[0].topology
    backward(model)
    optimizer.step()
    assert model[0].topology is topology


@pytest.mark.parametrize("algorithm", [RigL(), SET(), Static()], ids=["RigL", "SET", "Static"])
def test_inputs_and_gradients_are_released_after_a_step(algorithm):
    model = two_layers()
    optimizer = SGD(model.parameters(), 0.1)
    rewirer = Rewirer(model, optimizer, algorithm, every=2)
    for step in range(1, 5):
        x = torch.randn(6, 8, dtype=torch.float64)
        model(x).sum().backward()
        recorded = not rewirer._recorder.of("0")[-1].empty
        assert recorded == (step % 2 == 0 and isinstance(algorithm, RigL)), "what is not due, or not wanted, is not recorded"
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
        assert not rewirer._recorder.of("0")[-1].passes
        storage = weakref.ref(x)
        del x
        gc.collect()
        assert storage() is None


def test_generator_state_makes_a_run_that_continues_bit_for_bit():
    def start(seed):
        model = two_layers()
        optimizer = Adam(model.parameters(), 0.05)
        return model, optimizer, Rewirer(model, optimizer, SET(), every=2, until=20, generator=torch.Generator().manual_seed(seed))

    def run(model, optimizer, rewirer, steps):
        for step in steps:
            backward(model, step)
            if rewirer.step():
                optimizer.step()
            optimizer.zero_grad()

    straight = start(3)
    run(*straight, range(7))
    saved = [copy.deepcopy(part.state_dict()) for part in straight]
    run(*straight, range(7, 14))
    resumed = start(99)
    for part, state in zip(resumed, saved, strict=True):
        part.load_state_dict(state)
    assert resumed[2].state_dict()["steps"] == 7
    run(*resumed, range(7, 14))
    for name, entry in straight[0].state_dict().items():
        assert torch.equal(entry, resumed[0].state_dict()[name]), name
    assert (resumed[2].steps, resumed[2].rewirings) == (14, 7)


def test_an_algorithm_of_ones_own_may_start_connections_anew_where_they_are():
    def reset_first(topology, signals):
        return Move.through(topology, topology.drop(torch.tensor([0])), topology, torch.tensor([5.0]))

    model = two_layers()
    optimizer = Adam(model.parameters(), 0.1)
    rewirer = Rewirer(model, optimizer, Spy(reset_first), every=1)
    backward(model)
    rewirer.step()
    optimizer.step()
    for layer in topology_layers(model).values():
        assert layer.values[0] == 5.0
        assert optimizer.state[layer.values]["exp_avg"][0] == 0
        assert optimizer.state[layer.values]["exp_avg"][1:].any()


@pytest.mark.parametrize("masked", [False, True])
def test_autocast(masked):
    model = sparsify(network(), 0.7, exclude=("0",), masked=masked)  # a dense layer before the first sparse one gives it bfloat16
    optimizer = SGD(model.parameters(), 0.01)
    rewirer = Rewirer(model, optimizer, RigL(), every=1)
    before = topologies(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.cross_entropy(model(images()), torch.tensor([0, 1, 2]))
    loss.backward()
    assert rewirer.step() is False
    assert any(not topology.equal(before[name]) for name, topology in topologies(model).items())


EVERY_KIND = [RigL(), SET(), GMP(0.9999), GraNet(0.9999), SNFS(window=2), DSR(threshold=0.01)]


@pytest.mark.filterwarnings("ignore:layer .* is nearly pruned away")
@pytest.mark.parametrize("algorithm", EVERY_KIND, ids=lambda algorithm: type(algorithm).__name__)
def test_nothing_of_rows_times_columns_is_ever_made(algorithm):
    model = nn.Sequential(SparseLinear(3000, 3000, sparsity=0.999), nn.ReLU(), SparseLinear(3000, 10, sparsity=0.9))
    optimizer = Adam(model.parameters(), 0.01)
    rewirer = Rewirer(model, optimizer, algorithm, every=2, until=10)
    with Watched() as watched:
        for _ in range(2):
            model(torch.randn(2, 3000)).sum().backward()
            if rewirer.step():
                optimizer.step()
            optimizer.zero_grad()
    assert rewirer.rewirings == 1
    assert watched.largest < 3000 * 3000 / 2
    connections = 9000 + 3000  # which DSR and SNFS move between the layers
    assert all(held.numel() <= connections for state in optimizer.state.values() for held in state.values())


def test_masked_and_sparse_layers_share_rewire():
    layer = MaskedLinear(9, 6, sparsity=0.6)
    rewire(layer, None, made((6, 9), {(1, 2)}))
    assert pairs_of(layer.topology) == {(1, 2)}
    assert layer.mask.nonzero().tolist() == [[1, 2]]
    assert not layer.weight.detach().masked_select(~layer.mask).any()


@pytest.mark.parametrize("algorithm", [RigL(), SET()])
def test_a_frozen_layer_stays_as_it_is(algorithm):
    model = two_layers()
    model[0].requires_grad_(False)
    optimizer = SGD(model.parameters(), 0.1)
    rewirer = Rewirer(model, optimizer, algorithm, every=1)
    before, values = topologies(model), model[0].values.clone()
    backward(model)
    if rewirer.step():
        optimizer.step()
    assert model[0].topology is before["0"]
    assert torch.equal(model[0].values, values)
    assert model[2].topology is not before["2"]


def test_a_layer_may_be_called_with_its_input_by_name():
    layer = SparseLinear(8, 6, sparsity=0.5)
    rewirer = Rewirer(layer, SGD(layer.parameters(), 0.1), RigL(), every=1)
    layer(input=torch.randn(4, 8)).pow(2).sum().backward()
    assert not rewirer.step()


def test_gradients_of_several_backward_passes_add_up():
    layer = SparseLinear(7, 5, sparsity=0.5)
    samples = [(torch.randn(3, 5), torch.randn(3, 7)) for _ in range(3)]
    expected = sum(dy.T @ x for dy, x in samples)
    torch.testing.assert_close(layer.gradient_rows(samples, 1, 4), expected[1:4])
    empty = ~layer.topology.mask()
    best = expected.abs().masked_fill(~empty, -1).flatten().topk(4).indices.sort().values
    assert torch.equal(layer.top_gradients(samples, layer.topology, 4), best)


@pytest.mark.parametrize("family", ["native", "reference"])
def test_an_old_topology_and_its_plans_go_at_once(family):
    layer = SparseLinear(30, 20, sparsity=0.5)
    old = weakref.ref(layer.topology)
    gc.collect()
    gc.disable()
    try:
        with ops.use(family):
            layer(torch.randn(4, 30, requires_grad=True)).sum().backward()
            plan = weakref.ref(layer.verbs())
            rewire(layer, None, made((20, 30), {(1, 2)}))
        assert old() is None
        assert plan() is None
    finally:
        gc.enable()


def test_hooks_hear_of_every_move():
    model, heard, order = two_layers(), [], []
    optimizer = SGD(model.parameters(), 0.1)
    rewirer = Rewirer(model, optimizer, SET(0.5), every=2, generator=torch.Generator().manual_seed(0))

    def hook(moves):
        assert all(layer.topology is moves[name].new for name, layer in topology_layers(model).items()), "called when it is done"
        heard.append(moves)
        order.append("first")

    handle, other = rewirer.register_hook(hook), rewirer.register_hook(lambda moves: order.append("second"))
    for step in range(1, 7):
        before = topologies(model)
        backward(model, step)
        rewirer.step()
        optimizer.step()
        assert len(heard) == min(step // 2, 2)
        if step in (2, 4):
            assert list(heard[-1]) == ["0", "2"]
            assert all(move.old is before[name] and bool(move.grown.any()) for name, move in heard[-1].items())
        if step == 4:
            handle.remove()
    assert order == ["first", "second", "first", "second", "second"]
    other.remove()
    assert not rewirer._hooks


def test_rewirings_that_leave_no_step_to_the_optimizer_are_told_once():
    model = two_layers()
    optimizer = SGD(model.parameters(), 0.1)
    rewirer = Rewirer(model, optimizer, RigL(), every=1)
    backward(model)
    assert not rewirer.step()
    optimizer.zero_grad()
    backward(model)
    with pytest.warns(UserWarning, match="every step so far was a rewiring in the place of the optimizer's step, so no weight was trained"):
        assert not rewirer.step()
    optimizer.zero_grad()
    backward(model)
    assert not rewirer.step()


@pytest.mark.filterwarnings("ignore:every step so far was a rewiring")
def test_a_hook_may_remove_itself():
    model = two_layers()
    rewirer = Rewirer(model, SGD(model.parameters(), 0.1), RigL(), every=1)
    calls = []
    handles = [
        rewirer.register_hook(lambda moves: (calls.append(1), handles[0].remove())),
        rewirer.register_hook(lambda moves: calls.append(2)),
    ]
    for _ in range(2):
        model.zero_grad()
        backward(model)
        rewirer.step()
    assert calls == [1, 2, 2]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("replaces_step", [False, True])
def test_a_penalty_is_added_to_the_gradients_before_each_step(masked, replaces_step):
    class Penalized(Spy):
        def penalty(self, signals):
            return 0.5 * signals.values.sign() + signals.learning_rate * signals.gradients

    def train(algorithm, by_hand):
        model = two_layers(masked)
        optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
        rewirer = Rewirer(model, optimizer, algorithm, every=3)
        for step in range(1, 8):
            backward(model, step)
            if by_hand:
                for layer in topology_layers(model).values():
                    gradient = layer.of_connections(layer.parameter.grad)
                    layer.parameter.grad += layer.spread(0.5 * layer.of_connections(layer.parameter.detach()).sign() + 0.1 * gradient)
            if rewirer.step():
                optimizer.step()
            optimizer.zero_grad()
        return model.state_dict()

    ours, expected = train(Penalized(replaces_step=replaces_step), False), train(Spy(replaces_step=replaces_step), True)
    without = train(Spy(replaces_step=replaces_step), False)
    assert all(torch.equal(ours[name], entry) for name, entry in expected.items())
    assert not torch.equal(next(iter(ours.values())), next(iter(without.values())))


def test_a_penalty_leaves_frozen_layers_and_layers_without_gradient_alone():
    class Penalized(Spy):
        def penalty(self, signals):
            return torch.ones_like(signals.values)

    model = two_layers()
    optimizer = SGD(model.parameters(), 0.1)
    rewirer = Rewirer(model, optimizer, Penalized(), every=3)
    model[0].requires_grad_(False)
    rewirer.step()
    assert model[0].values.grad is model[2].values.grad is None
    backward(model)
    before = model[2].values.grad.clone()
    rewirer.step()
    assert model[0].values.grad is None
    assert torch.equal(model[2].values.grad, before + 1)


class Together:
    """An algorithm for whole networks: counts its updates in its memory, and moves one connection from the first layer to the second."""

    def update_network(self, layers, memory):
        first, second = layers.values()
        free = torch.tensor(sorted(set(range(second.topology.size)) - set(second.topology.keys.tolist())))
        new = first.topology.drop(torch.tensor([0])), second.topology.grow(free[:1])
        return dict(zip(layers, new, strict=True)), {"updates": memory.get("updates", 0) + 1}


def test_an_algorithm_for_whole_networks_moves_connections_between_layers_and_remembers():
    def start():
        model = two_layers()
        optimizer = Adam(model.parameters(), 0.1)
        return model, optimizer, Rewirer(model, optimizer, Together(), every=1)

    def run(model, optimizer, rewirer):
        backward(model)
        rewirer.step()
        optimizer.step()

    parts = start()
    counts = [topology.nnz for topology in topologies(parts[0]).values()]
    for step in range(1, 4):
        run(*parts)
        assert [topology.nnz for topology in topologies(parts[0]).values()] == [counts[0] - step, counts[1] + step]
    assert parts[2].memory == {"updates": 3}
    other = start()
    for part, state in zip(other, [part.state_dict() for part in parts], strict=True):
        part.load_state_dict(state)
    run(*other)
    assert other[2].memory == {"updates": 4}
    assert list(other[2].budgets.values()) == counts


def test_where_all_layers_are_frozen_nothing_is_rewired():
    model = two_layers()
    head = nn.Linear(4, 2).double()
    optimizer = SGD([*model.parameters(), *head.parameters()], 0.1)
    rewirer = Rewirer(model, optimizer, Together(), every=1)
    model.requires_grad_(False)
    before = topologies(model)
    head(model(torch.randn(2, 8, dtype=torch.float64))).sum().backward()
    rewirer.step()
    optimizer.step()
    assert topologies(model) == before
    assert rewirer.memory == {}
