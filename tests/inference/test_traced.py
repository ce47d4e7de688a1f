"""Whatever writes down or transforms the calls of a packed network is right, or refused by a line that names the way out."""

import warnings

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from truesparse import pack, sparsify


class Branch(nn.Module):
    """No graph: its layer is packed by itself."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 4)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else self.layer(-x)


NETWORKS = {
    "a graph": lambda: nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)),
    "a convolution": lambda: nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)),
    "no graph": Branch,
}


def made(name):
    model = sparsify(NETWORKS[name](), 0.5, generator=torch.Generator().manual_seed(0)).eval()
    x, other = (torch.randn(2, 1, 4, 4) if name == "a convolution" else torch.randn(2, 16) for _ in range(2))
    return model, pack(model, x, tune=False), x, other


def script(packed, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(packed)


def trace(packed, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.trace(packed, x)


REFUSED = {
    "torch.jit.trace": trace,
    "torch.jit.script": script,
    "torch.export": lambda packed, x: torch.export.export(packed, (x,)),
    "torch.fx.symbolic_trace": lambda packed, x: torch.fx.symbolic_trace(packed),
    "torch.fx.symbolic_trace of more": lambda packed, x: torch.fx.symbolic_trace(nn.Sequential(packed)),
    "make_fx": lambda packed, x: make_fx(lambda x: packed(x))(x),
    "make_fx with fake tensors": lambda packed, x: make_fx(lambda x: packed(x), tracing_mode="fake")(x),
    "torch.func": lambda packed, x: torch.vmap(packed)(x[:, None]),
    "torch.func, backwards": lambda packed, x: torch.func.grad(lambda x: packed(x).sum())(x),
    "torch.export, an input without memory": lambda packed, x: packed(FakeTensorMode().from_tensor(x)),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("way", REFUSED)
def test_programs_are_refused_by_name(way, network):
    _, packed, x, _ = made(network)
    who = way.partition(" of more")[0].partition(" with")[0].partition(", ")[0]
    says = rf"a packed network of truesparse cannot go through {who}.*truesparse\.export_onnx or truesparse\.densify, or pack after"
    with torch.no_grad(), pytest.raises(RuntimeError, match=says):
        REFUSED[way](packed, x)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler itself
def test_a_compiled_function_calls_it_and_goes_on(network):
    model, packed, x, other = made(network)

    def function(x):
        return torch.relu(packed(2 * x)) + 1

    torch.compiler.reset()
    compiled = torch.compile(function, backend="eager")
    with torch.inference_mode():
        for one in (x, other):
            torch.testing.assert_close(compiled(one), torch.relu(model(2 * one)) + 1)
        torch.compiler.reset()
        with pytest.raises(Exception, match=r"a packed network of truesparse cannot go through torch\.compile\(fullgraph=True\)"):
            torch.compile(function, backend="eager", fullgraph=True)(x)


def test_what_only_watches_operations_is_no_program():
    model, packed, x, _ = made("a graph")
    with torch.inference_mode(), FlopCounterMode(display=False):
        torch.testing.assert_close(packed(x), model(x))


@pytest.mark.parametrize("network", NETWORKS)
def test_tensors_without_memory_here_are_refused(network):
    _, packed, x, _ = made(network)
    with torch.inference_mode():
        for one, kind in ((x.to_sparse(), r"torch\.sparse_coo one on cpu"), (x.to("meta"), r"torch\.strided one on meta")):
            if network != "no graph":  # which decides by the values before it comes to a layer
                with pytest.raises(TypeError, match=rf"takes dense tensors on the CPU, got a {kind}; convert it with \.to_dense\(\)\.cpu"):
                    packed(one)
