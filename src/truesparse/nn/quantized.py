"""What is a quantised layer? A sparse layer that computes with the values of its connections rounded, and with its input rounded too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..topology.identity import identity_of
from .conv import SparseConv1d, SparseConv2d, SparseConv3d
from .linear import SparseLinear
from .rounded import FromCodebook, RoundedByRow, RoundedInput
from .sparse import SparseLayer
from .state import stated_topology
from .transposed import SparseConvTranspose1d, SparseConvTranspose2d, SparseConvTranspose3d
from .values import recognised, values_parameter

READ_ONLY = "the values of a quantised layer are made in every forward pass: write to layer.rounding.trained, or ts.dequantize(model) first"
FIXED = "quantised layers keep their connections: prune and rewire before ts.quantize, or call ts.dequantize(model) first; quantised: {}"
NO_DENSE = "{kind} rounds its input, which no layer of torch.nn does: ts.dequantize(model) first, which keeps the rounded values"


class QuantizedLayer(SparseLayer):
    """A sparse layer whose values are made of fewer numbers, and are trained through their rounding; its connections stay.

    `values` are the rounded ones, to be read.

    Attributes:
        rounding: makes the values. Its parameter `trained` is what an optimizer holds for the connections.
        input_rounding: rounds the input to int8; None: the input stays as it is.
    """

    rounding: RoundedByRow | FromCodebook
    input_rounding: RoundedInput | None

    if not TYPE_CHECKING:  # who reads types takes them for the parameter that they stand for

        @property
        def values(self) -> Tensor:
            """[nnz], as the layer computes with them. Differentiable."""
            return self.rounding(self._array("indptr"))

    def forward(self, input: Tensor, *others: Any, **named: Any) -> Tensor:
        """As that of the sparse layer, of the rounded input."""
        return super().forward(input if self.input_rounding is None else self.input_rounding(input), *others, **named)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        raise TypeError(READ_ONLY)

    def initialise(self, fill: Callable[[Tensor], Any]) -> None:
        raise TypeError(READ_ONLY)

    def _fill(self, dense: nn.Module) -> None:
        if self.input_rounding is not None:
            raise TypeError(NO_DENSE.format(kind=type(self).__name__))
        super()._fill(dense)

    def _recognise_values(self) -> None:
        if self.rounding.by == "row":
            recognised(self.rounding.trained, len(self.geometry.weight_shape))

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        try:
            self._make_room(state_dict, prefix, bool(local_metadata.get("assign_to_params_buffers", False)))
        except (TypeError, ValueError) as error:
            error_msgs.append(f"{prefix.removesuffix('.') or type(self).__name__}: {error}")
            return
        state_dict = {**state_dict, prefix + "fingerprint": self.fingerprint}
        own = self.indptr, self.indices
        nn.Module._load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        if own[0] is self.indptr and own[1] is self.indices:
            self._seen = identity_of(*own)

    def _make_room(self, state: Mapping[str, Any], prefix: str, assign: bool) -> None:
        """Have the topology and the lengths of a state that is about to be loaded; an incomplete one is left to torch to refuse."""
        per_connection, trained = (f"{prefix}rounding.{name}" for name in (self.rounding.of_connections, "trained"))
        if any(name not in state for name in (prefix + "indptr", prefix + "indices", per_connection, trained)):
            return
        device = None if assign else self.indices.device
        topology = stated_topology(self, {**state, prefix + "values": state[per_connection]}, prefix, device)
        if self.rounding.by == "codebook" and topology.nnz and int(state[per_connection].max()) >= len(state[trained]):
            raise ValueError(f"its codes go beyond a codebook of {len(state[trained])} entries")
        for name, full in ((self.rounding.of_connections, per_connection), ("trained", trained)):
            tensor = getattr(self.rounding, name)
            if name == "codes" or tensor.shape != state[full].shape:  # old codes may go beyond the new codebook
                tensor.grad = None
                tensor.data = tensor.new_zeros(state[full].shape)
        if not self._holds(topology):
            self.changed_alone += 1
            self._set_topology(topology)
        self._expect_acting(dict(state), prefix)


class QuantizedLinear(QuantizedLayer, SparseLinear):
    """A `SparseLinear` whose values are rounded."""


class QuantizedConv1d(QuantizedLayer, SparseConv1d):
    """A `SparseConv1d` whose values are rounded."""


class QuantizedConv2d(QuantizedLayer, SparseConv2d):
    """A `SparseConv2d` whose values are rounded."""


class QuantizedConv3d(QuantizedLayer, SparseConv3d):
    """A `SparseConv3d` whose values are rounded."""


class QuantizedConvTranspose1d(QuantizedLayer, SparseConvTranspose1d):
    """A `SparseConvTranspose1d` whose values are rounded."""


class QuantizedConvTranspose2d(QuantizedLayer, SparseConvTranspose2d):
    """A `SparseConvTranspose2d` whose values are rounded."""


class QuantizedConvTranspose3d(QuantizedLayer, SparseConvTranspose3d):
    """A `SparseConvTranspose3d` whose values are rounded."""


KINDS: dict[type[SparseLayer], type[QuantizedLayer]] = {
    SparseLinear: QuantizedLinear,
    SparseConv1d: QuantizedConv1d,
    SparseConv2d: QuantizedConv2d,
    SparseConv3d: QuantizedConv3d,
    SparseConvTranspose1d: QuantizedConvTranspose1d,
    SparseConvTranspose2d: QuantizedConvTranspose2d,
    SparseConvTranspose3d: QuantizedConvTranspose3d,
}
PLAIN = {quantized: plain for plain, quantized in KINDS.items()}


def refuse_quantized(layers: Mapping[str, nn.Module]) -> None:
    """
    Raises:
        TypeError: if there is a quantised layer, for its connections stay.
    """
    found = [name for name, layer in layers.items() if isinstance(layer, QuantizedLayer)]
    if found:
        raise TypeError(FIXED.format(", ".join(map(repr, found))))


def become_quantized(layer: SparseLayer, rounding: RoundedByRow | FromCodebook, input_rounding: RoundedInput | None) -> None:
    """In place: whoever holds the layer, and the parameter that `rounding` has taken over, holds it still."""
    del layer._parameters["values"]
    layer.__class__ = KINDS[type(layer)]
    layer.add_module("rounding", rounding)
    layer.add_module("input_rounding", input_rounding)
    layer._recognise_values()


def become_plain(layer: Any) -> None:
    """In place: a sparse layer with the rounded values; a parameter that has one number a connection stays the same object."""
    values, trained, rounded_by = layer.values.detach().clone(), layer.rounding.trained, layer.rounding.by
    del layer._modules["rounding"], layer._modules["input_rounding"]
    layer.__class__ = PLAIN[type(layer)]
    if rounded_by == "row":
        trained.data, trained.grad = values, None
        layer.values = trained
    else:
        layer.values = values_parameter(values, len(layer.geometry.weight_shape)).requires_grad_(trained.requires_grad)
