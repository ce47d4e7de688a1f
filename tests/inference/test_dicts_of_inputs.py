"""A model that takes one dict of tensors: traced, shrunk, packed and called with it; other calls are told what was expected."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import truesparse as ts
from truesparse.inference.graph.trace import trace


class OfDict(nn.Module):
    """Looks only at the keys that it knows, and takes a tensor beside them."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, batch, scale=None):
        y = self.c(F.relu(self.a(batch["left"]) + self.b(batch["right"])))
        return y if scale is None else y * scale


class Unfollowed(OfDict):
    """The same in Python that only torch.export follows."""

    def forward(self, batch, scale=None):
        y = self.b(batch["right"])
        for row in batch["left"].unbind(1):
            y = y + self.a(row)
        return self.c(F.relu(y))


def inputs(batch, *places):
    generator = torch.Generator().manual_seed(batch)
    return {"right": torch.randn(batch, 3, generator=generator), "left": torch.randn(batch, *places, 4, generator=generator)}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return OfDict().eval()


def test_a_graph_takes_the_tensors_in_a_row(model):
    x, scale = inputs(3), torch.tensor(2.0)
    traced = trace(model, (x, scale))
    torch.testing.assert_close(traced(x["right"], x["left"], scale), model(x, scale))


@pytest.mark.parametrize("kind", [OfDict, Unfollowed])
def test_such_a_model_is_pruned_shrunk_and_packed(kind):
    torch.manual_seed(0)
    model = kind().eval()
    x = inputs(2) if kind is OfDict else inputs(2, 5)
    pruned = ts.prune(copy.deepcopy(model), 0.5, example=(x,))
    small = ts.shrink(pruned, (x,))
    assert small.a.out_features == small.b.out_features == small.c.in_features == 3
    packed = ts.pack(small, (x,), tune=False)
    assert not packed.explain().untraced
    for batch in (2, 7):
        other = inputs(batch) if kind is OfDict else inputs(batch, 5)
        with torch.inference_mode():
            expected = pruned(other)
            torch.testing.assert_close(small(other), expected)
            torch.testing.assert_close(packed(other), expected)
            torch.testing.assert_close(packed(dict(reversed(other.items()))), expected)


def test_a_packed_network_refuses_other_arguments(model):
    x = inputs(2)
    packed = ts.pack(model, (x,), tune=False)
    expected = "expected the positional arguments of the example, a dict of right, left, got "
    with torch.inference_mode():
        with pytest.raises(TypeError, match=expected + "a dict of left"):
            packed({"left": x["left"]})
        with pytest.raises(TypeError, match=expected + "a tensor, a tensor"):
            packed(x["left"], x["right"])
        with pytest.raises(TypeError, match=expected + "none"):
            packed()


def test_a_plain_dict_is_by_name_and_the_error_says_what_to_do(model):
    for call in (ts.shrink, ts.pack):
        with pytest.raises(
            TypeError, match=r"OfDict does not take the arguments right, left by name .*a tuple that holds the dict: \(example,\)"
        ):
            call(model, inputs(2))
    with pytest.raises(
        TypeError, match=r"got str; arguments by name are a dict of tensors, and a dict that is an argument itself stands in a tuple"
    ):
        ts.shrink(model, ({"left": "no tensor"},))


def test_onnx_says_what_to_do(model, tmp_path):
    pytest.importorskip("onnxscript")
    for example in (inputs(2), (inputs(2),)):
        with pytest.raises(TypeError, match=r"got a dict: export a module whose forward takes the tensors one by one and calls yours"):
            ts.export_onnx(model, tmp_path / "model.onnx", example)
