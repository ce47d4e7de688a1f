"""Which weights has an ONNX model? Its graph says of each what it is multiplied with, and so how it lies in torch's modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...common.optional import library
from .marked import from_anything, marked
from .source import Source

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, SparseTensorProto

CONVOLUTIONS = ("Conv", "ConvTranspose")
NORMS = {"BatchNormalization": ("weight", "bias", "running_mean", "running_var"), "LayerNormalization": ("weight", "bias")}
QUANTISED = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DequantizeLinear")
FLOATS = ("FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16")


def read_onnx(model: Path | ModelProto) -> Source:
    """Weights of convolutions, products and norms, by the name of the layer where the exporter has kept one; the rest may be left.

    Dense initialisers are connected where they are not zero; sparse ones where they store a value.

    Raises:
        MissingLibrary: if onnx is not installed.
        ValueError: if the file cannot be read, or its weights are quantised.
    """
    onnx = library("onnx", "onnx", "from_pruned of an ONNX model")
    if isinstance(model, Path):
        try:
            model = onnx.load(str(model))
        except Exception as error:  # of protobuf, of files beside this one
            raise ValueError(f"{model} is no whole ONNX file: {error}; fetch it again") from error
    assert not isinstance(model, Path)
    nodes: Sequence[NodeProto] = model.graph.node
    quantised = sorted({node.op_type for node in nodes if node.op_type in QUANTISED})
    if quantised:
        raise ValueError(f"the ONNX model has quantised weights ({', '.join(quantised)}): exact connections need floating-point weights")
    constants = dict(_constants(model))
    for node in nodes:
        if node.op_type == "Identity" and node.input[0] in constants:  # exporters write alike tensors once
            constants[node.output[0]] = constants[node.input[0]]
    layers = [{leaf: name for leaf, name in layer.items() if name in constants} for layer in _layers(nodes, constants)]
    found: dict[str, Tensor] = {}
    used, linear = set[str](), set[str]()
    for layer in layers:
        if "weight" not in layer or layer["weight"] in used:
            continue
        used.update(layer.values())
        own = _layer_name(layer)
        for leaf, name in layer.items():
            if leaf in ("weight", "bias", "running_mean", "running_var"):
                found[f"{own}.{leaf}"] = constants[name]
        if "outputs_last" in layer or "outputs_first" in layer:
            linear.add(f"{own}.weight")
        if "outputs_last" in layer:
            found[f"{own}.weight"] = constants[layer["weight"]].T.contiguous()
    others = {name: tensor for name, tensor in constants.items() if name not in used and name not in found}
    return Source(found | others, may_be_left=frozenset(others), linear=frozenset(linear), foreign=True)


def _layers(nodes: Sequence[NodeProto], constants: Mapping[str, Tensor]) -> Iterator[dict[str, str]]:
    """{what it is in its layer: name of the constant} of each layer, in the order of execution.

    Of a product there is an entry "outputs_last" or "outputs_first" too, by where the outputs are in its matrix.
    """
    turned = {node.output[0]: node.input[0] for node in nodes if node.op_type == "Transpose" and _attribute(node, "perm") == [1, 0]}
    adds = {name: node for node in nodes if node.op_type == "Add" for name in node.input}

    def told(name: str) -> tuple[str, bool]:
        """(the constant, whether it is transposed on the way here)"""
        flipped = False
        while name not in constants and name in turned:
            name, flipped = turned[name], not flipped
        return name, flipped

    for node in nodes:
        inputs = [told(name)[0] for name in node.input]
        if node.op_type in CONVOLUTIONS:
            yield dict(zip(("weight", "bias"), inputs[1:], strict=False))
        elif node.op_type in NORMS:
            yield dict(zip(NORMS[node.op_type], inputs[1:], strict=False))
        elif node.op_type in ("Gemm", "MatMul") and inputs[1] in constants and constants[inputs[1]].ndim == 2:
            name, flipped = told(node.input[1])
            outputs_first = flipped != bool(_attribute(node, "transB", 0))
            layer = {"weight": name, "outputs_first" if outputs_first else "outputs_last": name}
            if node.op_type == "Gemm":
                if _attribute(node, "alpha", 1.0) != 1.0 or _attribute(node, "beta", 1.0) != 1.0:
                    raise ValueError(f"the ONNX model multiplies {name!r} by a factor (Gemm with alpha or beta), so that nothing is exact")
                bias = inputs[2] if len(inputs) > 2 else None
            else:
                add = adds.get(node.output[0])
                bias = next((told(one)[0] for one in add.input if one != node.output[0]), None) if add else None
            if bias is not None and bias in constants and constants[bias].ndim == 1:
                layer["bias"] = bias
            yield layer


def _layer_name(layer: Mapping[str, str]) -> str:
    """That of the module where a part is still called so: exporters rename what they have transposed ("onnx::MatMul_12")."""
    named = (name.removesuffix(f".{leaf}") for leaf, name in layer.items() if name.endswith(f".{leaf}"))
    return next(named, layer["weight"])


def _constants(model: ModelProto) -> Iterator[tuple[str, Tensor]]:
    """The floating-point initialisers and constants, marked."""
    from onnx import TensorProto, numpy_helper

    kinds = {getattr(TensorProto, kind) for kind in FLOATS}
    dense = [(one.name, one) for one in model.graph.initializer]
    sparse = [(one.values.name, one) for one in model.graph.sparse_initializer]
    for node in model.graph.node:
        if node.op_type == "Constant":
            dense += [(node.output[0], one.t) for one in node.attribute if one.name == "value"]
            sparse += [(node.output[0], one.sparse_tensor) for one in node.attribute if one.name == "sparse_value"]
    for name, tensor in dense:
        if tensor.data_type in kinds:
            yield name, from_anything(name, _read(numpy_helper, name, tensor))
    for name, tensor in sparse:
        if tensor.values.data_type in kinds:
            yield name, _from_sparse(name, tensor, numpy_helper)


def _from_sparse(name: str, tensor: SparseTensorProto, numpy_helper: Any) -> Tensor:
    """Positions are linear, [n], or one for each dimension, [n, dimensions]."""
    shape = tuple(tensor.dims)
    values = from_anything(name, _read(numpy_helper, name, tensor.values))
    at = np.asarray(_read(numpy_helper, name, tensor.indices))
    size = int(np.prod(shape))
    extents = shape if at.ndim == 2 else (size,)
    if at.shape[1:] not in ((), (len(shape),)) or len(at) != values.numel() or bool(((at < 0) | (at >= extents)).any()):
        raise ValueError(f"sparse initialiser {name!r} of shape {shape} has {values.numel()} values and positions that do not fit: damaged")
    keys = torch.from_numpy(np.ravel_multi_index(tuple(at.T), shape) if at.ndim == 2 else at.astype(np.int64))
    weight, present = values.new_zeros(size), torch.zeros(size, dtype=torch.bool, device="cpu")
    weight[keys], present[keys] = values, True
    return marked(name, weight, present).view(shape)


def _read(numpy_helper: Any, name: str, tensor: Any) -> Any:
    try:
        return numpy_helper.to_array(tensor)
    except Exception as error:
        raise ValueError(f"initialiser {name!r} of the ONNX model cannot be read: {error}; fetch the file again") from error


def _attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)
