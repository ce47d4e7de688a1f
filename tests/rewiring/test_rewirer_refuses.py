"""What Rewirer refuses, in which words, and that nothing has changed then."""

import copy

import pytest
import torch
from oracles import made
from torch import nn
from torch.optim import SGD, Adam
from training import Spy, backward, topologies, two_layers

from truesparse import SET, Move, Rewirer, RigL
from truesparse.algorithms import GMP, SRigL, Static


def test_states_that_cannot_be_loaded():
    model = two_layers()
    with_generator = Rewirer(model, SGD(model.parameters(), 0.1), SET(), generator=torch.Generator())
    without = Rewirer(model, SGD(model.parameters(), 0.1), SET())
    budgets = {name: topology.nnz for name, topology in topologies(model).items()}
    expected = {"steps": 0, "rewirings": 0, "overdue": False, "memory": {}, "budgets": budgets, "records": [], "generator": None}
    assert without.state_dict() == expected
    with pytest.raises(ValueError, match="expected a state with budgets, generator, memory, overdue, records, rewirings, steps, got steps"):
        without.load_state_dict({"steps": 1})
    for one, other in ((with_generator, without), (without, with_generator)):
        with pytest.raises(ValueError, match="saved with a generator of its own and this Rewirer has none, or the other way round"):
            one.load_state_dict(other.state_dict())


def test_arguments_that_cannot_be():
    model = two_layers()
    optimizer = SGD(model.parameters(), 0.1)
    for wrong in (RigL, object(), "rigl", None):
        with pytest.raises(TypeError, match=r"expected an algorithm, an object with update\(.*\) or update_network\(.*\), got"):
            Rewirer(model, optimizer, wrong)
    with pytest.raises(ValueError, match=r"the model has no sparse layer: call truesparse\.sparsify\(model\) first"):
        Rewirer(nn.Linear(3, 3), optimizer, RigL())
    with pytest.raises(ValueError, match=r"the optimizer does not hold the parameters of '0', '2': build it from model.parameters"):
        Rewirer(model, SGD(nn.Linear(3, 3).parameters(), 0.1), RigL())
    with pytest.raises(TypeError, match=r"expected an optimizer of torch, or an object that wraps one, got dict"):
        Rewirer(model, {}, RigL())
    with pytest.raises(TypeError, match="LBFGS keeps one history for all parameters together"):
        Rewirer(model, torch.optim.LBFGS(model.parameters()), RigL())
    with pytest.raises(ValueError, match="every must be a whole number of steps"):
        Rewirer(model, optimizer, RigL(), every=0)
    with pytest.raises(ValueError, match=r"GMP\(.*\) reaches its aim .*: pass until=, more than every=100 steps, got None"):
        Rewirer(model, optimizer, GMP(), every=100)
    for algorithm, every, until, reason in (
        (RigL(), 100, 0.75, r"until is a step, not a share of the training: pass until=0\.75 \* total_steps"),
        (
            SET(),
            100,
            100,
            "no topology would ever change: the first rewiring is at step every=100, .* ends before step until=100",
        ),
        (GMP(), 1000, 750.0, "no topology would ever change: .* before step until=750. Pass a smaller every=, train longer, or use Static"),
        (SRigL(), 1, 10, "no weight would be trained before step until=10: .* takes the place of the optimizer's step, and every=1 leaves"),
    ):
        with pytest.raises(ValueError, match=reason):
            Rewirer(model, optimizer, algorithm, every=every, until=until)
    for algorithm, every, until in ((Static(), 100, 10), (SET(), 1, 10), (SET(), 100, 101), (RigL(), 1, None), (RigL(), 2, 10)):
        made = Rewirer(model, optimizer, algorithm, every=every, until=until)
        made.detach()
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
