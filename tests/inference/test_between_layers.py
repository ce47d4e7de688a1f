"""What lies between packed layers: sums and activations that became part of them, and runs that need no Python. The oracle is float64."""

import copy
import itertools
import pickle

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import nn

import truesparse as ts
from truesparse import _core
from truesparse.bench.networks import resnet20
from truesparse.inference import FusedLayer, simplify
from truesparse.inference.layouts import Epilogue
from truesparse.inference.native import LINE, NOTHING, Run, _planned, _Step
from truesparse.inference.packed import PackedLayer


def conv(inputs, outputs, kernel=3, stride=1):
    return ts.sparsify(nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)), 0.7)[0]


class Net(nn.Module):
    """Two convolutions of four channels and a linear layer, in the way that `way` says."""

    def __init__(self, way):
        super().__init__()
        self.a, self.b, self.c = conv(4, 4), conv(4, 4), conv(4, 4, 1)
        self.norm, self.relu, self.dropout = nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5)
        self.score = nn.Linear(4, 5)
        self.way = way

    def forward(self, x):
        return self.way(self, x)


def residual(net, x):
    return F.relu(net.b(F.relu(net.a(x))) + x)


def other_order(net, x):
    y = net.a(x)
    return F.relu(y + net.norm(net.b(y)))


def in_place(net, x):
    y = net.a(x)
    y += x
    return net.relu(y)


def into_the_shortcut(net, x):
    y = F.relu(net.a(x))
    z = y.view_as(y)
    y.add_(net.b(y))
    return y * z  # z is y


def chain(net, x):
    for layer in (net.a, net.b, net.a, net.c):
        x = net.dropout(F.relu(layer(x) + x))
    return net.score(x.mean((2, 3)))


def projected_later(net, x):
    y = net.a(x)
    return F.relu6(y + net.c(x))


def used_twice(net, x):
    y = net.a(x) + x
    return net.b(F.relu(y)) + y, y


def twice_itself(net, x):
    y = net.a(x)
    return torch.relu(y + y)


def of_other_size(net, x):
    return F.relu(net.a(x) + x[:, :1])


def with_and_without(net, x):
    return F.relu(net.a(F.relu(net.a(x))) + x)


def scaled(net, x):
    return torch.add(net.a(x), x, alpha=2)


def gelu(net, x):
    return F.gelu(net.a(x) + x), {"tanh": torch.tanh(net.b(x).add(x)), "pool": F.max_pool2d(F.relu(net.c(x) + x), 2)}


def written_between(net, x):
    y = F.relu(net.a(x))
    z = net.b(y)
    y.mul_(2)  # after b has read it
    return F.relu(z + y)


def shortcut_of_zeros(net, x):
    y = F.relu(net.a(x))
    shorter = F.pad(y[:, :2, ::2, 1::2], (0, 1, 1, 0, 1, 1))
    return F.relu(net.c(F.pad(net.b(y)[:, :, ::2, 1::2], (0, 1, 1, 0))) + shorter)


def sizes(net, x):
    batch = x.size(0)
    y = net.b(F.relu(net.a(x)))
    y = net.score(y.mean((2, 3)).view(batch, 4)) + batch
    z = net.c(net.b(x)).flatten(2).transpose(1, 2)
    return y, net.score(z.reshape(-1, z.shape[-1])).view(batch, -1)


def taken_by_places(net, x):
    y = net.b(F.relu(net.a(x)))
    return net.c(net.a(y[:, [3, 2, 1, 0]])), net.c(net.b(y[torch.arange(x.shape[0]).flip(0)]))


def views_written_later(net, x):
    y = net.b(net.a(x))
    even, odd = y[:, ::2], y[:, 1::2]
    even.add_(1)
    return y, odd, net.c(net.a(y))


FUSED = {
    **{residual: 1, other_order: 1, in_place: 1, into_the_shortcut: 0, chain: 4, projected_later: 1, used_twice: 2, twice_itself: 0},
    **{of_other_size: 0, with_and_without: 1, scaled: 0, gelu: 3, written_between: 0, shortcut_of_zeros: 1},
    **{sizes: 0, taken_by_places: 0, views_written_later: 0},
}


def same(given, expected):
    if isinstance(expected, torch.Tensor):
        assert given.dtype == torch.float32
        torch.testing.assert_close(given.double(), expected, rtol=1e-5, atol=2e-6)
    elif isinstance(expected, dict):
        assert given.keys() == expected.keys()
        for name in expected:
            same(given[name], expected[name])
    else:
        assert len(given) == len(expected)
        for one, other in zip(given, expected, strict=True):
            same(one, other)


def trained(way):
    torch.manual_seed(0)
    net = Net(way)
    net.norm.running_mean, net.norm.running_var = torch.randn(4), torch.rand(4) + 0.5
    return net.eval()


def runs_of(packed):
    return [module for module in packed._runs[0].modules() if isinstance(module, Run)]


def plans_of(packed):
    return [plan for run in runs_of(packed) for plan in run._plans.values()]


@pytest.mark.parametrize("way", FUSED, ids=lambda way: way.__name__)
def test_sums_of_every_kind(way):
    net, x = trained(way), torch.randn(2, 4, 9, 16)
    oracle = ts.densify(copy.deepcopy(net)).double()
    graph = simplify(net, x).module.graph
    fused = [node for node in graph.nodes if node.op == "call_module" and len(node.args) == 2]
    assert len(fused) == FUSED[way]
    packed = ts.pack(net, x, tune=False)
    for shape in ((2, 4, 9, 16), (1, 4, 9, 16), (17, 4, 8, 8), (3, 4, 11, 13)):
        x = torch.randn(shape)
        before, expected = x.clone(), oracle(x.double())
        with torch.inference_mode():
            for _ in range(2):  # by torch, then by the program
                same(packed(x), expected)
        if way is not in_place:
            assert torch.equal(x, before)
    assert not runs_of(packed) or any(plan.program is not None for plan in plans_of(packed))


def test_explanation_names_what_is_fused():
    packed = ts.pack(trained(residual), torch.randn(1, 4, 8, 8), tune=False)
    changes = {row.layer: row.change for row in packed.explain().rows}
    assert (changes["a"].adds, changes["a"].activation) == (False, "ReLU()")
    assert (changes["b"].adds, changes["b"].activation) == (True, "ReLU()")
    said = str(packed.explain())
    assert "planes, sum, ReLU" in said
    assert said.endswith("2 of 2 layers run without Python between them")
    tanh = ts.pack(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)).eval(), torch.randn(1, 8), tune=False)
    assert "without Python" not in str(tanh.explain())


def test_resnet_is_one_run():
    torch.manual_seed(0)
    model = ts.sparsify(resnet20(), 0.9)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean, module.running_var = torch.randn_like(module.running_mean), torch.rand_like(module.running_var) + 0.5
    model.eval()
    oracle = ts.densify(copy.deepcopy(model)).double()
    packed = ts.pack(model, torch.randn(1, 3, 32, 32), tune=False)
    assert [node.op for node in packed._runs[0].graph.nodes] == ["placeholder", "call_module", "call_function", "output"]
    with torch.inference_mode():
        for shape in ((1, 3, 32, 32), (2, 3, 32, 32), (1, 3, 40, 24)):
            x = torch.randn(shape)
            packed(x)
            assert all(plan.program is not None for plan in plans_of(packed))
            expected = oracle(x.double())
            assert float((packed(x) - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_a_size_that_is_asked_for_before_a_run_ends_none():
    def asked(net, x):
        batch, height = x.size(0), x.shape[2]
        y = F.relu(net.a(x))
        return torch.tanh(net.c(net.b(y.view(-1, 4, height, y.shape[3]))).mean((2, 3)).view(batch, -1))

    packed = ts.pack(trained(asked), torch.randn(2, 4, 8, 8), tune=False)
    assert str(packed.explain()).endswith("3 of 3 layers run without Python between them")
    x = torch.randn(3, 4, 9, 8)
    with torch.inference_mode():
        for _ in range(2):
            same(packed(x), ts.densify(trained(asked)).double()(x.double()))


def test_runs_give_what_the_graph_gives_bit_for_bit():
    packed = ts.pack(trained(chain), torch.randn(2, 4, 16, 16), tune=False)
    x = torch.randn(2, 4, 16, 16)
    with torch.inference_mode():
        packed(x)
        first, second = packed(x), packed(x)
        assert first.data_ptr() != second.data_ptr()
        assert torch.equal(first, second)
        torch.testing.assert_close(first, packed.graph(x), rtol=1e-6, atol=1e-6)


def test_inputs_that_are_not_contiguous_and_of_other_kinds():
    net = trained(residual)
    oracle = ts.densify(copy.deepcopy(net)).double()
    packed, x = ts.pack(net, torch.randn(2, 4, 8, 8), tune=False), torch.randn(2, 8, 8, 4).permute(0, 3, 1, 2)
    for _ in range(2):
        with torch.no_grad():
            same(packed(x), oracle(x.double()).detach())
            same(packed(nn.Parameter(x.contiguous())).detach(), oracle(x.double()).detach())
        with pytest.raises(TypeError, match="computes in float32, got an input of"):
            packed(x.double())
        with pytest.raises(RuntimeError, match="gives no gradients"):
            packed(x.detach().contiguous().requires_grad_())
        with pytest.raises(ValueError, match=r"4, height, width|\(batch, 4|of 4 channels|4"):
            packed(torch.randn(2, 5, 8, 8))


def test_hooks_put_on_later_are_called():
    packed, x = ts.pack(trained(residual), torch.randn(1, 4, 8, 8), tune=False), torch.randn(1, 4, 8, 8)
    with torch.inference_mode():
        before = [packed(x) for _ in range(2)][1]
        called = []
        handle = packed.graph.get_submodule("b").register_forward_hook(lambda module, given, result: called.append(len(given)))
        assert torch.equal(packed(x), before)
        assert called == [2]
        handle.remove()
        packed(x)
        assert called == [2]


@pytest.mark.parametrize("way", [copy.deepcopy, lambda packed: pickle.loads(pickle.dumps(packed))], ids=["deepcopy", "pickle"])
def test_copies_run_as_well(way):
    packed, x = ts.pack(trained(chain), torch.randn(1, 4, 8, 8), tune=False), torch.randn(1, 4, 8, 8)
    with torch.inference_mode():
        expected = [packed(x) for _ in range(2)][1]
        copied = way(packed)
        del packed
        for _ in range(2):
            assert torch.equal(copied(x), expected)
        assert plans_of(copied)[0].program is not None


def test_plans_of_many_sizes_are_few():
    packed = ts.pack(trained(residual), torch.randn(1, 4, 8, 8), tune=False)
    oracle = ts.densify(trained(residual)).double()
    with torch.inference_mode():
        for batch, _ in itertools.product(range(1, 8), range(2)):
            x = torch.randn(batch, 4, 8, 8)
            same(packed(x), oracle(x.double()))
    assert len(plans_of(packed)) == 4


def test_a_network_of_linear_layers_with_leading_dimensions():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 96), nn.GELU(), nn.Linear(96, 24), nn.ReLU6(), nn.Linear(24, 7)).eval()
    model = ts.sparsify(model, 0.8)
    oracle = ts.densify(copy.deepcopy(model)).double()
    packed = ts.pack(model, torch.randn(3, 5, 24), tune=False)
    assert not any(isinstance(module, (nn.GELU, nn.ReLU6)) for module in packed.modules())
    with torch.inference_mode():
        for shape in ((3, 5, 24), (1, 24), (24,), (200, 24), (0, 24)):
            x = torch.randn(shape)
            for _ in range(2):
                same(packed(x), oracle(x.double()))


@pytest.mark.parametrize("isa", _core.supported_isas())
@pytest.mark.parametrize("count", [0, 1, 7, 16, 33, 40_000])
def test_epilogues_are_what_torch_computes(isa, count):
    before = _core.isa()
    _core.use_isa(isa)
    try:
        y, added = 4 * torch.randn(count), 4 * torch.randn(count)
        epilogues = Epilogue(), Epilogue(True), Epilogue(least=0.0), Epilogue(True, -0.1, 2.0)
        for epilogue, extra in itertools.product(epilogues, (None, added)):
            expected = y.double() if extra is None else (y + extra).double()
            expected = (F.gelu(expected) if epilogue.gelu else expected).clamp(epilogue.least, epilogue.most)
            torch.testing.assert_close(epilogue(y.clone(), extra).double(), expected, rtol=1e-6, atol=2e-6)
        if count:
            y[0] = torch.nan
            assert Epilogue(least=0.0)(y.clone())[0].isnan()
            assert Epilogue(True)(y.clone())[0].isnan()
    finally:
        _core.use_isa(before)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 9)] * 3), min_size=1, max_size=20), st.lists(st.integers(1, 50), min_size=10, max_size=10))
def test_places_in_use_at_a_time_do_not_overlap(drawn, sizes):
    steps = [_Step(None, x, added if added % 2 else NOTHING, y) for x, added, y in drawn]
    offsets, size = _planned(steps, sizes, [0, 1])
    uses = {place: [n for n, step in enumerate(steps) if place in (step.x, step.added, step.y)] for place in range(10)}
    assert offsets.keys() == {place for place in range(2, 10) if uses[place]}
    for one, other in itertools.combinations(offsets, 2):
        if uses[one][0] <= uses[other][-1] and uses[other][0] <= uses[one][-1]:
            assert offsets[one] + sizes[one] <= offsets[other] or offsets[other] + sizes[other] <= offsets[one]
    assert all(start % LINE == 0 and start + sizes[place] <= size for place, start in offsets.items())


def test_programs_refuse_places_that_are_not_there():
    program = _core.Program(1, [0], 4)
    with pytest.raises(IndexError, match="there are 2 places, got number 2"):
        program.add(_core.mean_call(1, 4), 0, -1, 2)
    with pytest.raises(ValueError, match="expected 1 addresses, got 2"):
        program.run([0, 0])


def test_small_products_and_means():
    weight, bias, x = torch.randn(7, 37), torch.randn(7), torch.randn(3, 37)
    for own, relu in itertools.product((None, bias), (False, True)):
        program, y = _core.Program(2, [], 0), torch.full((3, 7), torch.nan)
        program.add(_core.small_product_call(weight.data_ptr(), 0 if own is None else own.data_ptr(), relu, 7, 37, 3), 0, -1, 1)
        program.run([x.data_ptr(), y.data_ptr()])
        expected = F.linear(x.double(), weight.double(), None if own is None else own.double())
        torch.testing.assert_close(y.double(), expected.relu() if relu else expected, rtol=1e-5, atol=1e-5)
    program, y = _core.Program(2, [], 0), torch.full((7,), torch.nan)
    program.add(_core.mean_call(7, 37), 0, -1, 1)
    program.run([weight.data_ptr(), y.data_ptr()])
    torch.testing.assert_close(y, weight.mean(1))


def test_a_sum_makes_a_fused_layer():
    module = simplify(trained(residual), torch.randn(1, 4, 8, 8)).module
    assert isinstance(module.get_submodule("b"), FusedLayer)
    assert module.get_submodule("b").adds
    packed = ts.pack(trained(residual), torch.randn(1, 4, 8, 8), tune=False)
    assert isinstance(packed.graph.get_submodule("b"), PackedLayer)
    assert packed.graph.get_submodule("b").epilogue == Epilogue(least=0.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int32], ids=str)
def test_a_sum_with_another_dtype_than_the_example_had(dtype):
    """The kernels read float32: what widens the sum goes through torch."""
    model = Net(lambda net, x: F.relu(net.c(x[0]) + x[1])).eval()

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x, y):
            return self.net((x, y))

    x, y = torch.randn(2, 4, 3, 3), 3 * torch.randn(2, 4, 3, 3)
    packed = ts.pack(Two().eval(), (x, y), tune=False)
    assert "sum" in packed.explain().rows[0].follows
    with torch.inference_mode():
        torch.testing.assert_close(packed(x, y.to(dtype)), model((x, y.to(dtype))))
