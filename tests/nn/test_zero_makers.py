"""TopK keeps exactly the k largest, ThresholdReLU what is larger; gradients go where values went; pack, compile and states follow."""

import copy
import math

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import nn

import truesparse as ts
from truesparse.nn import ThresholdReLU, TopK


def winners_by_hand(row, k):
    """Indices, by a sort that keeps the order of equals."""
    return set(sorted(range(len(row)), key=lambda place: -row[place])[:k])


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=1, max_size=4), st.integers(1, 6))
def test_exactly_k_win_and_of_equals_the_first(rows, k):
    x = torch.tensor(rows, dtype=torch.float64) + 10  # no winner is zero
    y = TopK(k)(x)
    assert bool(((y == 0) | (y == x)).all())
    for row, own in zip(rows, y, strict=True):
        assert set(own.nonzero().flatten().tolist()) == winners_by_hand(row, k)


def test_a_share_of_channels_at_each_position():
    x = torch.randn(2, 10, 3, 4)
    y = TopK(0.25, dim=1)(x)
    assert torch.equal((y != 0).sum(1), torch.full((2, 3, 4), 2))  # 2.5 rounds to the even one
    assert torch.equal(y.amax(1), x.amax(1))
    assert int((TopK(0.01)(torch.rand(1, 8) + 1) != 0).sum()) == 1, "at least one"


def test_gradients_flow_through_winners_alone():
    x = torch.tensor([[3.0, -1.0, 2.0, 5.0]], dtype=torch.float64, requires_grad=True)
    layer = TopK(2)
    weights = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    (layer(x) * weights).sum().backward()
    assert x.grad.tolist() == [[1.0, 0.0, 0.0, 4.0]]
    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradgradcheck(lambda x: layer(x) ** 2, x)


def test_what_is_not_a_number_wins_and_is_seen():
    x = torch.tensor([[1.0, math.nan, math.inf, -math.inf, 2.0]])
    y = TopK(3)(x)[0]
    assert bool(y[1].isnan())
    assert y[2] == math.inf
    assert y[4] == 2
    assert y[0] == y[3] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    x = torch.randn(5, 40).to(dtype)
    for layer in (TopK(7), TopK(7, boost=1.0, units=40), ThresholdReLU(0.25), ThresholdReLU(0.25, shift=True)):
        y = layer.to(dtype)(x)
        assert y.dtype == dtype
    assert torch.equal((TopK(40)(x)), x)


def test_boost_lifts_those_that_never_win():
    """Duties are the averages of equation 8, boosts exp(beta (a - d)) of equation 9, and the value itself stays."""
    layer = TopK(1, boost=2.0, units=3, momentum=0.5)
    x = torch.tensor([[1.0, 0.9, 0.1], [1.0, 0.9, 0.1]])
    duty = torch.full((3,), 1 / 3)
    seen = set()
    for _ in range(20):
        boosted = x[0] * torch.exp(2.0 * (1 / 3 - duty))
        winner = int(boosted.argmax())
        y = layer(x)
        assert y[0].nonzero().flatten().tolist() == [winner]
        assert y[0, winner] == x[0, winner]
        duty = 0.5 * duty + 0.5 * F.one_hot(torch.tensor(winner), 3)
        torch.testing.assert_close(layer.duty, duty)
        seen.add(winner)
    assert seen == {0, 1}
    before = layer.duty.clone()
    layer.eval()(x)
    assert torch.equal(layer.duty, before), "duties change in training only"
    convolution = TopK(2, dim=1, boost=1.0, units=5)
    convolution(torch.randn(4, 5, 3, 3))
    assert float(convolution.duty.sum()) == pytest.approx(2.0)


def test_states_and_copies():
    layer = TopK(2, boost=1.0, units=6)
    layer(torch.randn(8, 6))
    other = TopK(2, boost=1.0, units=6)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.duty, layer.duty)
    assert TopK(2).state_dict() == {}
    relu = ThresholdReLU(0.5)
    again = ThresholdReLU()
    again.load_state_dict(relu.state_dict())
    assert float(copy.deepcopy(again).threshold) == 0.5
    assert repr(relu) == "ThresholdReLU(0.5)"
    assert repr(ThresholdReLU(1, shift=True)) == "ThresholdReLU(1, shift=True)"
    assert repr(TopK(0.1, dim=1)) == "TopK(0.1, dim=1)"
    assert repr(layer) == "TopK(2, dim=-1, boost=1.0, units=6, momentum=0.1)"


def test_thresholds_by_hand():
    x = torch.tensor([-1.0, 0.0, 0.5, 0.75, 2.0, math.nan, math.inf], requires_grad=True)
    jump = ThresholdReLU(0.5)(x)
    assert jump[:5].tolist() == [0, 0, 0, 0.75, 2]
    assert bool(jump[5].isnan())
    assert jump[6] == math.inf
    shifted = ThresholdReLU(0.5, shift=True)(x)
    assert shifted[:5].tolist() == [0, 0, 0, 0.25, 1.5]
    shifted[:5].sum().backward()
    assert x.grad[:5].tolist() == [0, 0, 0, 1, 1]
    torch.testing.assert_close(ThresholdReLU()(x.detach()[:5]), x.detach()[:5].relu())


def test_a_threshold_set_from_what_it_is_given():
    given_ = torch.randn(1000)
    relu = ThresholdReLU()
    relu.threshold.fill_(given_.quantile(0.9))
    assert float((relu(given_) == 0).float().mean()) == pytest.approx(0.9)


def networks():
    torch.manual_seed(0)
    for zeros in (TopK(6), TopK(0.1, boost=1.0, units=64), ThresholdReLU(0.8), ThresholdReLU(0.8, shift=True)):
        yield nn.Sequential(nn.Linear(20, 64), zeros, ts.SparseLinear(64, 30, sparsity=0.5), nn.ReLU(), nn.Linear(30, 5)).eval()


def test_pack_follows_them():
    x = torch.randn(1, 20)
    for model in networks():
        fast = ts.pack(model, x, tune=False)
        assert fast.explain().untraced == ""
        for batch in (1, 7):
            other = torch.randn(batch, 20)
            torch.testing.assert_close(fast(other), model(other))
        assert fast.explain().rows[1].zeros > 0.5


def test_neurons_before_a_threshold_can_go_and_those_before_winners_stay():
    for zeros, left in ((ThresholdReLU(0.5), 63), (TopK(6), 64)):
        model = nn.Sequential(nn.Linear(20, 64), zeros, nn.Linear(64, 5)).eval()
        with torch.no_grad():
            model[2].weight[:, 9] = 0
        x = torch.randn(4, 20)
        fast = ts.pack(model, x, tune=False)
        assert fast.explain().rows[0].change.neurons == (64, left)
        torch.testing.assert_close(fast(x), model(x))


@pytest.mark.parametrize("training", [False, True])
def test_torch_compile(training):
    for model in networks():
        model.train(training)
        twin = copy.deepcopy(model)
        compiled = torch.compile(model[:2], fullgraph=True, backend="aot_eager")
        for _ in range(2):
            x = torch.randn(9, 20, requires_grad=True)
            y, wanted = compiled(x), twin[:2](x)
            torch.testing.assert_close(y, wanted)
            gradients = [torch.autograd.grad(own.square().sum(), x)[0] for own in (y, wanted)]
            torch.testing.assert_close(*gradients)
        assert all(torch.equal(model.state_dict()[name], array) for name, array in twin.state_dict().items())


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: TopK(0), "k is a number of winners, an int of at least 1, or their share, a float between 0 and 1; got 0"),
        (lambda: TopK(True), "got True"),
        (lambda: TopK(1.0), r"got 1\.0"),
        (lambda: TopK(1, boost=-1.0, units=3), r"boost must be at least 0, got -1\.0"),
        (lambda: TopK(1, boost=1.0), "boost needs a duty for each unit: pass units="),
        (lambda: TopK(1, momentum=0.0), r"momentum must be more than 0 and at most 1, got 0\.0"),
        (lambda: TopK(1, units=0), "units must be at least 1, got 0"),
        (lambda: TopK(5)(torch.zeros(2, 3)), "5 units shall win, but dimension -1 of the input has only 3"),
        (lambda: TopK(1, units=4)(torch.zeros(2, 3)), "made for 4 units that compete, but dimension -1 of the input has 3"),
        (lambda: ThresholdReLU(math.inf), "threshold must be finite, got inf"),
    ],
)
def test_what_cannot_be(build, says):
    with pytest.raises(ValueError, match=says):
        build()
