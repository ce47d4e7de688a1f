"""Which operations can become part of the layer before them? BatchNorm its weights, an activation and a max-pool its last steps."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TypeGuard

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ...nn.conv import ConvolutionInterface
from .layers import LAYERS, FusedLayer, Weights, weights_of, with_weights
from .trace import module_of, replaced, shape_of

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Tanh)


def without_identities(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph without Dropout and Identity, which do nothing in eval mode."""
    new = replaced(module)
    for node in new.graph.nodes:
        if isinstance(module_of(new, node), (nn.Identity, _DropoutNd)):
            node.replace_all_uses_with(node.args[0])
            new.graph.erase_node(node)
    return cleaned(new)


def fold_norms(module: fx.GraphModule) -> tuple[fx.GraphModule, dict[str, str]]:
    """BatchNorm, with its running statistics, goes into the weights of the layer before it.

    Only where that changes nothing else: the layer is called once and only the norm reads it.

    Returns:
        The new graph, and the name of the norm that went into each layer.
    """
    new, folded = replaced(module), {}
    for layer, nodes in calls_of(new, LAYERS).items():
        followers = _only_followers(nodes)
        if len(nodes) != 1 or not followers:
            continue
        node, follower = nodes[0], followers[0]
        norm = module_of(new, follower)
        if type(norm) in NORMS and is_fixed(norm) and _is_on_rows(norm, node):
            submodule = new.get_submodule(layer)
            new.set_submodule(layer, with_weights(submodule, _folded(weights_of(submodule), norm)))
            _absorb(nodes, followers)
            folded[layer] = str(follower.target)
    return cleaned(new), folded


def fuse_activations(module: fx.GraphModule) -> fx.GraphModule:
    """A layer and its activation become one `FusedLayer`, where nothing else reads what the layer gives.

    A layer that is called several times is fused if the same activation follows it every time.
    """
    new = replaced(module)
    for layer, nodes in calls_of(new, (*LAYERS, FusedLayer)).items():
        followers = _only_followers(nodes)
        activations = [module_of(new, follower) for follower in followers]
        alike = len({repr(_pure(activation)) for activation in activations}) == 1
        if alike and type(activations[0]) in ACTIVATIONS:
            submodule = new.get_submodule(layer)
            own, adds = (submodule.layer, submodule.adds) if isinstance(submodule, FusedLayer) else (submodule, False)
            new.set_submodule(layer, FusedLayer(own, _pure(activations[0]), adds=adds))
            _absorb(nodes, followers)
    return cleaned(new)


def fuse_pools(module: fx.GraphModule) -> fx.GraphModule:
    """A convolution, its activation if it has one, and a max-pool of two by two positions become one `FusedLayer`.

    Where nothing else reads what comes before the pool, at every call of the layer.
    """
    new = replaced(module)
    for layer, nodes in calls_of(new, (*LAYERS, FusedLayer)).items():
        followers = _only_followers(nodes)
        submodule = new.get_submodule(layer)
        own, activation, adds = (
            (submodule.layer, submodule.activation, submodule.adds) if isinstance(submodule, FusedLayer) else (submodule, None, False)
        )
        images = isinstance(own, (nn.Conv2d, ConvolutionInterface)) and not adds and all(len(shape_of(node) or ()) == 4 for node in nodes)
        if images and followers and all(_pools_two_by_two(module_of(new, follower)) for follower in followers):
            new.set_submodule(layer, FusedLayer(own, activation, nn.MaxPool2d(2)))
            _absorb(nodes, followers)
    return cleaned(new)


def _only_followers(nodes: list[fx.Node]) -> list[fx.Node]:
    """Of each node, the one that alone reads it; none at all where a node has no such reader."""
    followers = [next(iter(node.users)) for node in nodes if len(node.users) == 1]
    return followers if len(followers) == len(nodes) else []


def _absorb(nodes: list[fx.Node], followers: list[fx.Node]) -> None:
    """What the followers did, the nodes do now."""
    for node, follower in zip(nodes, followers, strict=True):
        follower.replace_all_uses_with(node)
        follower.graph.erase_node(follower)


def _pools_two_by_two(pool: nn.Module | None) -> bool:
    if type(pool) is not nn.MaxPool2d or pool.ceil_mode or pool.return_indices:
        return False
    settings = pool.kernel_size, pool.stride, pool.padding, pool.dilation
    return [one if isinstance(one, tuple) else (one, one) for one in settings] == [(2, 2), (2, 2), (0, 0), (1, 1)]


def calls_of(module: fx.GraphModule, kinds: tuple[type[nn.Module], ...]) -> dict[str, list[fx.Node]]:
    """The modules of exactly these kinds by name, each with the nodes that call it.

    Left out are those that nobody may change: with hooks, or with a weight that something else in the graph reads.
    """
    calls: dict[str, list[fx.Node]] = {}
    closed: set[str] = set()
    for node in module.graph.nodes:
        if node.op == "get_attr":
            closed.add(str(node.target).rpartition(".")[0])
        elif node.op == "call_module" and type(module.get_submodule(str(node.target))) in kinds:
            calls.setdefault(str(node.target), []).append(node)
            if module_of(module, node) is None and not _adds(module, node):
                closed.add(str(node.target))
    return {name: nodes for name, nodes in calls.items() if name not in closed}


def _adds(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node calls a layer with something to add: one that a pass made, on which are no hooks."""
    called = module.get_submodule(str(node.target))
    return isinstance(called, FusedLayer) and called.adds


def is_fixed(norm: nn.Module | None) -> TypeGuard[_BatchNorm]:
    """Whether it is a BatchNorm that does the same to every input: with running statistics, in eval mode."""
    return isinstance(norm, _BatchNorm) and not norm.training and norm.running_mean is not None and norm.running_var is not None


def scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """What a fixed BatchNorm multiplies each channel with, and what it adds then; both [channels] float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        weight, bias = norm.weight.detach().double(), norm.bias.detach().double()
        scale, shift = scale * weight, shift * weight + bias
    return scale, shift


def _is_on_rows(norm: nn.Module, node: fx.Node) -> bool:
    shape = shape_of(node)
    return shape is not None and len(shape) == (4 if isinstance(norm, nn.BatchNorm2d) else 2)


def _folded(weights: Weights, norm: _BatchNorm) -> Weights:
    scale, shift = scale_and_shift(norm)
    bias = shift if weights.bias is None else weights.bias.double() * scale + shift
    values = weights.values.double() * scale[weights.topology.rows]
    return replace(weights, values=values.to(weights.values), bias=bias.to(weights.values))


def _pure(activation: nn.Module | None) -> nn.Module | None:
    """The activation, making a tensor of its own."""
    if not getattr(activation, "inplace", False):
        return activation
    activation = copy.copy(activation)
    activation.inplace = False  # type: ignore[union-attr, assignment]
    return activation


def cleaned(module: fx.GraphModule) -> fx.GraphModule:
    """Without the modules that are no longer called."""
    module.delete_all_unused_submodules()
    module.graph.lint()
    module.recompile()
    return module
