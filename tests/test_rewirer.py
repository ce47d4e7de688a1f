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

from truesparse import SET, MaskedLinear, Move, Rewirer, RigL, SparseLinear, Static, rewire, sparsify
from truesparse.nn import topology_layers


def two_layers(masked=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4)).double()
    return sparsify(model, 0.6, masked=masked, generator=torch.Generator().manual_seed(1))


def topologies(model):
    return {name: layer.topology for name, layer in topology_layers(model).items()}


def backward(model, seed=0, batch=6):
    generator = torch.Generator().manual_seed(seed)
    loss = model(torch.randn(batch, 8, generator=generator, dtype=torch.float64)).pow(2).mean()
    loss.backward()
    return loss.detach()


class Spy:
    """An algorithm of one's own: notes what it sees and rewires nothing unless told."""

    def __init__(self, update=None, replaces_step=False):
        self.seen, self.does, self.replaces_step = [], update, replaces_step

    def update(self, topology, signals):
        self.seen.append(signals)
        return self.does(topology, signals) if self.does else topology


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


def test_a_step_that_never_came_has_no_rewiring_after_it():
    model, spy = two_layers(), Spy(lambda topology, signals: signals.absent.rows(0, 1) is None or topology)
    optimizer = SGD(model.parameters(), 0.1)
    rewirer = Rewirer(model, optimizer, spy, every=2)
    for step in range(1, 6):
        backward(model, step)
        rewirer.step()
        if step != 2:
            optimizer.step()
        optimizer.zero_grad()
    assert rewirer.rewirings == 1


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
        assert bool(rewirer._samples["0"]) == (step % 2 == 0), "what is not due is not recorded"
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
        assert not any(rewirer._samples.values())
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


def test_states_that_cannot_be_loaded():
    model = two_layers()
    with_generator = Rewirer(model, SGD(model.parameters(), 0.1), SET(), generator=torch.Generator())
    without = Rewirer(model, SGD(model.parameters(), 0.1), SET())
    assert without.state_dict() == {"steps": 0, "rewirings": 0, "generator": None}
    with pytest.raises(ValueError, match="expected a state with generator, rewirings, steps, got steps"):
        without.load_state_dict({"steps": 1})
    for one, other in ((with_generator, without), (without, with_generator)):
        with pytest.raises(ValueError, match="saved with a generator of its own and this Rewirer has none, or the other way round"):
            one.load_state_dict(other.state_dict())


def test_arguments_that_cannot_be():
    model = two_layers()
    optimizer = SGD(model.parameters(), 0.1)
    for wrong in (RigL, object(), "rigl", None):
        with pytest.raises(TypeError, match=r"expected an algorithm, an object with update\(topology, signals\), got"):
            Rewirer(model, optimizer, wrong)
    with pytest.raises(ValueError, match=r"the model has no sparse layer: call truesparse\.sparsify\(model\) first"):
        Rewirer(nn.Linear(3, 3), optimizer, RigL())
    with pytest.raises(ValueError, match="the optimizer does not hold the parameters of '2': build it from model.parameters"):
        Rewirer(model, SGD(model[0].parameters(), 0.1), RigL())
    with pytest.raises(TypeError, match="LBFGS keeps one history for all parameters together"):
        Rewirer(model, torch.optim.LBFGS(model.parameters()), RigL())
    with pytest.raises(ValueError, match="every must be a whole number of steps"):
        Rewirer(model, optimizer, RigL(), every=0)
    assert not any(module._forward_hooks for module in model.modules()), "what is refused leaves no hook"
    assert not optimizer._optimizer_step_post_hooks


def test_a_step_without_backward_says_so():
    model = two_layers()
    rewirer = Rewirer(model, SGD(model.parameters(), 0.1), RigL(), every=1)
    with pytest.raises(
        RuntimeError, match=r"layer '0' took part in no backward pass since the last step\(\): call loss\.backward\(\) before step"
    ):
        rewirer.step()
    spy = Spy(lambda topology, signals: signals.gradients is None or topology, replaces_step=True)
    with pytest.raises(
        RuntimeError, match=r"layer '0' has no gradient: call loss\.backward\(\) before step\(\), and zero_grad\(\) after it"
    ):
        Rewirer(model, SGD(model.parameters(), 0.1), spy, every=1).step()


def second_layer_only(change):
    def update(topology, signals):
        return change(topology) if topology.shape == (4, 12) else topology.drop(torch.tensor([0])).grow(empty_of(topology)[:1])

    return update


def empty_of(topology):
    return torch.tensor(sorted(set(range(topology.size)) - set(topology.keys.tolist())))


def raises(topology):
    raise ArithmeticError("no answer")


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (raises, ArithmeticError, "no answer"),
        (lambda topology: made((4, 11), set()), ValueError, "a move stays within one shape"),
        (lambda topology: Move.between(made((4, 12), set()), topology), ValueError, "does not start at the layer's present topology"),
        (
            lambda topology: Move.through(topology, made((4, 12), set()), topology, torch.zeros(1)),
            ValueError,
            "one for each grown connection",
        ),
    ],
)
def test_what_is_refused_is_refused_before_any_layer_changes(change, error, says):
    model = two_layers()
    optimizer = Adam(model.parameters(), 0.1)
    rewirer = Rewirer(model, optimizer, Spy(second_layer_only(change), replaces_step=True), every=1)
    before, state = topologies(model), copy.deepcopy(model.state_dict())
    backward(model)
    with pytest.raises(error, match=says):
        rewirer.step()
    assert topologies(model) == before
    assert all(torch.equal(entry, model.state_dict()[name]) for name, entry in state.items())
    assert rewirer.rewirings == 0


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


def test_optimizers_are_checked_again_when_their_state_is_there():
    class Late(SGD):
        def step(self, closure=None):
            super().step(closure)
            for group in self.param_groups:
                for parameter in group["params"]:
                    self.state[parameter]["odd"] = torch.zeros(2, 2)

    model = two_layers()
    optimizer = Late(model.parameters(), 0.1)
    rewirer = Rewirer(model, optimizer, SET(), every=2)
    backward(model)
    rewirer.step()
    optimizer.step()
    before = topologies(model)
    rewirer.step()
    with pytest.raises(TypeError, match="Late keeps 'odd'"):
        optimizer.step()
    assert topologies(model) == before


@pytest.mark.parametrize("masked", [False, True])
def test_autocast(masked):
    model = sparsify(network(), 0.7, masked=masked)
    optimizer = SGD(model.parameters(), 0.01)
    rewirer = Rewirer(model, optimizer, RigL(), every=1)
    before = topologies(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.cross_entropy(model(images()), torch.tensor([0, 1, 2]))
    loss.backward()
    assert rewirer.step() is False
    assert any(not topology.equal(before[name]) for name, topology in topologies(model).items())


@pytest.mark.parametrize("algorithm", [RigL(), SET()], ids=["RigL", "SET"])
def test_nothing_of_rows_times_columns_is_ever_made(algorithm):
    model = nn.Sequential(SparseLinear(3000, 3000, sparsity=0.999), nn.ReLU(), SparseLinear(3000, 10, sparsity=0.9))
    optimizer = Adam(model.parameters(), 0.01)
    rewirer = Rewirer(model, optimizer, algorithm, every=2)
    with Watched() as watched:
        for _ in range(2):
            model(torch.randn(2, 3000)).sum().backward()
            if rewirer.step():
                optimizer.step()
            optimizer.zero_grad()
    assert rewirer.rewirings == 1
    assert watched.largest < 3000 * 3000 / 2
    assert all(held.numel() <= 9000 for state in optimizer.state.values() for held in state.values())


def test_masked_and_sparse_layers_share_rewire():
    layer = MaskedLinear(9, 6, sparsity=0.6)
    rewire(layer, None, made((6, 9), {(1, 2)}))
    assert pairs_of(layer.topology) == {(1, 2)}
    assert layer.mask.nonzero().tolist() == [[1, 2]]
    assert not layer.weight.detach().masked_select(~layer.mask).any()
