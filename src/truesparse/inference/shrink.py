"""How does a network lose the neurons that training has removed? As a smaller network of the same classes, which trains on."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from ..common.devices import tf32_allowed
from ..common.hooks import user_hooks, without_training_hooks
from ..common.shown import listed
from ..nn.convert import densify_full
from ..nn.opened import Opened
from ..nn.wrapped import unwrapped
from .empty import Empty, empty_neurons
from .graph.biases import with_weight
from .graph.example import Example, call
from .graph.fold import NORMS
from .graph.layers import LAYERS, weights_of
from .graph.operations import PYTHON
from .graph.prune import Resize, pruned
from .graph.trace import Untraceable, copied, trace

Model = TypeVar("Model", bound=nn.Module)
ROUNDED = 1e-2  # of the largest output, where TF32 is allowed: for fewer channels, torch may choose kernels that round or do not


def shrink(model: Model, example_inputs: Example) -> Model:
    """The same network without the neurons and channels that can never matter, in fewer and smaller arrays; it can be trained on.

    Networks trained with the pattern `Neurons`, or with ablation (`SRigL`), keep the shapes that they began with; here the neurons that
    are gone leave the layers, and those after them lose the columns. Removed is

    * what has no way to an output: no connection reads it, or only such as have none themselves.
    * what has no way from an input: a neuron without connections gives one number for every input, that of its bias, through norm and
      activation as they are in eval mode. What this brings to the layers after it goes into their biases, and one that has no bias gets
      one if it must. A convolution that pads with zeros does not see such a number at its border: there only zeros can go.

    In eval mode the outputs are the same but for rounding, and so are the gradients of what stays. If the network is trained on, only
    this differs: the bias of a removed neuron was trained too, that of the layer after it is trained instead; dropout no longer drops
    what a removed neuron gave; and BatchNorm in training mode would have given the offset of its own bias for it. Channels that stay
    keep their running statistics.

    A connection that exists stays even if its value is zero, as one that has just been grown; in dense layers a weight that is exactly
    zero counts as missing. Channels that a norm multiplies by zero stay: that factor may be trained. So does what the Python of the
    model holds fast, such as the sizes in `x.view(-1, 256)` (`x.flatten(1)` holds nothing), weights that layers share, layers with a
    hook of yours and whatever is not understood.

    Args:
        model: sparse, masked, dense or mixed; left as it is. Of a wrapped one (`torch.compile`, DDP, `AveragedModel`) the network inside.
        example_inputs: an input, a tuple of the positional inputs, or a dict of inputs by the names of the arguments. For a model that
            takes one dict the tuple holds it: `({"ids": ids, "mask": mask},)`.

    Returns:
        A new model of the same classes, in the same mode, whose layers are the smaller ones. Its parameters are new: give them to a new
        optimizer. A layer whose connections no longer obey its pattern says `Unstructured()`.

    Raises:
        TypeError: if the model cannot be copied or cannot be traced, or with smaller layers would do something else; the message says why.

    Warns:
        UserWarning: of neurons that stay though no connection goes into them, other than those that give the outputs, and of heads whose
            number the Python of the model holds; each with the reason.
    """
    small, said = smaller(model, example_inputs)
    for one in said:
        warnings.warn(one, stacklevel=2)
    return small


def smaller(model: Model, example_inputs: Example) -> tuple[Model, list[str]]:
    """What `shrink` gives, and what it warns of."""
    inside = unwrapped(model)
    with without_cache(inside):
        shrunk, said = _shrunk(inside, example_inputs)
    for one, other in zip(_configs(shrunk), _configs(inside), strict=True):
        one.use_cache = other.use_cache
    return densify_full(shrunk), said  # type: ignore[return-value]


def _shrunk(inside: nn.Module, example_inputs: Example) -> tuple[nn.Module, list[str]]:
    traced = trace(inside, example_inputs)
    closed = held_fast(traced, inside)
    small, resizes, _ = pruned(traced, example_inputs, trains=True, closed=closed, follow=True)
    stay = empty_neurons(small, closed, follow=True)  # before its norms are in the mode of the model
    expected = _outputs(copied(inside), example_inputs)
    shrunk, refusal = built(inside, traced, small, resizes, example_inputs, expected)
    said: list[str] = []
    if shrunk is None and resizes:
        small, _, _ = pruned(traced, example_inputs, trains=True, closed=closed)
        stay = [one for one in empty_neurons(small, closed, follow=False) if one.why != PYTHON]  # of these it is told otherwise
        shrunk, other = built(inside, traced, small, [], example_inputs, expected)
        if shrunk is not None:
            names = sorted(set().union(*(one.owners for one in resizes)))
            said.append(
                f"the heads or parts of {', '.join(map(repr, names))} stay, for the Python of the model holds their number: without "
                f"them {refusal}. Let its forward say -1 there (x.reshape(batch, places, -1)), or hold the number in an attribute"
            )
        refusal = other or refusal
    if shrunk is None:
        raise Untraceable(f"cannot shrink {type(inside).__name__}: with smaller layers {refusal}")
    _check_training(inside, shrunk, example_inputs)
    return shrunk, said + _of_empty(stay)


def _of_empty(stay: list[Empty]) -> list[str]:
    """One line about neurons that stay though no connection goes into them."""
    by_reason: dict[str, list[Empty]] = {}
    for one in stay:
        by_reason.setdefault(one.why, []).append(one)
    if not by_reason:
        return []
    parts = (f"{sum(one.count for one in own)} of {listed([one.layer for one in own])} ({why})" for why, own in by_reason.items())
    remedy = "ts.prune(model, ..., pattern='neurons', example=example) empties together what can only go together"
    return [f"neurons without connections stay: {'; '.join(parts)}. {remedy}"]


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Within this context a language model of transformers gives its outputs only, not also a cache, which no graph can hold."""
    before = [(config, config.use_cache) for config in _configs(model)]
    for config, _ in before:
        config.use_cache = False
    try:
        yield
    finally:
        for config, cached in before:
            config.use_cache = cached


def _configs(model: nn.Module) -> list[Any]:
    configs = {id(config): config for module in model.modules() if hasattr(config := getattr(module, "config", None), "use_cache")}
    return list(configs.values())


def built(
    model: nn.Module, traced: fx.GraphModule, small: fx.GraphModule, resizes: list[Resize], example: Example, expected: object
) -> tuple[nn.Module | None, str]:
    """A copy of the model with the layers of a smaller graph, that gives what is expected; or None, and why there is none.

    Where the number of heads stands in the Python of the model, it may be an attribute of the module that holds the layers: such as have
    that value get the new one, as few as are needed.
    """
    shrunk = without_training_hooks(copy.deepcopy(model))
    for node in small.graph.find_nodes(op="call_module"):
        name = str(node.target)
        if small.get_submodule(name) is not traced.get_submodule(name):
            old, new = shrunk.get_submodule(name), small.get_submodule(name)
            _replace(
                shrunk,
                old,
                with_weight(old, nn.Parameter(new.weight, new.weight.requires_grad))
                if isinstance(old, nn.Embedding) and isinstance(new, nn.Embedding)
                else new,
            )
    refusal = ""
    for attributes in _attempts(shrunk, resizes):
        before = [(module, name, getattr(module, name)) for module, name, _ in attributes]
        for module, name, value in attributes:
            setattr(module, name, value)
        try:
            if _same(expected, _outputs(copied(shrunk), example)):
                return shrunk, ""
            failure = "its forward gives another output: it decides in Python what a trace cannot see"
        except Exception as error:  # of any kind: the model's own code runs
            failure = f"its forward raises {type(error).__name__}: {error}"
        refusal = refusal or failure
        for module, name, value in before:
            setattr(module, name, value)
    return None, refusal


Attributes = list[tuple[nn.Module, str, int]]


def _attempts(model: nn.Module, resizes: list[Resize]) -> list[Attributes]:
    """Which attributes to change to which numbers, from none to all that could be meant."""
    modules = dict(model.named_modules())
    heads: Attributes = []
    others: Attributes = []
    by_owner: dict[str, list[Resize]] = {}
    for one in resizes:
        for owner in {holder for name in one.owners for holder in _holders(modules, name)}:
            by_owner.setdefault(owner, []).append(one)
    for owner, own in sorted(by_owner.items()):
        for name, value in vars(modules[owner]).items():
            new = value
            for one in own if type(value) is int else ():
                new = one.new if new == one.old else new
            if new != value:
                counts = "head" in name and not any(word in name for word in ("dim", "size", "width", "channels"))
                (heads if counts else others).append((modules[owner], name, new))
    widths = [entry for entry in others if vars(entry[0])[entry[1]] not in {vars(module)[name] for module, name, _ in heads}]
    attempts: list[Attributes] = [[], heads, heads + widths, heads + others]
    return [one for place, one in enumerate(attempts) if one not in attempts[:place]]


def _holders(modules: dict[str, nn.Module], owner: str) -> list[str]:
    """The module, and of an opened one whoever holds that too."""
    holders = [owner]
    while isinstance(modules[holders[-1]], Opened):
        holders.append(holders[-1].rpartition(".")[0])
    return holders


def _outputs(model: nn.Module, example: Example) -> object:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return call(model, example)


def held_fast(traced: fx.GraphModule, model: nn.Module) -> dict[str, str]:
    """Layers, norms and tables of the graph that are not, or not only, a module of the model of that name: {name: why}."""
    modules = dict(model.named_modules())
    owners: dict[nn.Parameter, list[str]] = {}
    for name, module in modules.items():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, []).append(name)
    held: dict[str, str] = {}
    hooked = user_hooks(model)
    for node in traced.graph.find_nodes(op="call_module"):
        name = str(node.target)
        called, own = traced.get_submodule(name), modules.get(name)
        if type(called) in (*LAYERS, *NORMS, nn.Embedding):
            others = [one for parameter in own.parameters(recurse=False) for one in owners[parameter] if one != name] if own else []
            if name in hooked:
                held[name] = f"a {hooked[name]} of yours is on it"
            elif others:
                held[name] = f"it shares its weight with {others[0]!r}"
            elif own is None or not _alike(called, own):
                held[name] = "the graph of the model has it with another weight or other settings"
    return held


def _alike(called: nn.Module, own: nn.Module) -> bool:
    if type(called) is not type(own):
        return False
    one, other = called.state_dict(), own.state_dict()
    if one.keys() != other.keys() or not all(torch.equal(one[name], other[name]) for name in one):
        return False
    if type(own) not in LAYERS:
        return True
    given, meant = weights_of(called), weights_of(own)
    return (given.geometry, given.padding) == (meant.geometry, meant.padding)


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Under all names that it has."""
    new.train(old.training)
    for name in [name for name, module in model.named_modules(remove_duplicate=False) if module is old]:
        model.set_submodule(name, new)


def _check_training(model: nn.Module, shrunk: nn.Module, example: Example) -> None:
    """
    Raises:
        Untraceable: if the Python of the model reads more in training mode, and cannot with smaller layers.
    """
    try:
        _outputs(copied(model).train(), example)
    except Exception:  # such as that of BatchNorm for one sample: nothing can be told
        return
    try:
        _outputs(copied(shrunk).train(), example)
    except Exception as error:  # of any kind: the model's own code runs
        raise Untraceable(
            f"cannot shrink {type(model).__name__}: with smaller layers its forward raises {type(error).__name__} in training mode, in "
            f"which it reads more than in eval mode: {error}"
        ) from error


def _same(expected: object, given: object) -> bool:
    """But for the rounding of sums in another order."""
    one, other = tree_leaves(expected), tree_leaves(given)
    return len(one) == len(other) and all(_close(*pair) for pair in zip(one, other, strict=True) if isinstance(pair[0], Tensor))


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not one.is_floating_point():
        return torch.equal(one, other)
    finite = one[one.isfinite()].abs()
    coarse = one.is_cuda and one.dtype == torch.float32 and (tf32_allowed() or tf32_allowed(convolved=True))
    most = (ROUNDED if coarse else torch.finfo(one.dtype).eps ** 0.5) * (float(finite.max()) if finite.numel() else 0.0)
    return torch.allclose(one, other, rtol=0.0, atol=most, equal_nan=True)
