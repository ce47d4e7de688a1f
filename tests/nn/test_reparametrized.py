"""A weight that is made anew in every forward pass is refused, with what makes it and the call that makes it permanent; that call works."""

import re
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from truesparse import sparsify
from truesparse.nn import topology_layers


def old(function):
    def apply(layer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch recommends the parametrization, and people still have these
            return function(layer)

    return apply


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


MADE = {
    "weight_norm": (parametrizations.weight_norm, "by weight_norm, whose length of a row"),
    "old weight_norm": (old(nn.utils.weight_norm), "by weight_norm, whose length of a row"),
    "spectral_norm": (parametrizations.spectral_norm, "by spectral_norm, which needs the whole matrix in every step"),
    "old spectral_norm": (nn.utils.spectral_norm, "by spectral_norm, which needs the whole matrix in every step"),
    "orthogonal": (parametrizations.orthogonal, "by a parametrization, _Orthogonal"),
    "own": (lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()), "by a parametrization, Doubled"),
    "pruned": (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "by torch.nn.utils.prune"),
}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("make", [lambda: nn.Linear(8, 6), lambda: nn.Conv2d(4, 6, 3)], ids=["Linear", "Conv2d"])
def test_it_is_refused_and_the_advice_works(name, make):
    apply, says = MADE[name]
    model = nn.Sequential(make(), make())
    apply(model[1])
    x = torch.randn(1, 8) if isinstance(model[0], nn.Linear) else torch.randn(1, 4, 5, 5)
    model[1](x)
    modules = list(model.modules())
    with pytest.raises(TypeError, match=r"layer '1' \(.*\) cannot be made sparse: it has a weight that is made anew .*" + says) as refused:
        sparsify(model, 0.5)
    assert list(model.modules()) == modules
    call = re.search(r"\(call (torch\..*?\)) before sparsify", str(refused.value))[1]
    eval(call, {"torch": torch, "layer": model[1]})
    expected = model[1](x)
    sparsify(model, 0.0)
    assert set(topology_layers(model)) == {"0", "1"}
    torch.testing.assert_close(model[1](x), expected)


def test_a_weight_that_is_no_parameter_is_refused():
    layer = nn.Linear(4, 4)
    del layer.weight
    layer.weight = torch.randn(4, 4)
    with pytest.raises(TypeError, match=r"has a weight that is no parameter \(assign nn.Parameter\(layer.weight\) before sparsify\)"):
        sparsify(nn.Sequential(nn.Linear(4, 4), layer), 0.5)
