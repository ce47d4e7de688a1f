"""How does a network run where there is no PyTorch? As an ONNX file, its weights dense or, in fewer bytes, sparse.

torch's own exporter writes the graph, of the smallest dense network that computes the same. It needs onnx and onnxscript, which are an
extra: `pip install truesparse[onnx]`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..common.hooks import user_hooks
from ..common.optional import library
from ..common.quiet import quiet
from ..inference.graph.example import Example, form_of, inputs_of
from ..inference.graph.trace import Untraceable, copied
from ..inference.packed import Frozen
from ..inference.shrink import smaller
from ..nn import TopologyLayer, densify
from ..nn.wrapped import unwrapped
from .header import first_line
from .written import check_place, write_file

if TYPE_CHECKING:
    from onnx import ModelProto, SparseTensorProto, TensorProto, ValueInfoProto

EXTRA = "onnx"
OLDEST_OPSET = 18  # torch's exporter has no older one
INDEX_BYTES = 8  # ONNX writes the position of a value in 64 bits
DESCRIPTION_BYTES = 64  # names and shapes that a sparse weight says beyond those of a dense one, about


def export_onnx(
    model: nn.Module,
    path: str | Path,
    example_inputs: Example,
    *,
    sparse_initialisers: bool = False,
    opset: int = OLDEST_OPSET,
    dynamic_batch: bool = True,
) -> None:
    """Write what a network computes in eval mode as an ONNX file, for ONNX Runtime and others.

    ONNX has no sparse arithmetic, and ONNX Runtime makes sparse weights dense when it loads them: sparse initialisers make the
    file smaller, not the network faster. Neurons that are gone are not in the file (`shrink`), which makes it smaller and the network
    faster; a network that cannot be traced keeps them. For speed there is `pack`. Inputs are named as in `forward`, the output "output"
    (several: "output_0", "output_1", ...).

    Args:
        model: with sparse, masked or dense layers; it is left as it is. Of a wrapped one (`torch.compile`, DDP, `AveragedModel`) the
            network inside is written.
        path: of the file; what is there is replaced, whole or not at all. Its folder must exist.
        example_inputs: an input, or a tuple of the positional inputs.
        sparse_initialisers: write weights with many zeros as `sparse_initializer` of ONNX (value and 64-bit position of each connection)
            wherever that takes fewer bytes: above 67 % sparsity.
        opset: version of ONNX's operators, 18 or later. The older, the more runtimes know it.
        dynamic_batch: the first extent of the inputs may be any; False: it is that of the example.

    Raises:
        MissingLibrary: if onnx or onnxscript is not installed.
        TypeError: if the model is packed, a hook of yours is on one of its sparse layers, torch cannot export it, or it works at one
            batch size only.
        ValueError: if the model does not run on the example, or `opset` is out of its range.
        FileError: if the file cannot be written.
    """
    onnx = library("onnx", EXTRA, "export_onnx")
    library("onnxscript", EXTRA, "export_onnx")
    if any(isinstance(module, Frozen) for module in model.modules()):
        raise TypeError("a packed network holds its weights as only this library reads them: export the network that it was packed from")
    form = form_of(example_inputs)
    if form.names or form.has_dicts:
        raise TypeError(
            "export_onnx takes positional inputs, a tensor or a tuple of tensors, got a dict: export a module whose forward takes the "
            "tensors one by one and calls yours"
        )
    check_place(Path(path))
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise ValueError(f"opset must be in [{OLDEST_OPSET}, {newest}], got {opset}")
    model = unwrapped(model)
    hooked = [name for name in user_hooks(model) if isinstance(model.get_submodule(name), TopologyLayer)]
    if hooked:
        raise TypeError(f"hooks of yours are on the sparse layers {', '.join(hooked)}, and no ONNX file can hold them: remove them first")
    inputs = _two_samples(inputs_of(example_inputs)) if dynamic_batch else inputs_of(example_inputs)
    outputs = _outputs(densify(copied(model)), inputs)
    proto = _exported(_smallest(model, inputs), inputs, outputs, opset, dynamic_batch)
    _forget_origin(proto)
    if sparse_initialisers:
        _make_sparse(proto)
    try:
        content = proto.SerializeToString()
    except Exception as error:  # protobuf's own kinds, which change with its version
        raise TypeError(f"the network does not fit into one ONNX file, which holds 2 GB: {first_line(error)}") from error
    write_file(Path(path), content)


def _smallest(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """The dense network in eval mode that computes the same, without neurons that never matter if that can be told."""
    try:
        return densify(smaller(model, inputs)[0]).eval()
    except Untraceable:
        return densify(copied(model))


def _two_samples(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A batch in which torch's exporter sees an extent that may change: it takes an extent of 1 for what is always 1."""
    batches = {one.shape[0] for one in inputs if one.ndim}
    if len(batches) > 1 or 0 in batches:
        raise ValueError(
            f"the first extents of the inputs must be one batch of at least 1 sample, got {', '.join(map(str, sorted(batches)))}; "
            "for inputs that are no batches pass dynamic_batch=False"
        )
    return tuple(torch.cat([one, one]) if one.ndim and batches == {1} else one for one in inputs)


def _outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[str]:
    try:
        with torch.no_grad():
            outputs = tree_leaves(model(*inputs))
    except Exception as error:
        shapes = ", ".join(str(tuple(one.shape)) for one in inputs)
        raise ValueError(f"the model does not run on inputs of shape {shapes} like those of the example: {first_line(error)}") from error
    others = [type(one).__name__ for one in outputs if not isinstance(one, Tensor)]
    if others:
        raise TypeError(f"an ONNX file gives tensors only, {type(model).__name__} gives {', '.join(others)} too")
    return ["output"] if len(outputs) == 1 else [f"output_{number}" for number in range(len(outputs))]


def _exported(model: nn.Module, inputs: tuple[Tensor, ...], outputs: list[str], opset: int, dynamic_batch: bool) -> ModelProto:
    shapes: Any = None
    if dynamic_batch:
        batch = torch.export.Dim("batch")
        shapes = tuple({0: batch} if one.ndim else None for one in inputs)
    try:
        with quiet():
            program = torch.onnx.export(
                model, inputs, dynamo=True, verbose=False, opset_version=opset, dynamic_shapes=shapes, output_names=outputs
            )
    except Exception as error:
        remedy = "; perhaps it can with dynamic_batch=False" if dynamic_batch else ""
        raise TypeError(f"torch cannot export {type(model).__name__} to ONNX: {_reason(error)}{remedy}") from error
    assert program is not None
    proto: ModelProto = program.model_proto
    # What torch cannot do it leaves undone, and says so in its log.
    if dynamic_batch and not all(_has_free_batch(one) for one in proto.graph.input):
        raise TypeError(
            f"{type(model).__name__} works at one batch size only: pass dynamic_batch=False, or let its forward ask for x.shape[0]"
        )
    if [one.version for one in proto.opset_import if not one.domain] != [opset]:
        raise TypeError(f"the operators of {type(model).__name__} cannot be converted to opset {opset}; choose {OLDEST_OPSET}")
    return proto


def _has_free_batch(input: ValueInfoProto) -> bool:
    extents = input.type.tensor_type.shape.dim
    return not extents or bool(extents[0].dim_param)


def _reason(error: BaseException) -> str:
    """What went wrong first: the exporter wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def _forget_origin(proto: ModelProto) -> None:
    """Takes out what the exporter notes of where it ran: lines of source and names of folders, of each operation."""
    graph = proto.graph
    nodes = [*graph.node, *(node for function in proto.functions for node in function.node)]
    for part in (graph, *proto.functions, *nodes, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]


def _make_sparse(proto: ModelProto) -> None:
    """Puts each initialiser that is smaller so into sparse form, in place."""
    from onnx import TensorProto

    dense = list(proto.graph.initializer)
    del proto.graph.initializer[:]
    for tensor in dense:
        kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
        sparse = _sparse(tensor) if tensor.data_type in kinds else None
        if sparse is None:
            proto.graph.initializer.append(tensor)
        else:
            proto.graph.sparse_initializer.append(sparse)
    said = {one.values.name for one in proto.graph.sparse_initializer}
    types = [one for one in proto.graph.value_info if one.name not in said]  # those of the dense tensors that they no longer are
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(types)


def _sparse(tensor: TensorProto) -> SparseTensorProto | None:
    """None where it would take as many bytes, or more."""
    from onnx import helper, numpy_helper

    array = numpy_helper.to_array(tensor)
    values = array.ravel()
    keys = np.flatnonzero(values)
    if keys.size * (values.itemsize + INDEX_BYTES) + DESCRIPTION_BYTES >= values.nbytes:
        return None
    kept = numpy_helper.from_array(values[keys], tensor.name)
    return helper.make_sparse_tensor(kept, numpy_helper.from_array(keys.astype(np.int64)), array.shape)
