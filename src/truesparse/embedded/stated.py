"""What has `truesparse.quantize` said of a model: which whole numbers are its weights, and how are its inputs rounded?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..inference.graph.trace import copied
from ..nn.quantized import QuantizedLayer
from ..nn.rounded import FromCodebook
from ..quantization import QuantizedWeights, dequantize, quantized_layers
from .network import Matrix, Stated
from .scale import Scale

NEAR = 1e-6  # of a value: float32 holds a product of a scale and a number to less


def without_rounding(model: nn.Module) -> tuple[nn.Module, dict[str, QuantizedWeights]]:
    """(a copy in eval mode whose layers have the rounded values and round no input, what was said of each of them by name).

    How large the outputs of a layer are is not said where it was trained on: they may be larger since.
    """
    said = quantized_layers(model)
    if not said:
        return model, said
    copy = copied(model)
    trained = [name for name, layer in copy.named_modules() if isinstance(layer, QuantizedLayer) and _trained_since(layer)]
    return dequantize(copy), {name: replace(one, outputs=None) if name in trained else one for name, one in said.items()}


def _trained_since(layer: QuantizedLayer) -> bool:
    """Whether values have changed since they were quantised: then the largest of each row had been exactly the largest number."""
    rounding = layer.rounding
    if isinstance(rounding, FromCodebook):
        return True  # nobody knows
    largest = torch.zeros_like(rounding.scale)
    largest.scatter_reduce_(0, layer.topology.rows.long(), rounding.trained.detach().abs(), "amax")
    numbers, most = largest / rounding.scale, 2 ** (rounding.bits - 1) - 1
    return bool(((numbers > 0) & ((numbers - most).abs() > NEAR * most)).any())


@dataclass(frozen=True, eq=False)
class Told:
    """How the layers of a graph were quantised, after passes that have changed their rows.

    Args:
        said: of the whole layers, by name.
        rows: of layers that have lost some, those that are left.
        norms: what a norm has multiplied each row of a whole layer with since.
    """

    said: Mapping[str, QuantizedWeights]
    rows: Mapping[str, Tensor]
    norms: Mapping[str, Tensor]

    def of(self, name: str, matrix: Matrix) -> Matrix:
        """The matrix of a layer, knowing how it was quantised, if it was."""
        if name not in self.said:
            return matrix
        said = self.said[name]
        source, target = (None if one is None else Scale(one.scale, one.zero_point) for one in (said.inputs, said.outputs))
        if said.by == "codebook":
            return replace(matrix, stated=Stated(None, source, target))
        scales = said.table.double().cpu()
        if name in self.norms:
            scales, target = scales * self.norms[name].abs().cpu(), None  # what comes out has other ends now
        scales = scales[self.rows[name]] if name in self.rows else scales
        return replace(matrix, stated=Stated(scales.numpy(), source, target))
