"""Optimizers that are wrapped, hold part of the layers or take closures; checkpoints put back; scalers; steps taken or left out."""

import copy

import pytest
import torch
import torch.nn.functional as F
from oracles import made
from torch import nn
from torch.optim import SGD, Adam
from training import Spy, backward, topologies, two_layers

from truesparse import MEST, SET, Rewirer, RigL, SparseLinear, rewire
from truesparse.nn import topology_layers


class Wrapper:
    """As frameworks have them: hands on the step, and keeps what it is told to keep."""

    def __init__(self, optimizer, **kept):
        self.inner = optimizer
        self.__dict__.update(kept)

    def step(self):
        self.inner.step()

    def zero_grad(self):
        self.inner.zero_grad()


class Lookahead(torch.optim.Optimizer):
    """Zhang et al. 2019 in short: slow weights, kept as optimizers keep their state."""

    def __init__(self, optimizer):
        super().__init__([parameter for group in optimizer.param_groups for parameter in group["params"]], {})
        self.fast, self.steps = optimizer, 0

    @torch.no_grad()
    def step(self, closure=None):
        self.fast.step()
        self.steps += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                slow = self.state[parameter].setdefault("slow", parameter.detach().clone())
                if self.steps % 3 == 0:
                    slow.lerp_(parameter, 0.5)
                    parameter.copy_(slow)


def trained(make_wrapper, masked=False, attached=False):
    model = two_layers(masked)
    optimizer = make_wrapper(Adam(model.parameters(), 0.05))
    rewirer = Rewirer(model, optimizer, RigL(0.5), every=2, until=20, generator=torch.Generator().manual_seed(0))
    if attached:
        rewirer.attach()
    for step in range(10):
        backward(model, step)
        if attached or rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
    assert rewirer.rewirings >= 4
    return model, optimizer, rewirer


def weights(model):
    return [layer.to_dense().detach() for layer in topology_layers(model).values()]


def test_a_wrapped_optimizer_is_trained_as_the_one_inside_it():
    plain, wrapped, twice = (
        trained(make)[0] for make in (lambda optimizer: optimizer, Wrapper, lambda optimizer: Wrapper(Wrapper(optimizer)))
    )
    assert all(torch.equal(one, other) for one, other in zip(weights(plain), weights(wrapped), strict=True))
    assert all(torch.equal(one, other) for one, other in zip(weights(plain), weights(twice), strict=True))


@pytest.mark.parametrize("attached", [False, True])
def test_what_a_wrapper_keeps_in_its_state_follows_too(attached):
    sparse, optimizer, rewirer = trained(Lookahead, attached=attached)
    masked, of_twin, _ = trained(Lookahead, masked=True, attached=attached)
    assert rewirer.optimizer is optimizer.fast
    for name, layer in topology_layers(sparse).items():
        twin = masked.get_submodule(name)
        assert layer.topology.equal(twin.topology)
        torch.testing.assert_close(layer.to_dense(), twin.to_dense())
        torch.testing.assert_close(optimizer.state[layer.values]["slow"], twin.of_connections(of_twin.state[twin.weight]["slow"]))


def test_wrappers_that_cannot_be_followed_are_refused():
    model = two_layers()
    optimizer = SGD(model.parameters(), 0.1)
    slow = {"slow": [{"copy": model[0].values.detach().clone()}]}
    with pytest.raises(TypeError, match=r"Wrapper keeps tensors of shape \(33,\) in 'kept', which cannot follow the connections"):
        Rewirer(model, Wrapper(optimizer, kept=slow), RigL())
    Rewirer(model, Wrapper(optimizer, parameters=list(model.parameters())), RigL())
    with pytest.raises(TypeError, match="Wrapper wraps 2 optimizers: make a Rewirer for each, with the layers' own one"):
        Rewirer(model, Wrapper(optimizer, other=SGD(model.parameters(), 0.1)), RigL())
    late = Wrapper(optimizer)
    rewirer = Rewirer(model, late, RigL(), every=1)
    late.kept = slow
    backward(model)
    before = topologies(model)
    with pytest.raises(TypeError, match="Wrapper keeps tensors"):
        rewirer.step()
    assert topologies(model) == before


def test_layers_that_the_optimizer_does_not_hold_stay_and_are_named_once():
    model = two_layers()
    with pytest.warns(UserWarning, match="the optimizer does not hold the parameters of '0': they are neither trained nor rewired"):
        rewirer = Rewirer(model, SGD(model[2].parameters(), 0.1), RigL(0.5), every=2, until=10)
    before = topologies(model)
    for step in range(4):
        model.zero_grad()
        backward(model, step)
        rewirer.step()
    assert model[0].topology is before["0"]
    assert not model[2].topology.equal(before["2"])


def test_a_layer_that_is_unfrozen_and_given_to_the_optimizer_later_rewires_from_then_on():
    model = two_layers()
    model[0].requires_grad_(False)
    optimizer = Adam(model[2].parameters(), 0.01)
    rewirer = Rewirer(model, optimizer, RigL(0.5), every=2, until=20)  # frozen on purpose: nothing to say
    changed = []
    for step in range(8):
        if step == 4:
            model[0].requires_grad_(True)
            optimizer.add_param_group({"params": list(model[0].parameters())})
        before = model[0].topology
        backward(model, step)
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
        changed.append(not model[0].topology.equal(before))
    assert changed == [False] * 5 + [True, False, True]


@pytest.mark.parametrize("algorithm", [RigL(0.5), SET(0.5), MEST()], ids=lambda algorithm: type(algorithm).__name__)
@pytest.mark.parametrize("every", [2, 3])
def test_a_closure_under_attach_is_the_explicit_loop(algorithm, every):
    def run(with_closure):
        model = two_layers()
        optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
        rewirer = Rewirer(model, optimizer, algorithm, every, 20, torch.Generator().manual_seed(0))
        if with_closure:
            rewirer.attach()
        losses = []
        for step in range(8):

            def closure(step=step):
                optimizer.zero_grad()
                for part in range(2):  # accumulated
                    loss = backward(model, 2 * step + part)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
                return loss

            if with_closure:
                losses.append(optimizer.step(closure=closure) if step % 2 else optimizer.step(closure))
            else:
                losses.append(closure())
                if rewirer.step():
                    optimizer.step()
        assert rewirer.steps == 8
        return weights(model), torch.stack(losses)

    (ours, losses), (expected, expected_losses) = run(True), run(False)
    assert all(torch.equal(one, other) for one, other in zip(ours, expected, strict=True))
    assert torch.equal(losses, expected_losses)


def test_closures_that_no_topology_can_be_made_of():
    class Twice(SGD):
        def step(self, closure=None):
            closure()
            return super().step(closure)

    model = two_layers()
    optimizer = Twice(model.parameters(), 0.1)
    rewirer = Rewirer(model, optimizer, RigL(), every=5)

    def closure():
        optimizer.zero_grad()
        return backward(model)

    with pytest.raises(RuntimeError, match=r"optimizer\.step\(closure\) computes gradients after .* call rewirer\.attach\(\) once"):
        optimizer.step(closure)
    handle = rewirer.attach()
    with pytest.raises(RuntimeError, match="Twice runs the closure several times in a step, with gradients of its own each time"):
        optimizer.step(closure)
    with pytest.raises(RuntimeError, match=r"attach\(\) counts each optimizer\.step\(\): do not call step\(\) as well"):
        rewirer.step()
    handle.remove()
    closure()
    assert rewirer.step()


@pytest.mark.parametrize("masked", [False, True])
def test_a_step_that_a_rewiring_replaces_does_nothing_if_it_is_taken_all_the_same(masked):
    def run(heeded):
        model = two_layers(masked)
        optimizer = Adam(model.parameters(), 0.05)
        rewirer = Rewirer(model, optimizer, RigL(0.5), every=2, until=20)
        for step in range(7):
            backward(model, step)
            if rewirer.step() or not heeded:
                optimizer.step()
            optimizer.zero_grad()
        return weights(model)

    assert all(torch.equal(one, other) for one, other in zip(run(True), run(False), strict=True))


def test_a_new_backward_pass_after_the_rewiring_is_stepped():
    model = two_layers()
    optimizer = SGD(model.parameters(), 0.1)
    rewirer = Rewirer(model, optimizer, RigL(), every=1)
    backward(model)
    assert not rewirer.step()
    optimizer.zero_grad()
    backward(model, 1)
    before = model[0].values.detach().clone()
    optimizer.step()
    assert not torch.equal(model[0].values, before)


@pytest.mark.parametrize("unscaled", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_a_gradient_scaler_around_the_explicit_loop(unscaled, masked):
    model = two_layers(masked).float()
    optimizer = SGD(model.parameters(), 0.1)
    seen = []

    def look(topology, signals):
        torch.testing.assert_close(signals.absent.at(topology), signals.gradients)
        seen.append(float(signals.gradients.abs().max()))
        return topology

    spy = Spy(look, replaces_step=True)
    rewirer = Rewirer(model, optimizer, spy, every=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(6):
        x = torch.randn(6, 8, generator=torch.Generator().manual_seed(step))
        with torch.autocast("cpu", torch.float16):
            loss = model(x).float().pow(2).mean()
        scaler.scale(loss).backward()
        if unscaled:
            scaler.unscale_(optimizer)
        assert rewirer.step()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert len(seen) == 6
    assert (max(seen) < 5) == unscaled


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_rewiring_waits_for_a_gradient_of_numbers(bad):
    model = two_layers()
    optimizer = SGD(model.parameters(), 0.1)
    rewirer = Rewirer(model, optimizer, RigL(0.5), every=2, until=20)
    before = topologies(model)
    for step, due in ((1, False), (2, False), (3, True), (4, True)):
        backward(model, step)
        if step == 2:
            model[2].values.grad[0] = bad
        assert rewirer.step() is not due
        assert (rewirer.rewirings > 0) == (step > 2), "it comes at the next step"
        assert (topologies(model) == before) == (step < 3)
        optimizer.zero_grad()


class TestCheckpointsPutBack:
    def start(self, masked=False):
        model = two_layers(masked)
        optimizer = Adam(model.parameters(), 0.05)
        rewirer = Rewirer(model, optimizer, SET(0.5), every=2, until=40, generator=torch.Generator().manual_seed(0))
        return model, optimizer, rewirer

    def train(self, model, optimizer, rewirer, steps):
        for step in steps:
            backward(model, step)
            if rewirer.step():
                optimizer.step()
            optimizer.zero_grad()

    @pytest.mark.parametrize("masked", [False, True])
    def test_without_the_optimizers_state_they_are_refused(self, masked):
        parts = model, optimizer, rewirer = self.start(masked)
        self.train(*parts, range(3))
        best = copy.deepcopy(model.state_dict())
        self.train(*parts, range(3, 7))
        model.load_state_dict(best)
        backward(model)
        for refused in (rewirer.step, optimizer.step):
            with pytest.raises(RuntimeError, match=r"layer '0' has other connections since .* call rewirer\.follow\(\)"):
                refused()
        assert rewirer.steps == 7

    @pytest.mark.parametrize("optimizer_first", [False, True])
    def test_with_it_training_goes_on_from_there(self, optimizer_first):
        parts = model, optimizer, rewirer = self.start()
        self.train(*parts, range(4))
        states = [copy.deepcopy(part.state_dict()) for part in parts]
        self.train(*parts, range(4, 8))
        straight = weights(model)
        for part, state in sorted(zip(parts, states, strict=True), key=lambda pair: (pair[0] is optimizer) != optimizer_first):
            part.load_state_dict(state)
        self.train(*parts, range(4, 8))
        assert all(torch.equal(one, other) for one, other in zip(straight, weights(model), strict=True))
        model.load_state_dict(states[0])  # a second time, and now without the optimizer's
        with pytest.raises(RuntimeError, match="has other connections"):
            rewirer.step()

    def moments(self, layer, optimizer):
        entries = layer.of_connections(optimizer.state[layer.parameter]["exp_avg"])
        return dict(zip(layer.topology.keys.tolist(), entries.tolist(), strict=True))

    def test_the_state_can_follow(self):
        moments = {}
        for masked in (False, True):
            parts = model, optimizer, rewirer = self.start(masked)
            self.train(*parts, range(3))
            best = copy.deepcopy(model.state_dict())
            self.train(*parts, range(3, 7))
            held = {name: self.moments(layer, optimizer) for name, layer in topology_layers(model).items()}
            model.load_state_dict(best)
            rewirer.follow()
            for name, layer in topology_layers(model).items():
                assert self.moments(layer, optimizer) == {key: held[name].get(key, 0.0) for key in layer.topology.keys.tolist()}
                assert set(held[name]) != set(layer.topology.keys.tolist())
            self.train(*parts, range(3, 6))
            moments[masked] = weights(model)
        for one, other in zip(*moments.values(), strict=True):
            torch.testing.assert_close(one, other)

    def test_a_topology_changed_by_hand_is_noticed_unless_the_optimizer_was_told(self):
        model, optimizer, rewirer = self.start()
        self.train(model, optimizer, rewirer, range(1))
        other = model[0].pattern.random(model[0].topology.shape, 20, torch.Generator().manual_seed(1))
        rewire(model[0], optimizer, other)
        backward(model)
        rewirer.step()
        rewire(model[0], None, model[0].pattern.random(model[0].topology.shape, 20, torch.Generator().manual_seed(2)))
        with pytest.raises(RuntimeError, match="layer '0' has other connections"):
            rewirer.step()

    def test_an_optimizer_that_keeps_nothing_has_nothing_to_lose(self):
        model = two_layers()
        optimizer = SGD(model.parameters(), 0.1)
        rewirer = Rewirer(model, optimizer, SET(0.5), every=1, until=40)
        best = copy.deepcopy(model.state_dict())
        self.train(model, optimizer, rewirer, range(3))
        model.load_state_dict(best)
        self.train(model, optimizer, rewirer, range(3))


@pytest.mark.parametrize("masked", [False, True])
def test_a_rewiring_between_forward_and_backward_is_an_error(masked):
    model = two_layers(masked)
    x = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    loss = model(x).sum()
    layer = model[2]
    rewire(layer, None, layer.pattern.random(layer.topology.shape, layer.topology.nnz, torch.Generator().manual_seed(1)))
    with pytest.raises(RuntimeError, match="a sparse layer changed between a forward pass and its backward"):
        loss.backward()
    assert x.grad is None
    model(x).sum().backward()


def test_the_same_where_the_kernels_had_what_was_computed_of_the_values():
    """Values of 16 bits are widened for the kernels: autograd saves the copy, which nothing changes."""
    layer = SparseLinear(8, 6, sparsity=0.5, dtype=torch.bfloat16)
    loss = layer(torch.randn(2, 8, dtype=torch.bfloat16)).sum()
    rewire(layer, None, layer.pattern.random(layer.topology.shape, layer.topology.nnz, torch.Generator().manual_seed(1)))
    with pytest.raises(RuntimeError, match="a sparse layer changed between a forward pass and its backward pass"):
        loss.backward()
    assert layer.values.grad is None


def test_accumulation_holds_no_more_than_the_smaller_of_inputs_and_gradient():
    layer = SparseLinear(64, 64, sparsity=0.9)
    rewirer = Rewirer(layer, SGD(layer.parameters(), 0.1), RigL(), every=1)
    expected = torch.zeros(64, 64)
    for part in range(12):
        x = torch.randn(256, 64, generator=torch.Generator().manual_seed(part))
        y = layer(x)
        y.pow(2).mean().backward()
        expected += (2 * y / y.numel()).detach().T @ x
        held = rewirer._recorder.of("")[-1]
        most = max(64 * 64, 256 * 128)  # the dense gradient, or one pass
        assert sum(one.dy.numel() + one.x.numel() for one in held.passes) + (0 if held.whole is None else held.whole.numel()) <= most
    torch.testing.assert_close(rewirer._recorder.of("")[-1].rows(0, 64), expected)
    assert rewirer._recorder.of("")[-1].whole is not None


@pytest.mark.parametrize("algorithm", [SET(), MEST()], ids=lambda algorithm: type(algorithm).__name__)
def test_algorithms_that_do_not_see_absent_gradients_record_none(algorithm):
    model = two_layers()
    rewirer = Rewirer(model, SGD(model.parameters(), 0.1), algorithm, every=1)
    backward(model)
    assert all(rewirer._recorder.of(name)[-1].empty for name in rewirer.layers)
    assert not any(layer._gradient_hooks for layer in topology_layers(model).values())

    class Curious(Spy):
        sees_absent = False

    curious = Curious(lambda topology, signals: signals.absent.rows(0, 1), replaces_step=True)
    model.zero_grad()
    backward(model)
    with pytest.raises(RuntimeError, match="layer '0': its algorithm says sees_absent = False"):
        Rewirer(model, SGD(model.parameters(), 0.1), curious, every=1).step()


def test_a_layer_that_took_no_part_keeps_its_topology():
    layers = nn.ModuleList(SparseLinear(8, 8, sparsity=0.5) for _ in range(3))
    rewirer = Rewirer(layers, SGD(layers.parameters(), 0.1), RigL(0.5), every=2, until=100)
    for step in range(4):
        before = [layer.topology for layer in layers]
        layers.zero_grad(set_to_none=step < 2)
        x = torch.randn(4, 8)
        for at, layer in enumerate(layers):
            if at != 1 or step % 2 == 0:
                x = x + F.relu(layer(x))
        x.pow(2).sum().backward()
        due = not rewirer.step()
        assert due == (step % 2 == 1)
        assert [layer.topology.equal(old) for layer, old in zip(layers, before, strict=True)] == [not due, True, not due]


def test_layers_made_by_hand_may_change_their_number_of_connections():
    layer = SparseLinear(6, 4, sparsity=0.5)
    out = layer(torch.randn(2, 6))
    rewire(layer, None, made((4, 6), {(0, 1), (3, 5)}))
    with pytest.raises(RuntimeError, match="a sparse layer changed between a forward pass and its backward pass"):
        out.sum().backward()


def test_a_framework_that_leaves_out_a_batch_has_the_rewiring_at_the_next():
    model = two_layers()
    optimizer = SGD(model.parameters(), 0.1)
    rewirer = Rewirer(model, optimizer, RigL(0.5), every=2, until=20)
    rewirer.attach()
    rewirings = []
    for step in range(5):
        optimizer.zero_grad()
        optimizer.step(lambda step=step: backward(model, step) if step != 1 else None)
        rewirings.append(rewirer.rewirings)
    assert rewirings == [0, 0, 1, 2, 2]


def test_a_rewiring_that_is_overdue_is_in_the_checkpoint():
    def start():
        model = two_layers()
        optimizer = SGD(model.parameters(), 0.1)
        return model, optimizer, Rewirer(model, optimizer, RigL(0.5), every=4, until=20)

    parts = model, optimizer, rewirer = start()
    for step in range(4):
        backward(model, step)
        if step == 3:
            model[0].values.grad[0] = float("nan")
        rewirer.step()
        optimizer.zero_grad()
    resumed = start()
    for part, other in zip(resumed, parts, strict=True):
        part.load_state_dict(other.state_dict())
    for one in (parts, resumed):
        backward(one[0], 9)
        assert not one[2].step()
    assert resumed[0][0].topology.equal(model[0].topology)


def test_an_optimizer_that_takes_no_steps_is_noticed():
    model = two_layers()
    old, new = SGD(model.parameters(), 0.1), SGD(model.parameters(), 0.1)
    rewirer = Rewirer(model, old, SET(), every=10, until=1000)

    def train():
        for step in range(60):
            model.zero_grad()
            backward(model, step)
            if rewirer.step():
                new.step()

    with pytest.warns(UserWarning, match=r"the last 50 steps that .* were not taken by the SGD that this Rewirer holds: if training has"):
        train()


def test_a_second_rewirer_of_the_same_layers_is_not_attached():
    """As where a cell of a notebook is run twice."""
    model = two_layers()
    optimizer = SGD(model.parameters(), 0.1)
    first, second = (Rewirer(model, optimizer, SET(), every=2) for _ in range(2))
    first.attach()
    with pytest.raises(RuntimeError, match=r"another Rewirer of these layers is attached to this optimizer, .* detach\(\) it first"):
        second.attach()
    part = Rewirer(model[2], SGD(model[2].parameters(), 0.1), SET(), every=2)
    part.attach()  # another optimizer
    first.detach()
    second.attach()
