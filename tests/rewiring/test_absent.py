"""Gradients and momenta of connections that do not exist: against dense layers and real optimizers that hold them whole."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from truesparse import MaskedConv2d, MaskedLinear, Rewirer, SparseConv2d, SparseLinear, Topology
from truesparse.nn import MaskedLayer, topology_layers
from truesparse.nn.base import Part
from truesparse.rewiring.absent import Gradient, Momentum, Reads, Smoothing
from truesparse.rewiring.dense_gradient import DenseGradient
from truesparse.rewiring.recorder import Recorder
from truesparse.topology import patterns

LAYERS = {
    "linear": ((7, 5), {}, (7,)),
    "convolution": ((3, 4, 3), {"padding": 1, "stride": 2}, (3, 5, 6)),
    "groups": ((4, 6, 2), {"groups": 2, "padding": 1}, (4, 4, 3)),
    "one input each": ((4, 4, 3), {"groups": 4}, (4, 4, 5)),
}
SGD_SMOOTHING, ADAM_SMOOTHING = Smoothing(0.9), Smoothing(0.8, 0.95, 1e-6)


@pytest.fixture(params=[False, True], ids=["sparse", "masked"])
def masked(request):
    return request.param


@pytest.fixture(params=LAYERS)
def layer(request, masked):
    arguments, settings, _ = LAYERS[request.param]
    kinds = (MaskedLinear, MaskedConv2d) if masked else (SparseLinear, SparseConv2d)
    made = kinds[request.param != "linear"](*arguments, **settings, sparsity=0.6, bias=False, dtype=torch.float64)
    made.shape_of_x = LAYERS[request.param][2]
    return made


def whole_part(layer, gradient):
    return Part(layer.parameter, gradient.flatten()[layer.topology.keys], whole=gradient)


def pair_part(layer, dy, x):
    return Part(layer.parameter, layer.gradients_at([(dy, x)], layer.topology), (dy, x))


def recorded(layer, steps, passes=2):
    """(random gradients step by step, what they are by torch's own autograd); a masked layer's are whole from the start."""
    recorded, gradients = [], []
    dense = layer.dense_module().to_empty(device="cpu").to(torch.float64)
    for _ in range(steps):
        total = DenseGradient(layer)
        dense.weight.grad = None
        for _ in range(passes):
            x = torch.randn(3, *layer.shape_of_x, dtype=torch.float64)
            y = dense(x)
            dy = 1e-3 * torch.randn_like(y)  # small: Adam's ratio does not follow
            part = torch.autograd.grad(y, dense.weight, dy, retain_graph=True)[0].flatten(1)
            y.backward(dy)
            total = total.plus(
                DenseGradient.of(layer, whole_part(layer, part) if isinstance(layer, MaskedLayer) else pair_part(layer, dy, x))
            )
        gradients.append(dense.weight.grad.flatten(1).clone())
        recorded.append(total)
    return recorded, gradients


def gradient(steps):
    return Gradient("it", steps, Reads())


def momentum(steps, smoothing):
    return Momentum("it", steps, Reads(), smoothing)


def by_the_optimizer(gradients, smoothing):
    """What torch's own optimizer makes of the dense gradients."""
    weight = nn.Parameter(torch.zeros_like(gradients[0]))
    if smoothing.second is None:
        optimizer = SGD([weight], lr=0.1, momentum=smoothing.first)
    else:
        optimizer = Adam([weight], lr=0.1, betas=(smoothing.first, smoothing.second), eps=smoothing.epsilon)
    for gradient in gradients:
        weight.grad = gradient
        optimizer.step()
    state = optimizer.state[weight]
    return state["momentum_buffer"] if smoothing.second is None else state["exp_avg"] / (state["exp_avg_sq"].sqrt() + smoothing.epsilon)


def assert_answers(absent, expected, layer, monkeypatch):
    """Whole, in parts, at positions, the largest, and the bounds."""
    rows, columns = expected.shape
    torch.testing.assert_close(absent.rows(0, rows), expected)
    torch.testing.assert_close(torch.cat([absent.rows(0, 1), absent.rows(1, rows)]), expected)
    positions = Topology.from_mask(torch.rand(rows, columns) < 0.5)
    torch.testing.assert_close(absent.at(positions), expected.flatten()[positions.keys])
    torch.testing.assert_close(absent.at(layer.topology), expected.flatten()[layer.topology.keys])
    kept = layer.topology.drop(torch.tensor([0]))
    scores = expected.abs().flatten().masked_fill(kept.mask().flatten(), -1)
    for entries in (1 << 20, 1):
        monkeypatch.setattr(patterns, "SLAB_ENTRIES", entries)
        for count in (0, 4, kept.size - kept.nnz):
            assert absent.top(kept, count).tolist() == sorted(scores.topk(count).indices.tolist())
    of_rows, of_columns = absent.bounds()
    assert of_rows.shape == (rows,)
    assert of_columns.shape == (columns,)
    assert (expected.abs() <= torch.outer(of_rows, of_columns) * (1 + 1e-12)).all()


@pytest.mark.parametrize("passes", [1, 3])
def test_the_gradient_is_that_of_the_last_step(layer, passes, monkeypatch):
    steps, gradients = recorded(layer, 3, passes)
    assert_answers(gradient(steps), gradients[-1], layer, monkeypatch)


@pytest.mark.parametrize("smoothing", [SGD_SMOOTHING, ADAM_SMOOTHING], ids=["momentum", "Adam"])
def test_momentum_is_what_the_optimizer_would_hold(layer, smoothing, monkeypatch):
    steps, gradients = recorded(layer, 5)
    assert_answers(momentum(steps, smoothing), by_the_optimizer(gradients, smoothing), layer, monkeypatch)


def test_without_smoothing_momentum_is_the_gradient(layer, monkeypatch):
    steps, gradients = recorded(layer, 3)
    assert_answers(momentum(steps, Smoothing()), gradients[-1], layer, monkeypatch)


def test_what_a_window_cuts_off(layer):
    steps, gradients = recorded(layer, 7)
    rows = layer.topology.shape[0]
    older = by_the_optimizer(gradients[:4], SGD_SMOOTHING)
    torch.testing.assert_close(
        momentum(steps[4:], SGD_SMOOTHING).rows(0, rows), by_the_optimizer(gradients, SGD_SMOOTHING) - 0.9**3 * older
    )
    # Adam divides by what it has of the second moment: both begin with the window.
    torch.testing.assert_close(momentum(steps[4:], ADAM_SMOOTHING).rows(0, rows), by_the_optimizer(gradients[4:], ADAM_SMOOTHING))


@pytest.mark.parametrize("smoothing", [SGD_SMOOTHING, ADAM_SMOOTHING], ids=["momentum", "Adam"])
@pytest.mark.parametrize("without", [0, 1, 3])
def test_a_step_in_which_a_layer_took_no_part_has_gradient_zero(layer, smoothing, without):
    steps, gradients = recorded(layer, 4)
    steps[without], gradients[without] = DenseGradient(layer), torch.zeros_like(gradients[0])
    expected = by_the_optimizer(gradients, smoothing)
    torch.testing.assert_close(momentum(steps, smoothing).rows(0, len(expected)), expected)


def test_a_layer_that_took_no_part_at_all_says_so(layer):
    none = DenseGradient(layer)
    for absent in (gradient([none]), momentum([none, none], SGD_SMOOTHING), momentum([none], ADAM_SMOOTHING)):
        for ask in (lambda a: a.rows(0, 1), lambda a: a.at(layer.topology), lambda a: a.top(layer.topology, 1), lambda a: a.bounds()):
            with pytest.raises(RuntimeError, match=r"layer 'it' took part in no backward pass since the last step\(\)"):
                ask(absent)


def test_passes_become_one_array_before_they_take_more_memory():
    layer = SparseLinear(20, 30, sparsity=0.9)
    cases = {3: [False, False, False, False, True], 6: [False, False, True, False, False, True], 40: [False, True, True]}
    for samples, folded in cases.items():
        total, expected = DenseGradient(layer), torch.zeros(30, 20)
        for at, is_folded in enumerate(folded):
            dy, x = torch.randn(samples, 30), torch.randn(samples, 20)
            total, expected = total.plus(DenseGradient.of(layer, pair_part(layer, dy, x))).scaled(0.5), (expected + dy.T @ x) / 2
            assert sum(one.nbytes for one in total.passes) <= max(layer.topology.size * 4, (samples * 50) * 4), at
            assert (not total.passes) == is_folded, (samples, at)
            torch.testing.assert_close(total.rows(0, 30), expected)
            torch.testing.assert_close(total.at(layer.topology), expected.flatten()[layer.topology.keys])


def test_how_large_adams_ratio_can_be():
    # After one step it is (1 - b1) g / sqrt((1 - b2) g^2) whatever g.
    assert Smoothing(0.9, 0.999).most(1) == pytest.approx(0.1 / 0.001**0.5)
    # After two, the gradient that makes it largest is proportional to the weights of the first over those of the second.
    weights, squares = (0.1, 0.09), (0.001, 0.000999)
    g = [weight / square for weight, square in zip(weights, squares, strict=True)]
    first, second = (sum(w * one**power for w, one in zip(ws, g, strict=True)) for ws, power in ((weights, 1), (squares, 2)))
    assert Smoothing(0.9, 0.999).most(2) == pytest.approx(first / second**0.5)
    assert Smoothing(0.9, 0.0).most(2) == float("inf")
    assert Smoothing(0.0, 0.0).most(2) == 1.0


def test_a_window_is_a_number_of_steps():
    for wrong in (0, 1.0, None):
        with pytest.raises(ValueError, match=f"window is a number of steps, at least 1, got {wrong}"):
            Recorder({}, wrong)


MODEL_INPUT = (3, 5, 6)


def model(masked):
    torch.manual_seed(0)
    linear, convolution = (MaskedLinear, MaskedConv2d) if masked else (SparseLinear, SparseConv2d)
    settings = {"sparsity": 0.5, "dtype": torch.float64}
    return nn.Sequential(
        convolution(3, 4, 3, padding=1, **settings),
        nn.Tanh(),
        convolution(4, 6, 2, stride=2, groups=2, **settings),
        nn.Tanh(),
        nn.Flatten(),
        linear(36, 5, **settings),
    )


class Looks:
    """Notes, at each rewiring, the momentum of what exists and of everything; drops and grows as SET would."""

    def __init__(self, window):
        self.window, self.seen = window, []

    def update(self, topology, signals):
        dense = signals.absent_momentum.rows(0, topology.shape[0])
        self.seen.append(
            (signals.momentum.clone(), signals.absent_momentum.at(topology).clone(), dense, signals.absent_momentum.top(topology, 3))
        )
        return signals.pattern.grow_random(topology.drop(torch.tensor([0, 2])), topology.nnz, signals.generator)


def started(masked, window, make=lambda parameters: Adam(parameters, 0.01), every=5):
    built = model(masked)
    optimizer = make(built.parameters())
    return built, optimizer, Rewirer(built, optimizer, Looks(window), every, 100, torch.Generator().manual_seed(0))


def train(built, optimizer, rewirer, steps):
    for step in steps:
        for part in range(2):
            x = torch.randn(3, *MODEL_INPUT, generator=torch.Generator().manual_seed(10 * step + part), dtype=torch.float64)
            built(x).pow(2).sum().backward()
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: SGD(parameters, 0.01),
        lambda parameters: SGD(parameters, 0.01, momentum=0.8),
        lambda parameters: Adam(parameters, 0.01, betas=(0.7, 0.9), eps=1e-5),
        lambda parameters: AdamW(parameters, 0.01, weight_decay=0.3),
    ],
    ids=["SGD", "momentum", "Adam", "AdamW"],
)
def test_where_there_are_connections_it_is_the_optimizers_own_momentum(masked, make):
    parts = started(masked, 5, make)
    train(*parts, range(5))
    seen = parts[2].algorithm.seen
    assert len(seen) == 3
    for momentum, at_connections, _, _ in seen:
        assert momentum.abs().max() > 0
        torch.testing.assert_close(at_connections, momentum, rtol=1e-8, atol=1e-12)


def test_only_the_window_is_recorded(masked):
    parts, held = started(masked, 3), []
    for step in range(10):
        train(*parts, [step])
        held.append(len(parts[2]._recorder.state()))
    assert held == [0, 0, 1, 2, 0, 0, 0, 1, 2, 0]


def test_a_checkpoint_in_the_middle_of_a_window_goes_on_bit_for_bit(masked):
    straight = started(masked, 4)
    train(*straight, range(8))  # one rewiring and two steps of the window before the next
    assert len(straight[2]._recorder.state()) == 2
    file = io.BytesIO()
    torch.save([part.state_dict() for part in straight], file)
    before = len(straight[2].algorithm.seen)
    train(*straight, range(8, 16))

    file.seek(0)
    resumed = started(masked, 4)
    for part, state in zip(resumed, torch.load(file), strict=True):
        part.load_state_dict(state)
    train(*resumed, range(8, 16))
    expected, found = straight[2].algorithm.seen[before:], resumed[2].algorithm.seen
    assert len(expected) == len(found) == 6
    for ours, theirs in zip(expected, found, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    for name, entry in straight[0].state_dict().items():
        assert torch.equal(entry, resumed[0].state_dict()[name]), name

    without = started(masked, 4)
    for part, state in zip(without, torch.load(io.BytesIO(file.getvalue())), strict=True):
        part.load_state_dict(state if part is not without[2] else {**state, "records": []})
    train(*without, range(8, 16))
    assert not torch.equal(without[2].algorithm.seen[0][2], found[0][2]), "the records matter"


def test_sparse_layers_and_their_twins_see_the_same():
    runs = [started(masked, 4) for masked in (False, True)]
    for built, theirs in zip(*(topology_layers(parts[0]).values() for parts in runs), strict=True):
        assert built.topology.equal(theirs.topology)
    for parts in runs:
        train(*parts, range(11))
    for (_, at, dense, top), (_, their_at, their_dense, their_top) in zip(*(parts[2].algorithm.seen for parts in runs), strict=True):
        torch.testing.assert_close(at, their_at)
        torch.testing.assert_close(dense, their_dense)
        assert torch.equal(top, their_top)


def test_a_copy_of_the_model_records_nothing():
    parts = started(False, 5)
    copied = copy.deepcopy(parts[0])
    copied(torch.randn(1, *MODEL_INPUT, dtype=torch.float64)).sum().backward()
    assert parts[2]._recorder.state() == []
