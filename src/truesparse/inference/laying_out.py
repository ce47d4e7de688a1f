"""What is a layer laid out as? In what is fastest for it here, measured or guessed; layers that are alike are measured once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..topology.geometry import Convolution, Matrix
from .choice import Measured, Memory, by_rule, key_of, measure, refuse_wrong
from .explanation import PackedRow
from .graph.join import joined_name
from .graph.layers import FusedLayer, Weights, weights_of
from .graph.simplify import LayerChange
from .layouts import FAMILIES, Conditions, Dense, Epilogue, Finish, candidates, columns
from .packed import Followed, PackedLayer, padding_before
from .target import Target


@dataclass(frozen=True, eq=False)
class LayerToPack:
    """A layer of the simplified graph, its weights read once; what follows in its layout, then in one pass, then as modules."""

    module: nn.Module
    weights: Weights
    relu: bool
    finish: Finish
    epilogue: Epilogue | None = None
    others: tuple[nn.Module, ...] = ()
    adds: bool = False

    @classmethod
    def of(cls, module: nn.Module, family: str) -> LayerToPack:
        fused = module if isinstance(module, FusedLayer) else FusedLayer(module, None)
        weights, activation, pool = weights_of(fused.layer), fused.activation, fused.pool
        limited = isinstance(activation, nn.ReLU6)
        relu, images = isinstance(activation, nn.ReLU) or limited, isinstance(weights.geometry, Convolution)
        if not fused.adds and (activation is None or relu) and (images or not limited):
            return cls(fused.layer, weights, relu, Finish(6.0 if limited else math.inf, pool is not None))
        gelu = isinstance(activation, nn.GELU) and activation.approximate == "none"
        least, most = 0.0 if relu else -math.inf, 6.0 if limited else math.inf
        known = activation is None or relu or gelu
        epilogue = FAMILIES[family].epilogue(gelu, least, most) if known or fused.adds else None
        others = (None if known else activation, pool)
        return cls(fused.layer, weights, False, Finish(), epilogue, tuple(one for one in others if one is not None), fused.adds)

    @property
    def follows(self) -> tuple[str, ...]:
        """In words, what is done with the layer in one go."""
        finish, after = self.finish, self.epilogue or Epilogue()
        limits = max(after.least, 0.0 if self.relu else -math.inf), min(after.most, finish.most)
        limited = {(0.0, math.inf): "ReLU", (0.0, 6.0): "ReLU6"}.get(limits)
        said = ("sum" if self.adds else None, "GELU" if after.gelu else None, limited, "max-pool" if finish.pool else None)
        return tuple(one for one in said if one is not None)


@dataclass(frozen=True, eq=False)
class LayerInput:
    """What a layer's layout is called with, as far as it depends on that.

    Args:
        shape: samples first.
        zeros: the share of it that is zero; None: not known.
        x: itself, where its zeros could matter: of a matrix and few samples.
    """

    shape: tuple[int, ...]
    zeros: float | None = None
    x: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, layer: LayerToPack) -> LayerInput:
        """Of what the layer is called with, which may be written over afterwards."""
        geometry, padding = layer.weights.geometry, padding_before(layer.module)
        features = geometry.sample_ndim
        around = [0] * features
        for place, (low, high) in enumerate(zip(padding[::2], padding[1::2], strict=True), 1):
            around[-place] = low + high
        shape = (math.prod(x.shape[:-features]), *(extent + more for extent, more in zip(x.shape[-features:], around, strict=True)))
        zeros = 1 - int(x.count_nonzero()) / x.numel() if x.numel() else 0.0
        matters = isinstance(geometry, Matrix) and shape[0] <= columns.LARGEST_BATCH and zeros >= columns.LEAST_ZEROS
        return cls(shape, zeros, x.detach().reshape(shape).clone() if matters else None)


@dataclass(frozen=True)
class Chooser:
    """Lays out layer after layer.

    Args:
        target: for what.
        memory: what was measured before; None chooses by rule.
    """

    target: Target
    memory: Memory | None
    alike: dict[tuple[Any, ...], Measured] = field(default_factory=dict)  # layers of one shape and density are measured once

    def packed(self, layer: LayerToPack, change: LayerChange, given: LayerInput) -> tuple[PackedRow, nn.Module]:
        weights, relu = layer.weights, layer.relu
        zeros = 0.0 if given.x is None or given.zeros is None else round(given.zeros, 2)
        target = self.target
        conditions = Conditions(given.shape, target.threads, target.values, layer.finish, zeros, target.family)
        measured = None if self.memory is None else self._measured(weights, relu, conditions, given.x, self.memory)
        if measured is None:
            candidate = by_rule(weights, conditions)
            if target.on_gpu:  # whose kernels are younger
                refuse_wrong(candidate, weights, relu, conditions)
        else:
            candidate = next(one for one in candidates(weights, conditions) if str(one) == measured.fastest)
        layout = candidate.make(weights, relu, target.values)
        row = PackedRow(
            layer=joined_name(change.joined or (change.name,)),
            change=change,
            sparsity=weights.topology.sparsity,
            zeros=given.zeros,
            layout=str(layout),
            bytes=layout.nbytes,
            seconds=None if measured is None else measured.seconds[str(candidate)],
            dense_seconds=None if measured is None else measured.seconds[Dense.name],
            follows=layer.follows,
        )
        packed = PackedLayer(layout, weights.geometry, layer.module, layer.epilogue)
        return row, Followed(packed, *layer.others) if layer.others else packed

    def _measured(self, weights: Weights, relu: bool, conditions: Conditions, x: Tensor | None, memory: Memory) -> Measured:
        key = key_of(weights, relu, conditions, self.target.machine)
        wanted = {str(one) for one in candidates(weights, conditions)}
        for known in (memory.recall(key), self.alike.get(_likeness(weights, relu, conditions))):
            if known is not None and set(known.seconds) == wanted:
                return known
        found = measure(weights, relu, conditions, x)
        memory.keep(key, found)
        self.alike[_likeness(weights, relu, conditions)] = found
        return found


def _likeness(weights: Weights, relu: bool, conditions: Conditions) -> tuple[Any, ...]:
    """What layers have in common for which the same layout is fastest: shape, per cent of density, how unequal their rows are."""
    topology = weights.topology
    longest = int(topology.fan_in.max()) if topology.shape[0] else 0
    unequal = longest * topology.shape[0] / max(topology.nnz, 1)
    density = topology.nnz / max(topology.size, 1)
    return weights.geometry, weights.bias is None, relu, conditions, round(100 * density), round(4 * math.log2(max(unequal, 1)))
