"""Opened attention computes what torch's attention computes, whatever it is called with; torch's own module is the oracle."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from truesparse import densify, sparsify, summary
from truesparse.nn import OpenedAttention, SparseLinear, topology_layers

MASKS = (None, "bool", "added", "heads")
PADDINGS = (None, "bool", "added")


def hidden(shape, kind, samples=None):
    """A mask of this kind that leaves every query the first key."""
    allowed = torch.rand(shape) < 0.7
    allowed[..., 0] = True
    return ~allowed if kind == "bool" else torch.randn(shape).double().masked_fill(~allowed, -torch.inf)


@st.composite
def calls(draw):
    """Settings of an attention, and arguments of a call of it."""
    draws = draw(st.fixed_dictionaries({name: st.booleans() for name in ("bias", "add_bias_kv", "add_zero_attn", "batch_first", "apart")}))
    widths = {"kdim": 6, "vdim": 10} if draws.pop("apart") else {}
    options = {**draws, **widths, "dropout": draw(st.sampled_from([0.0, 0.25]))}
    batched = draw(st.booleans())
    inputs = draw(st.sampled_from(["self", "memory", "all"]) if not widths else st.just("all"))
    asked = {
        "need_weights": draw(st.booleans()),
        "average_attn_weights": draw(st.booleans()),
        "attn_mask": draw(st.sampled_from(MASKS)),
        "key_padding_mask": draw(st.sampled_from(PADDINGS)),
        "is_causal": draw(st.booleans()),
    }
    return options, batched, inputs, asked


def arguments(dense, batched, inputs, asked, samples=3, queries=4, keys=5):
    """Tensors for such a call."""
    keys = queries if inputs == "self" else keys

    def tensor(places, features):
        shape = (samples, places, features) if dense.batch_first else (places, samples, features)
        return torch.randn(shape if batched else (places, features), dtype=torch.float64)

    query = tensor(queries, dense.embed_dim)
    key = query if inputs == "self" else tensor(keys, dense.kdim)
    value = key if inputs != "all" else tensor(keys, dense.vdim)
    samples, asked = samples if batched else 1, dict(asked)
    kind = asked["attn_mask"]
    if asked["is_causal"]:
        asked["attn_mask"] = torch.ones(queries, keys, dtype=torch.bool).triu(1)
    elif kind is not None:
        shape = (samples * dense.num_heads, queries, keys) if kind == "heads" else (queries, keys)
        asked["attn_mask"] = hidden(shape, "added" if kind == "heads" else kind)
    padding = asked["key_padding_mask"]
    if padding is not None:
        # torch warns where one mask is of bool and the other is not
        mask = asked["attn_mask"]
        kind = padding if mask is None else "bool" if mask.dtype == torch.bool else "added"
        asked["key_padding_mask"] = hidden((samples, keys) if batched else (keys,), kind)
    return (query, key, value), asked


def attention(**options):
    dense = nn.MultiheadAttention(8, 2, **options, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return dense


@settings(max_examples=30)
@given(calls(), st.booleans())
def test_it_gives_what_torchs_attention_gives_and_so_do_its_gradients(call, training):
    options, batched, inputs, asked = call
    dense = attention(**options).train(training)
    opened = OpenedAttention.opening(copy.deepcopy(dense))
    tensors, asked = arguments(dense, batched, inputs, asked)
    found = []
    for module in (dense, opened):
        own = {id(one): one.clone().requires_grad_() for one in tensors}
        torch.manual_seed(1)
        output, weights = module(*(own[id(one)] for one in tensors), **asked)
        (output.square().sum() + (0 if weights is None else weights.sin().sum())).backward()
        found.append((output, weights, [one.grad for one in own.values()]))
    (output, weights, gradients), (ours, our_weights, our_gradients) = found
    torch.testing.assert_close(ours, output)
    assert (weights is None) == (our_weights is None) == (not asked["need_weights"])
    if weights is not None:
        torch.testing.assert_close(our_weights, weights)
    torch.testing.assert_close(our_gradients, gradients)
    apart = ("q_proj", "k_proj", "v_proj")
    whole = (
        torch.cat([getattr(dense, f"{name}_weight").grad for name in apart], -1)
        if dense.in_proj_weight is None
        else dense.in_proj_weight.grad
    )
    given = torch.cat([getattr(opened, name).weight.grad for name in apart], -1 if dense.in_proj_weight is None else 0)
    torch.testing.assert_close(given, whole)
    torch.testing.assert_close(opened.out_proj.weight.grad, dense.out_proj.weight.grad)


@pytest.mark.parametrize("options", [{}, {"kdim": 6, "vdim": 10}, {"bias": False}, {"add_bias_kv": True}], ids=str)
def test_opening_leaves_the_dense_module_as_it_is_and_closing_gives_it_back(options):
    dense = nn.MultiheadAttention(8, 2, **options, dropout=0.5, batch_first=True).eval()
    dense.out_proj.weight.requires_grad_(False)
    before = copy.deepcopy(dense.state_dict())
    opened = OpenedAttention.opening(dense)
    torch.testing.assert_close(dense.state_dict(), before)
    assert sum(one.numel() for one in opened.parameters()) == sum(one.numel() for one in dense.parameters())
    closed = opened.closed()
    assert type(closed) is nn.MultiheadAttention
    assert list(closed.state_dict()) == list(before)
    torch.testing.assert_close(closed.state_dict(), before, rtol=0, atol=0)
    for name in ("embed_dim", "kdim", "vdim", "num_heads", "head_dim", "dropout", "batch_first", "add_zero_attn", "training"):
        assert getattr(closed, name) == getattr(dense, name) == getattr(opened, name)
    assert closed._qkv_same_embed_dim == dense._qkv_same_embed_dim
    assert [one.requires_grad for one in closed.parameters()] == [one.requires_grad for one in dense.parameters()]


def test_the_model_itself_may_be_attention():
    dense = nn.MultiheadAttention(8, 2)
    x = torch.randn(4, 3, 8)
    expected = dense(x, x, x)
    opened = sparsify(dense, 0.0)
    assert set(topology_layers(opened)) == {"q_proj", "k_proj", "v_proj", "out_proj"}
    torch.testing.assert_close(opened(x, x, x), expected)
    closed = densify(opened)
    assert type(closed) is nn.MultiheadAttention
    torch.testing.assert_close(closed(x, x, x), expected)


def test_one_attention_in_two_places_stays_one():
    attention = nn.MultiheadAttention(8, 2)
    model = sparsify(nn.ModuleList([attention, attention]), 0.5)
    assert model[0] is model[1]
    assert isinstance(model[0], OpenedAttention)


def test_names_say_what_stays_dense_and_how_sparse_the_rest_is():
    def model():
        return nn.ModuleDict({"first": nn.MultiheadAttention(8, 2), "last": nn.MultiheadAttention(8, 2)})

    one = model()
    kept = one["first"].out_proj.weight
    sparsify(one, 0.5, "uniform", exclude=("first.v_proj", one["first"].out_proj), sparsities={"last": 0.75, "first.q_proj": 0.25})
    found = {layer.name: layer.sparsity for layer in summary(one).layers}
    assert found == {
        **{"first.q_proj": 0.25, "first.k_proj": 0.5, "first.v_proj": 0.0, "first.out_proj": 0.0},
        **{f"last.{part}": 0.75 for part in ("q_proj", "k_proj", "v_proj", "out_proj")},
    }
    assert one["first"].out_proj.weight is kept
    for exclude in (("first",), (one["first"],), (f"first.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj"))):
        other = model()
        sparsify(other, 0.5, exclude=[other["first"] if isinstance(entry, nn.Module) else entry for entry in exclude])
        assert type(other["first"]) is nn.MultiheadAttention
        assert isinstance(other["last"], OpenedAttention)
    with pytest.raises(ValueError, match=r"exclude names 'first.in_proj_weight', which match no module; there are: first, first.q_proj, "):
        sparsify(model(), 0.5, exclude=("first.in_proj_weight",))


def test_what_stays_dense_inside_has_memory_of_its_own():
    attention = sparsify(nn.MultiheadAttention(8, 2), 0.5, exclude=("v_proj",))
    assert attention.v_proj.weight.untyped_storage().nbytes() == 8 * 8 * 4
    assert all(isinstance(getattr(attention, name), SparseLinear) for name in ("q_proj", "k_proj", "out_proj"))


def parametrized():
    attention = nn.MultiheadAttention(8, 2)
    nn.utils.parametrize.register_parametrization(attention, "in_proj_weight", nn.Identity())
    return attention


def hooked():
    attention = nn.MultiheadAttention(8, 2)
    attention.register_forward_hook(lambda *_: None)
    return attention


def hooked_inside():
    attention = nn.MultiheadAttention(8, 2)
    attention.out_proj.register_full_backward_hook(lambda *_: None)
    return attention


def pruned():
    attention = nn.MultiheadAttention(8, 2)
    nn.utils.prune.l1_unstructured(attention, "in_proj_weight", 0.5)
    return attention


def tied():
    attention = nn.MultiheadAttention(8, 2, kdim=8, vdim=8)
    attention._qkv_same_embed_dim, attention.in_proj_weight = False, None
    shared = nn.Parameter(torch.randn(8, 8))
    attention.q_proj_weight = attention.k_proj_weight = attention.v_proj_weight = shared
    return attention


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (parametrized, r"it has a in_proj_weight that is made anew in every forward pass by a parametrization, Identity \(call torch.nn"),
        (pruned, r"by torch.nn.utils.prune \(call torch.nn.utils.prune.remove\(layer, 'in_proj_weight'\) before sparsify; from_weights"),
        (hooked, r"layer '1' \(MultiheadAttention\) cannot be made sparse: it has hooks that would be lost"),
        (hooked_inside, r"has hooks that would be lost"),
        (tied, r"it shares its weight with another module"),
        (lambda: nn.MultiheadAttention(8, 2, device="meta"), r"is on the meta device and has no values yet"),
    ],
)
def test_what_would_be_lost_is_refused_and_nothing_is_opened(make, says):
    model = nn.ModuleList([nn.MultiheadAttention(8, 2), make()])
    modules = list(model.modules())
    with pytest.raises(TypeError, match=says):
        sparsify(model, 0.5)
    assert list(model.modules()) == modules
    sparsify(model, 0.5, exclude=("1",))
    assert isinstance(model[0], OpenedAttention)


def test_a_refusal_after_the_selection_leaves_the_model_as_it_is():
    model = nn.ModuleList([nn.MultiheadAttention(8, 2), nn.Linear(6, 6)])
    modules = list(model.modules())
    with pytest.raises(ValueError, match=r"layer '1': .* divisible by 4"):
        sparsify(model, 0.5, pattern="nm:2:4")
    assert list(model.modules()) == modules


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (
            lambda one, x: one(x, x[:, :3], x),
            ValueError,
            r"as many keys as values, and samples, got shapes \(2, 4, 8\), \(2, 3, 8\), \(2, 4",
        ),
        (lambda one, x: one(x, x[0], x), ValueError, r"expected query, key and value of 3 dimensions"),
        (lambda one, x: one(x, x, x, attn_mask=torch.zeros(4, 3)), ValueError, r"attn_mask of shape \(4, 4\) or \(4, 4, 4\), got \(4, 3\)"),
        (
            lambda one, x: one(x, x, x, key_padding_mask=torch.zeros(2, 3)),
            ValueError,
            r"key_padding_mask of shape \(2, 4\), .* got \(2, 3\)",
        ),
        (
            lambda one, x: one(x, x, x, attn_mask=torch.zeros(4, 4, dtype=torch.int)),
            TypeError,
            r"attn_mask is of torch.bool, .* torch.int32",
        ),
        (lambda one, x: one(x, x, x, is_causal=True), ValueError, r"pass the causal mask with it"),
        (lambda one, x: one(*[torch.nested.nested_tensor([x[0], x[1]])] * 3), TypeError, r"got a nested one: pass key_padding_mask"),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_calls_that_cannot_be(call, error, says):
    with pytest.raises(error, match=says):
        call(OpenedAttention.opening(nn.MultiheadAttention(8, 2, batch_first=True)), torch.randn(2, 4, 8))


def test_smaller_projections_and_hooks_of_users_keep_it_open():
    opened = OpenedAttention.opening(nn.MultiheadAttention(8, 2))
    assert opened.can_be_closed
    handle = opened.register_forward_hook(lambda *_: None)
    assert not opened.can_be_closed
    assert type(densify(nn.Sequential(opened))[0]) is OpenedAttention
    handle.remove()
    opened.q_proj = nn.Linear(5, 8)
    assert not opened.can_be_closed
