"""Which neurons and channels can never matter? Those that nothing reads, and those that never change.

Nothing changes but rounding: what stays gives what it gave.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ...nn import TopologyLayer
from .alias import written_while_read
from .biases import Table, with_weight
from .channels import Channels, Constants, Operation
from .example import Example
from .fold import cleaned
from .layers import Weights, weights_of, with_trained_weights, with_weights
from .operations import Layer, Norm, read_operations
from .trace import replaced, with_shapes

Operations = dict[fx.Node, Operation]


@dataclass(frozen=True)
class Resize:
    """A size of heads that stood in the arguments of a call.

    Args:
        owners: names of the modules that hold the layers which make these heads.
        old, new: the size.
    """

    owners: frozenset[str]
    old: int
    new: int


def prune(module: fx.GraphModule, example: Example, trains: bool = False, closed: Collection[str] = ()) -> fx.GraphModule:
    """The same function without the neurons and channels that can never matter.

    * What has no way to an output of the model is removed, with the connections into it.
    * What has no connection from anything that varies is a constant: it goes into the biases of those that read it, and is removed.
      A convolution that pads with zeros does not see a constant at its border: there only zeros, and connections that never
      reach over the border, go.

    Where an operation is not understood, what it reads stays. Residual additions, grouped convolutions (whole groups) and layers that
    are called several times lose only what all of their parts can lose; each tensor keeps at least one channel. A pattern that the
    layer obeyed (N:M, constant fan-in) may no longer hold: then the new layer says `Unstructured()`.

    Args:
        module: of `trace`, which is left as it is.
        example: the inputs that it was traced with.
        trains: whether what is left will be trained, by the Python that it was traced from: connections whose value happens to be
            zero and norms that are switched off stay, and so do sizes that stand in that Python.
        closed: names of layers and norms that stay as they are.
    """
    return pruned(module, example, trains, closed)[0]


def prune_following(module: fx.GraphModule, example: Example) -> tuple[fx.GraphModule, dict[str, Tensor]]:
    """The same as `prune`, and for each layer that has lost rows, which of its rows are left, int64."""
    module, _, rows = pruned(module, example)
    return module, rows


def pruned(
    module: fx.GraphModule, example: Example, trains: bool = False, closed: Collection[str] = (), follow: bool = False
) -> tuple[fx.GraphModule, list[Resize], dict[str, Tensor]]:
    """The same as `prune`, sizes that the Python of the model has to follow, and the rows that are left of layers that lost some.

    Args:
        follow: whether heads may go though their number stands in the arguments of calls.
    """
    resizes: list[Resize] = []
    left: dict[str, Tensor] = {}
    while (found := _smaller(module, trains, closed, follow, resizes)) is not None:  # once, but where one group of several is left
        smaller, rows = found
        left |= {name: left[name][places] if name in left else places for name, places in rows.items()}
        module = with_shapes(smaller, example)
    return module, resizes, left


def _smaller(
    module: fx.GraphModule, trains: bool, closed: Collection[str], follow: bool, resizes: list[Resize]
) -> tuple[fx.GraphModule, dict[str, Tensor]] | None:
    channels = Channels()
    clobbered = written_while_read(module)
    operations = read_operations(module, channels, trains, closed, follow)
    whole = {one.name: weights_of(module.get_submodule(one.name), trains) for one in operations.values() if isinstance(one, Layer)}
    weights = _without_constants(whole, operations, channels, clobbered)
    weights, wanted = _without_unwanted(weights, operations, channels, clobbered)
    kept = channels.kept(wanted)

    modules: dict[str, nn.Module] = {}
    left: dict[str, Tensor] = {}
    for node, operation in operations.items():
        if isinstance(operation, Layer):
            old = module.get_submodule(operation.name)
            rows, inputs = kept[channels.axes[node].atoms], kept[operation.columns]
            part = weights[operation.name].part(rows, inputs)
            if _changes(old, whole[operation.name], part):
                modules[operation.name] = with_trained_weights(old, part, rows, inputs) if trains else with_weights(old, part)
                left[operation.name] = rows.nonzero().flatten().cpu()
        elif isinstance(operation, Norm) and not bool(kept[operation.atoms].all()):
            modules[operation.name] = _part_of_norm(module.get_submodule(operation.name), kept[operation.atoms])
        elif isinstance(operation, Table) and not bool(kept[operation.atoms].all()):
            modules[operation.name] = _part_of_table(module.get_submodule(operation.name), kept[operation.atoms])
    if not modules:
        return None
    resizes += _resizes(operations, channels, kept)
    new = replaced(module, modules)
    for operation, node in zip(operations.values(), new.graph.nodes, strict=True):
        operation.rewire(node, kept)
    return cleaned(new), left


def _resizes(operations: Operations, channels: Channels, kept: Tensor) -> list[Resize]:
    group, made = channels.groups(), {one.name: channels.axes[node].atoms for node, one in operations.items() if isinstance(one, Layer)}
    found = []
    for operation in operations.values():
        for one in operation.follows():
            if (left := one.left(kept)) != one.size:
                owners = {name.rpartition(".")[0] for name, atoms in made.items() if bool(torch.isin(group[atoms], group[one.atoms]).any())}
                found.append(Resize(frozenset(owners), one.size, left))
    return found


def _without_constants(
    weights: dict[str, Weights], operations: Operations, channels: Channels, clobbered: set[fx.Node]
) -> dict[str, Weights]:
    """What connections from constants bring goes into the biases."""
    found: dict[fx.Node, Constants] = {}
    read: dict[str, Constants] = {}  # by each layer, in all of its calls
    for node, operation in operations.items():
        given = [found.get(source, Constants.none(0)) for source in operation.inputs]
        if isinstance(operation, Layer):
            name = operation.name
            constants = given[0] if operation.linked else Constants.none(operation.columns.numel())
            read[name] = _alike(read[name], constants) if name in read else constants
            found[node] = _of_rows(_folded(weights[name], constants))
        elif node in channels.axes:
            found[node] = operation.constants(given, channels.axes[node].atoms.numel())
        if node in clobbered and node in found:
            found[node] = Constants.none(found[node].known.numel())
    return {name: _folded(weights[name], constants) for name, constants in read.items()}


def _without_unwanted(
    weights: dict[str, Weights], operations: Operations, channels: Channels, clobbered: set[fx.Node]
) -> tuple[dict[str, Weights], dict[fx.Node, Tensor]]:
    """Connections into rows that nothing reads go. Also, which places of each node with a channel axis something reads."""
    wanted = {node: torch.full_like(axis.atoms, node in clobbered, dtype=torch.bool) for node, axis in channels.axes.items()}
    rows: dict[str, Tensor] = {}  # of each layer that are read, in any of its calls
    for node, operation in reversed(operations.items()):
        if isinstance(operation, Layer):
            name = operation.name
            rows[name] = rows.get(name, wanted[node]) | wanted[node]
            places = _into(weights[name], wanted[node]).inputs_read()
            sources: list[Tensor | bool] = [places if operation.linked else True]
        else:
            sources = operation.wanted(wanted.get(node, torch.empty(0, dtype=torch.bool, device="cpu")))
        for source, places in zip(operation.inputs, sources, strict=True):
            if source in wanted:
                wanted[source] |= places
    return {name: _into(weights[name], places) for name, places in rows.items()}, wanted


def _into(weights: Weights, rows: Tensor) -> Weights:
    return weights if bool(rows.all()) else weights.keep(rows.to(weights.values.device)[weights.topology.rows], weights.bias)


def _alike(one: Constants, other: Constants) -> Constants:
    return Constants(one.known & other.known & (one.value == other.value), one.value)


def _folded(weights: Weights, read: Constants) -> Weights:
    if not bool(read.known.any()):
        return weights
    device, source = weights.values.device, weights.input_of_each()
    known, value = read.known.to(device)[source], read.value.to(device)[source]
    goes = known & ((value == 0) | weights.within())
    if not bool(goes.any()):
        return weights
    rows, added = weights.topology.rows[goes], weights.values[goes].double() * value[goes]
    start = torch.zeros(weights.geometry.shape[0], dtype=torch.float64, device=device) if weights.bias is None else weights.bias.double()
    bias = start.index_add(0, rows, added).to(weights.values)
    return weights.keep(~goes, None if weights.bias is None and not bool(bias.any()) else bias)


def _of_rows(weights: Weights) -> Constants:
    rows = weights.geometry.shape[0]
    value = torch.zeros(rows, dtype=torch.float64, device="cpu") if weights.bias is None else weights.bias.double().cpu()
    return Constants(weights.topology.fan_in.cpu() == 0, value)


def _changes(layer: nn.Module, whole: Weights, part: Weights) -> bool:
    held = layer.topology.nnz if isinstance(layer, TopologyLayer) else whole.topology.nnz
    return part.topology.nnz != held or part.geometry != whole.geometry


def _part_of_norm(norm: nn.Module, kept: Tensor) -> nn.Module:
    affine = norm.weight is not None
    part = type(norm)(int(kept.sum()), eps=norm.eps, momentum=norm.momentum, affine=affine, device="meta").eval()  # type: ignore[call-arg]
    state = {name: array if array.ndim == 0 else array[kept.to(array.device)].clone() for name, array in norm.state_dict().items()}
    part.load_state_dict(state, assign=True)
    for new, old in zip(part.parameters(), norm.parameters(), strict=True):
        new.requires_grad_(old.requires_grad)
    return part


def _part_of_table(table: nn.Module, kept: Tensor) -> nn.Module:
    assert isinstance(table, nn.Embedding)
    weight = table.weight.detach()[:, kept.to(table.weight.device)].clone()
    return with_weight(table, nn.Parameter(weight, table.weight.requires_grad))
