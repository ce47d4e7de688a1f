"""How does a network that somebody else pruned become sparse? Its weights are read as they are there, and its zeros are gone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...nn import TopologyLayer
from ...nn.convert import replaced, sparse_in_place_of, standing_in
from ...nn.selection import Excluded, Selection, select
from ...topology import Topology
from ...topology.patterns import Pattern, Unstructured
from ...topology.patterns import pattern as named_pattern
from .files import read_file
from .graphs import read_onnx
from .marked import plain
from .modules import made_by_others, with_weights
from .places import placed
from .source import Source
from .states import read_state
from .trees import is_tree, read_tree

Model = TypeVar("Model", bound=nn.Module)


def from_pruned(
    model: Model,
    source: Mapping[str, Any] | str | Path | Any = None,
    *,
    names: Mapping[str, str] | None = None,
    pattern: str | Pattern | None = None,
    exclude: Iterable[Excluded] = (),
) -> Model:
    """Take over what others have pruned, in place: exactly those connections, with exactly those values, in sparse layers.

        ts.from_pruned(model)                                    # masks, parametrizations, sparse tensors, zeros that are in the model
        ts.from_pruned(model, torch.load(path, weights_only=True))
        ts.from_pruned(model, "model.safetensors")               # also bitmasks of compressed-tensors; or the folder
        ts.from_pruned(model, "model.onnx")
        ts.from_pruned(model, params, names={"fc1": "Dense_0"})  # a tree of Flax or Haiku, as jaxpruner leaves it

    What a mask or a sparse format stores is a connection, also where it stores a zero (in a block of BSR, in two of four): it can be
    trained. In a dense weight a zero is none. A layer that misses no connection is dense afterwards. Of a layer that is sparse `to_dense()`
    is the source's dense form, but for the sign of its zeros.

    Args:
        model: a dense model of torch of the same architecture; its layers are found as `sparsify` finds them.
        source: where the weights are; None: in the model itself. A `state_dict` whose tensors may be CSR, CSC, BSR, BSC, COO or
            semi-structured (cuSPARSELt's only on a GPU), or as torch.nn.utils.prune and torch.ao.pruning name them; a tree of arrays; the
            path of a safetensors or ONNX file; an `onnx.ModelProto`. Whatever else it holds (biases, norms) is loaded too, and nothing may
            be missing. A sparse matrix [rows, columns] fits a convolution by `weight.flatten(1)`. A linear layer of Flax after a flatten of
            images reads height, width, channel: the model must flatten so, which shapes do not tell. Transposed convolutions of theirs are
            refused.
        names: {name in the model: name in the source} of tensors or of modules, where they differ; "" is the model itself. Names of Flax
            and ONNX that match nothing are matched by order and shapes, which is told.
        pattern: the rule that the topologies obey, as in `sparsify`; None is `Unstructured()`.
        exclude: layers to leave dense, as in `sparsify`.

    Returns:
        The same model (or, if it is itself a layer, the layer that replaces it). Parameters of sparse layers are new.

    Raises:
        ValueError: if nothing is pruned, the source cannot be read, its names or shapes do not fit, its values cannot be held exactly, or
            the pattern does not fit. The model is unchanged.
        TypeError: if layers cannot be made sparse, as in `sparsify`, or the source is nothing of the above. The model is unchanged.
        FileNotFoundError: if there is no such file.
        MissingLibrary: if the source is an ONNX model and onnx is not installed.

    Warns:
        UserWarning: if order and shapes decide what is what.
    """
    if any(isinstance(module, TopologyLayer) for module in model.modules()):
        raise ValueError("the model has sparse layers already: pass a dense one, as made by its class or by ts.densify")
    if source is None and names:
        raise ValueError("names says where in a source the weights are: pass the source too, or leave names out")
    rule = named_pattern(pattern or Unstructured())
    loaded = {} if source is None else placed(model, read(source), names or {})
    stand_ins = with_weights(model, loaded) if source is not None else made_by_others(model)
    with standing_in(model, stand_ins) as standing:
        selection = select(standing, [stand_ins.get(one, one) if isinstance(one, nn.Module) else one for one in exclude])
    replacements = _replacements(selection, stand_ins, rule, source is None)
    if not any(isinstance(new, TopologyLayer) for new in replacements.values()):
        raise ValueError("found nothing that is pruned: the weights of all linear layers and convolutions have no zeros")
    with torch.no_grad():
        for target, weight in loaded.items():
            target.copy_(plain(weight))
    return replaced(model, replacements)


def read(source: Any) -> Source:
    """What is in a source.

    Raises:
        TypeError: if it is nothing that can be read.
    """
    if isinstance(source, (str, Path)):
        return read_file(Path(source))
    if isinstance(source, Mapping):
        return read_tree(source) if is_tree(source) else read_state(source)
    if type(source).__name__ == "ModelProto":
        return read_onnx(source)
    raise TypeError(
        f"expected a state_dict, a tree of arrays, a path or an onnx.ModelProto to read weights from, got {type(source).__name__}; "
        "of another module pass its state_dict()"
    )


def _replacements(
    selection: Selection, stand_ins: Mapping[nn.Module, nn.Module], rule: Pattern, in_model: bool
) -> dict[nn.Module, nn.Module]:
    """{module of the model, or of a replacement: what takes its place}"""
    original = {new: old for old, new in stand_ins.items()}
    sparse = {layer: new for name, layer in selection.layers.items() if (new := _sparse(name, layer, rule)) is not None}
    opened = {closed: one for closed, one in selection.opened.items() if not sparse.keys().isdisjoint(one.modules())}
    replacements: dict[nn.Module, nn.Module] = {}
    for old, new in (*opened.items(), *sparse.items()):
        replacements[old] = replacements[original.get(old, old)] = new  # an opened module may hold what stands in for a layer
    if in_model:  # those that have lost nothing become ordinary layers, too
        chosen = {*selection.layers.values(), *selection.opened}
        replacements = {old: new for old, new in stand_ins.items() if new in chosen} | replacements
    for new in replacements.values():
        for parameter in () if isinstance(new, TopologyLayer) else new.parameters():
            if parameter.ndim > 1:
                parameter.data = plain(parameter.data)
    return replacements


def _sparse(name: str, layer: nn.Module, rule: Pattern) -> TopologyLayer | None:
    """The sparse layer of one whose weight is marked; None if that misses no connection.

    Raises:
        ValueError: if its topology does not obey the pattern.
    """
    weight: Tensor = layer.weight.detach()  # type: ignore[assignment, operator]
    topology = Topology.from_mask(weight.flatten(1) != 0)
    if topology.nnz == topology.size:
        return None
    try:
        return sparse_in_place_of(layer, topology, rule, plain(weight.flatten()[topology.keys]))
    except ValueError as error:
        raise ValueError(f"layer {name!r}: {error}") from error
