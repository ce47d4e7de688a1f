"""Recurrent modules whose matrices are layers: they are torch's own in value, gradient and shape, and train as their masked twins do."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from training import topologies

import truesparse as ts
from truesparse.nn import topology_layers
from truesparse.nn.opened import OpenedCell, OpenedRecurrent

KINDS = (nn.LSTM, nn.GRU, nn.RNN)
CELLS = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
UNIFORM = ts.Uniform(dense_first=False)


@st.composite
def modules(draw):
    """A dense recurrent module of float64, with any of torch's options."""
    kind, layers = draw(st.sampled_from(KINDS)), draw(st.integers(1, 3))
    chosen = {name: draw(st.booleans()) for name in ("bias", "batch_first", "bidirectional")}
    if layers > 1:
        chosen["dropout"] = draw(st.sampled_from([0.0, 0.4]))
    if kind is nn.LSTM:
        chosen["proj_size"] = draw(st.sampled_from([0, 3]))
    if kind is nn.RNN:
        chosen["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    return kind(4, 5, layers, **chosen).double()


def inputs(module, form, lengths):
    """(input, initial state) in one of the forms that torch takes."""
    samples, directions = len(lengths), module.num_layers * (1 + module.bidirectional)
    sizes = (module.proj_size or module.hidden_size, module.hidden_size)[: 1 + isinstance(module, nn.LSTM)]
    if form == "packed":
        x = pack_sequence([torch.randn(length, 4).double() for length in lengths], enforce_sorted=False)
    else:
        shape = (samples, lengths[0]) if module.batch_first else (lengths[0], samples)
        x = torch.randn(*(shape if form == "batched" else lengths[:1]), 4).double()
    state = tuple(torch.randn(directions, *(() if form == "unbatched" else (samples,)), size).double() for size in sizes)
    return x, state if len(state) == 2 else state[0]


def flat(result):
    """All tensors of a result, and of a packed sequence how it is packed."""
    y, state = result
    outputs = [y.data, y.batch_sizes, y.sorted_indices, y.unsorted_indices] if isinstance(y, PackedSequence) else [y]
    return [*outputs, *(state if isinstance(state, tuple) else (state,))]


def assert_same(one, other):
    for ours, theirs in zip(flat(one), flat(other), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@settings(max_examples=30)
@given(
    module=modules(),
    form=st.sampled_from(["batched", "unbatched", "packed"]),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    started=st.booleans(),
    training=st.booleans(),
)
def test_outputs_and_gradients_are_those_of_torch(module, form, lengths, started, training):
    sparse = ts.sparsify(copy.deepcopy(module), 0.5, UNIFORM).train(training)
    dense = ts.densify(copy.deepcopy(sparse))
    assert isinstance(sparse, OpenedRecurrent)
    assert type(dense) is type(module)
    x, state = inputs(module, form, lengths)
    results = []
    for model in (sparse, dense):
        torch.manual_seed(3)  # of dropout
        result = model(x, state) if started else model(x)
        results.append(result)
        sum(one.sin().sum() for one in flat(result) if one is not None and one.is_floating_point()).backward()
    assert_same(*results)
    for name, parameter in dense.named_parameters():
        kind, _, layer = name.partition("_")
        ours = sparse.get_submodule(layer)
        if kind == "bias":
            torch.testing.assert_close(ours.bias.grad, parameter.grad)
        else:
            torch.testing.assert_close(ours.values.grad, parameter.grad.flatten()[ours.topology.keys])


@settings(max_examples=15)
@given(module=modules())
def test_it_closes_to_what_it_was_opened_from(module):
    module.eval().requires_grad_(False)
    closed = OpenedRecurrent.opening(module).closed()
    assert repr(closed) == repr(module)
    assert not closed.training
    assert {name: id(one) for name, one in closed.named_parameters()} == {name: id(one) for name, one in module.named_parameters()}
    x, state = inputs(module, "batched", [3, 3])
    assert_same(closed(x, state), module(x, state))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("samples", [(), (3,)], ids=["unbatched", "batched"])
@pytest.mark.parametrize(
    ("kind", "settings"), [*((kind, {}) for kind in CELLS), (nn.RNNCell, {"nonlinearity": "relu"})], ids=lambda value: str(value)
)
def test_cells_are_those_of_torch(kind, settings, samples, bias):
    sparse = ts.sparsify(kind(4, 5, bias, **settings).double(), 0.5, UNIFORM)
    dense = ts.densify(copy.deepcopy(sparse))
    assert isinstance(sparse, OpenedCell)
    assert repr(dense) == repr(kind(4, 5, bias, **settings))
    x, h, c = (torch.randn(*samples, size).double() for size in (4, 5, 5))
    for state in (None, (h, c) if kind is nn.LSTMCell else h):
        ours, theirs = sparse(x, state), dense(x, state)
        assert type(ours) is type(theirs)
        torch.testing.assert_close(ours, theirs)


class Reader(nn.Module):
    """Two layers of LSTM both ways, a cell, and an answer."""

    def __init__(self):
        super().__init__()
        self.memory, self.cell, self.answer = nn.LSTM(6, 8, 2, bidirectional=True, dropout=0.2), nn.GRUCell(16, 5), nn.Linear(5, 3)

    def forward(self, x):
        states, state = self.memory(x)[0], None
        for one in states:
            state = self.cell(one, state)
        return self.answer(state)


def reader(masked=False):
    torch.manual_seed(0)
    return ts.sparsify(Reader().double(), 0.7, masked=masked, generator=torch.Generator().manual_seed(1))


LAYERS = [f"memory.{part}_l{layer}{way}" for layer in (0, 1) for way in ("", "_reverse") for part in ("ih", "hh")]


def test_each_matrix_is_a_layer_that_is_counted_named_and_left_out_as_others_are():
    model = reader()
    assert list(topology_layers(model)) == [*LAYERS, "cell.ih", "cell.hh", "answer"]
    assert model.memory.ih_l1.topology.shape == (32, 16)
    torch.manual_seed(0)
    some = ts.sparsify(Reader(), 0.7, exclude=("memory.hh_*", nn.GRUCell), sparsities={"memory": 0.5})
    assert list(topology_layers(some)) == [name for name in LAYERS if ".ih_" in name] + ["answer"]
    assert isinstance(some.cell, nn.GRUCell)
    assert {layer.topology.sparsity for name, layer in topology_layers(some).items() if name != "answer"} == {0.5}
    assert torch.isfinite(some(torch.randn(4, 2, 6))).all()


@pytest.mark.parametrize("algorithm", [ts.RigL(0.3), ts.SET(0.3), ts.GMP(0.8)], ids=str)
def test_training_equals_that_of_the_masked_twin(algorithm):
    losses, made = {}, {}
    for masked in (False, True):
        model = made[masked] = reader(masked)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        rewirer = ts.Rewirer(model, optimizer, algorithm, every=3, until=10, generator=torch.Generator().manual_seed(2))
        generator, losses[masked] = torch.Generator().manual_seed(3), []
        torch.manual_seed(4)
        for _ in range(10):
            x = torch.randn(4, 4, 6, generator=generator, dtype=torch.float64)
            loss = nn.functional.cross_entropy(model(x), torch.tensor([0, 1, 2, 0]))
            loss.backward()
            clip_grad_norm_(model.parameters(), 0.5)
            losses[masked].append(loss.item())
            if rewirer.step():
                optimizer.step()
            optimizer.zero_grad()
        assert rewirer.rewirings >= 3
    torch.testing.assert_close(losses[False], losses[True], rtol=1e-8, atol=0)
    for ours, theirs in zip(topologies(made[False]).values(), topologies(made[True]).values(), strict=True):
        assert ours.equal(theirs)


def test_a_matrix_that_is_used_at_every_step_tells_of_its_gradient_once():
    model = ts.sparsify(nn.LSTM(6, 8).double(), 0.7)
    parts = []
    model.hh_l0.register_gradient_hook(parts.append)
    model(torch.randn(5, 4, 6).double())[0].sum().backward()
    (part,) = parts
    assert part.pair[0].shape == (20, 32)
    torch.testing.assert_close(part.present, model.hh_l0.values.grad)
    torch.testing.assert_close((part.pair[0].T @ part.pair[1]).flatten()[model.hh_l0.topology.keys], model.hh_l0.values.grad)


def test_backward_passes_that_end_early_or_come_twice_leave_nothing_behind():
    model = ts.sparsify(nn.GRU(6, 8).double(), 0.7)
    x = torch.randn(5, 4, 6).double().requires_grad_()
    once = torch.autograd.grad(model(x)[0].pow(2).sum(), model.hh_l0.values)[0]
    y = model(x)[0]
    torch.autograd.grad(y.sum(), x, retain_graph=True)  # ends before it comes to the values
    loss = y.pow(2).sum()
    loss.backward(retain_graph=True)
    torch.testing.assert_close(model.hh_l0.values.grad, once)
    loss.backward()
    torch.testing.assert_close(model.hh_l0.values.grad, 2 * once)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_gradients(kind):
    sparse = ts.sparsify(kind(3, 4).double(), 0.5)
    dense = ts.densify(copy.deepcopy(sparse))
    x, found = torch.randn(4, 2, 3).double().requires_grad_(), []
    for model in (sparse, dense):
        (slope,) = torch.autograd.grad(model(x)[0].pow(2).sum(), x, create_graph=True)
        slope.pow(2).sum().backward()
    for layer, weight in ((sparse.ih_l0, dense.weight_ih_l0), (sparse.hh_l0, dense.weight_hh_l0)):
        torch.testing.assert_close(layer.values.grad, weight.grad.flatten()[layer.topology.keys])
        found.append(layer.bias.grad)
    torch.testing.assert_close(found, [dense.bias_ih_l0.grad, dense.bias_hh_l0.grad])


def test_a_hook_on_a_matrix_is_called_at_every_step():
    model = ts.sparsify(nn.LSTM(6, 8).double(), 0.7)
    x, calls = torch.randn(5, 4, 6).double(), []
    expected = model(x)
    handle = model.hh_l0.register_forward_hook(lambda *_: calls.append(1))
    assert_same(model(x), expected)
    assert len(calls) == 5
    handle.remove()


def test_frozen_values_and_no_gradient_at_all():
    model, x = ts.sparsify(nn.LSTM(6, 8).double(), 0.7), torch.randn(5, 4, 6).double()
    with torch.no_grad():
        expected = model(x)
    model.hh_l0.requires_grad_(False)
    result = model(x)
    assert_same(result, expected)
    result[0].sum().backward()
    assert model.hh_l0.values.grad is None
    assert model.ih_l0.values.grad is not None


def test_under_autocast_it_follows_the_layers():
    model, x = ts.sparsify(nn.LSTM(6, 8, 2), 0.5), torch.randn(5, 4, 6)
    expected = model(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)[0]
    y.float().sum().backward()
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_copies_states_and_files_are_the_same_network(tmp_path):
    model, x = reader().eval(), torch.randn(5, 4, 6).double()
    y = model(x)
    other = ts.sparsify(Reader().double(), 0.2).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), y)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(x), y)
    ts.save(model, tmp_path / "reader.ts")
    filled = ts.sparsify(Reader().double(), 0.2).eval()
    assert torch.equal(ts.load(tmp_path / "reader.ts", filled)(x), y)
    dense = ts.load(tmp_path / "reader.ts", Reader().double().eval())
    assert isinstance(dense.memory, nn.LSTM)
    torch.testing.assert_close(dense(x), y)
    closed = ts.densify(copy.deepcopy(model))
    assert closed.state_dict().keys() == Reader().state_dict().keys()
    torch.testing.assert_close(closed(x), y)


def test_a_packed_network_takes_any_length():
    model = ts.sparsify(Reader(), 0.7).eval()
    packed = ts.pack(model, torch.randn(5, 4, 6), tune=False)
    assert {row.layer for row in packed.explain().rows} == {*LAYERS, "cell.ih", "cell.hh", "answer"}
    for shape in ((5, 4, 6), (9, 2, 6)):
        x = torch.randn(shape)
        torch.testing.assert_close(packed(x), model(x))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda model: model(torch.randn(5, 4, 7)), r"expected an input of shape \(L, N, 6\) or \(L, 6\), got \(5, 4, 7\)"),
        (lambda model: model(torch.randn(6)), r"expected an input of shape .*, got \(6,\)"),
        (lambda model: model(torch.randn(0, 4, 6)), "expected a sequence of at least one step"),
        (
            lambda model: model(torch.randn(5, 4, 6), (torch.zeros(1, 4, 8), torch.zeros(1, 3, 8))),
            r"expected a pair \(h, c\) of shapes \(1, 4, 8\) and \(1, 4, 8\), got \(1, 4, 8\), \(1, 3, 8\)",
        ),
        (lambda model: model(torch.randn(5, 4, 6), torch.zeros(1, 4, 8)), r"expected a pair \(h, c\)"),
        (lambda model: model(pack_sequence([torch.randn(2, 5)])), r"expected packed inputs of 6 features, got shape \(2, 5\)"),
    ],
)
def test_what_does_not_fit_is_told(call, says):
    with pytest.raises(ValueError, match=says):
        call(ts.sparsify(nn.LSTM(6, 8), 0.5))


def test_cells_tell_what_does_not_fit():
    cell = ts.sparsify(nn.GRUCell(6, 8), 0.5)
    with pytest.raises(ValueError, match=r"expected an input of shape \(batch, 6\) or \(6,\), got \(2, 5\)"):
        cell(torch.randn(2, 5))
    with pytest.raises(ValueError, match=r"expected a state of shape \(2, 8\), got \(3, 8\)"):
        cell(torch.randn(2, 6), torch.zeros(3, 8))


def test_a_subclass_or_a_weight_that_is_made_anew_is_refused():
    class Own(nn.LSTM):
        pass

    with pytest.raises(TypeError, match=r"layer '1' \(Own\) .* a subclass of LSTM whose own behaviour would be lost"):
        ts.sparsify(nn.ModuleList([nn.Linear(6, 6), Own(6, 6)]), 0.5)
    normed = nn.utils.parametrizations.weight_norm(nn.LSTM(6, 6), "weight_hh_l0")
    with pytest.raises(TypeError, match=r"has a weight_hh_l0 that is made anew in every forward pass by weight_norm"):
        ts.sparsify(nn.ModuleList([nn.Linear(6, 6), normed]), 0.5)
