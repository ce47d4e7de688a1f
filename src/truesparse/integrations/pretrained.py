"""How does a sparse model of transformers come back from its folder? `save_pretrained` and `from_pretrained` know it by a mark.

A sparse layer's tensors have other names than a dense one's, so transformers alone would make dense layers with random weights, and warn.
What it offers for layers of another kind is a quantizer; nothing is quantized here. The mark is `quantization_config` in config.json. Where
this module is not imported, an empty tensor in the place of each weight has transformers raise an error instead of the warning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..common.optional import library
from ..export.coding import decode, encode
from ..export.header import tensor_name
from ..nn import MaskedLayer, SparseLayer, topology_layers
from .sparse_like import PARTS, sparse_like, sparse_names

METHOD = "truesparse"
CODED = ("shape", "row_lengths", "gaps", "bits")  # export/coding.py
WHAT = "truesparse.integrations.transformers"

quantizers: Any = library("transformers.quantizers.auto", "transformers", WHAT)
base: Any = library("transformers.quantizers.base", "transformers", WHAT)
configs: Any = library("transformers.utils.quantization_config", "transformers", WHAT)
loading: Any = library("transformers.core_model_loading", "transformers", WHAT)
conversion: Any = library("transformers.conversion_mapping", "transformers", WHAT)
models: Any = library("transformers.modeling_utils", "transformers", WHAT)


@quantizers.register_quantization_config(METHOD)
class SparseMark(configs.QuantizationConfigMixin):
    """Says in config.json that the model is sparse; which layers are, and how, is with the weights."""

    def __init__(self, **_: Any) -> None:
        self.quant_method = METHOD


@quantizers.register_quantizer(METHOD)
class SparseWeights(base.HfQuantizer):
    """What transformers asks when it saves and loads a marked model."""

    requires_calibration = True  # only what was saved sparse is loaded sparse
    _parts: dict[str, Tensor]

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True

    def is_serializable(self) -> bool:
        return True

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
        masked = [name for name, layer in topology_layers(model).items() if isinstance(layer, MaskedLayer)]
        if masked:
            raise TypeError(
                f"layers {', '.join(map(repr, masked[:3]))} are masked twins, which no folder of transformers can hold: save with ts.save, "
                "or train truly sparse layers"
            )
        layers, state = topology_layers(model), model.state_dict()
        patterns = {name: str(layer.pattern) for name, layer in layers.items()}
        for name, layer in layers.items():
            arrays = {"shape": np.array(layer.topology.shape), **encode(layer.topology.to("cpu"))[1]}
            for part in ("indptr", "indices"):
                del state[tensor_name(name, part)]
            state |= {tensor_name(name, part): torch.from_numpy(array) for part, array in arrays.items()}
        guards = {name: torch.empty(0, device="cpu") for name in _guards(model)}
        return {**state, **guards}, {METHOD: json.dumps(patterns)}

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Sequence[str] | None = None, dtype: torch.dtype | None = None, **_: Any
    ) -> None:
        state, patterns = _stored(checkpoint_files or ())
        names = _names_in(model, sparse_names(state))
        known = {name: here for name, here in names.items() if here is not None}
        same = type(model).__name__ in (getattr(model.config, "architectures", None) or ())
        if not known or (same and len(known) < len(names)):
            lost = ", ".join(map(repr, sorted(names.keys() - known.keys())[:3]))
            raise RuntimeError(
                f"the saved model has sparse layers {lost}, and {type(model).__name__} has no modules of these names"
                if names
                else f"config.json says that the model is sparse, and there is no sparse layer in {', '.join(checkpoint_files or ())}"
            )
        self._parts = {
            tensor_name(here, part): state[tensor_name(name, part)]
            for name, here in known.items()
            for part in PARTS
            if tensor_name(name, part) in state
        }
        # In the file layers may have older names than in the model that was saved.
        places = {name: known.get(name) or here for name, here in _names_in(model, patterns).items()}
        sparse_like(model, self._parts, {here: patterns[name] for name, here in places.items() if here is not None})
        layers = topology_layers(model)
        for name, layer in layers.items():
            layer.to(dtype)
            # Some models initialise the weights of a child, which is loaded already, or of an opened child.
            for above in (name.rpartition(".")[0], ".".join(name.split(".")[:-2])):
                model.get_submodule(above)._is_hf_initialized = True
        empty = {re.escape(name) for name in _dense_names({*names, *layers})}
        read = {*(f"^{name}$" for name in empty), *(rf"^(.*\.)?{part}$" for part in CODED)}
        model._keys_to_ignore_on_load_unexpected = {*(model._keys_to_ignore_on_load_unexpected or ()), *read}
        made = {rf"^(.*\.)?{part}$" for part in ("indptr", "indices")}
        model._keys_to_ignore_on_load_missing = {*(model._keys_to_ignore_on_load_missing or ()), *made}

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> None:
        for name, layer in topology_layers(model).items():  # whatever happened to them since
            parts = {part: self._parts[tensor_name(name, part)] for part in PARTS if tensor_name(name, part) in self._parts}
            layer.load_state_dict(parts, strict=False)
        self._parts = {}
        model.is_quantized = False
        mark(model)


def mark(model: nn.Module) -> None:
    """Have each transformers model in `model` saved and loaded as what it is: sparse, or, after `densify`, dense."""
    own: list[Any] = [module for module in model.modules() if isinstance(module, models.PreTrainedModel)]
    for module in own:
        held = getattr(module, "hf_quantizer", None)
        if held is not None and not isinstance(held, SparseWeights):
            continue  # somebody else's
        if topology_layers(module):
            module.config.quantization_config = SparseMark()
            module.hf_quantizer = SparseWeights(module.config.quantization_config)
            if held is None:
                module.register_load_state_dict_pre_hook(_as_layers_hold_it)
        elif held is not None:
            held.remove_quantization_config(module)


def _guards(model: nn.Module) -> list[str]:
    """Names under which no dense model can load an empty tensor: those of the weights that do not exist."""
    return _dense_names(name for name, layer in topology_layers(model).items() if isinstance(layer, SparseLayer))


def _dense_names(layers: Iterable[str]) -> list[str]:
    """Names of their dense weights, also where a layer is inside an opened module."""
    return [tensor_name(module, "weight") for name in layers for module in (name, name.rpartition(".")[0]) if module]


def _as_layers_hold_it(model: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """A state as a folder has it, in place, becomes one that the layers can load."""
    for name in _guards(model):
        state.pop(prefix + name, None)
    _decode(state)


def _decode(state: dict[str, Tensor]) -> None:
    """`indptr` and `indices` in the place of each coding of connections.

    Raises:
        RuntimeError: if one is no coding of connections, or a part of it is missing.
    """
    for name in [name.removesuffix("row_lengths") for name in state if name.split(".")[-1] == "row_lengths"]:
        shape, lengths, gaps, bits = (state.pop(name + part, None) for part in CODED)
        positions = bits if gaps is None else gaps
        coding = "full" if positions is None else "bits" if gaps is None else "gaps8" if gaps.dtype == torch.uint8 else "gaps16"
        try:
            if shape is None or lengths is None or shape.shape != (2,):
                raise ValueError("a part of what says which there are is missing")
            rows, columns = shape.tolist()
            found = decode(
                (rows, columns), coding, lengths.numpy(), None if positions is None else positions.numpy(), int(lengths.long().sum())
            )
        except ValueError as error:
            raise RuntimeError(f"the connections of layer {name.removesuffix('.')!r} cannot be read: {error}") from error
        state[f"{name}indptr"], state[f"{name}indices"] = found.indptr, found.indices


def _stored(files: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(the tensors of sparse layers, the patterns) in safetensors files."""
    state: dict[str, Tensor] = {}
    patterns: dict[str, str] = {}
    for path in files:
        if not str(path).endswith(".safetensors"):
            raise RuntimeError(f"sparse models are read from safetensors files, got {path}: save it with save_pretrained")
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            state |= {name: file.get_tensor(name) for name in names if name.split(".")[-1] in (*PARTS, *CODED)}
            patterns |= json.loads((file.metadata() or {}).get(METHOD, "{}"))
    _decode(state)
    return state, patterns


def _names_in(model: Any, names: Iterable[str]) -> dict[str, str | None]:
    """What layers of a file are called in a model, where transformers would look for their dense weights; None where nowhere."""
    transforms = conversion.get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, loading.WeightRenaming)]
    here = model.state_dict()
    found: dict[str, str | None] = dict.fromkeys(names)
    for name in found:
        above, _, leaf = name.rpartition(".")
        # A layer of an opened module (Conv1D) is inside the one whose dense weight it stands for.
        for module, inside in ((name, ""), (above, f".{leaf}")):
            weight, _ = loading.rename_source_key(tensor_name(module, "weight"), renamings, [], model.base_model_prefix, here)
            if weight in here:
                found[name] = weight.removesuffix(".weight") + inside
                break
    return found
