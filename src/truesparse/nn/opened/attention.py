"""How does the attention of torch, which reads its weights itself, become one whose four projections are layers?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NoReturn, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Opened, linear

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class OpenedAttention(Opened):
    """`nn.MultiheadAttention` with projections that are layers: `q_proj`, `k_proj`, `v_proj` and `out_proj`.

    It takes and gives exactly what `nn.MultiheadAttention` does. Attributes are those of that class; `in_proj_weight` and
    `in_proj_bias` are None, which tells the encoder layers of torch that there is no matrix to hand to a dense kernel.
    """

    q_proj: nn.Linear  # these, or the sparse layers in their places
    k_proj: nn.Linear
    v_proj: nn.Linear
    out_proj: nn.Linear
    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None
    in_proj_weight: None
    in_proj_bias: None

    def __init__(self, embed_dim: int, num_heads: int, dropout: float, batch_first: bool, add_zero_attn: bool) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.dropout, self.batch_first, self.add_zero_attn = dropout, batch_first, add_zero_attn
        self.register_parameter("bias_k", None)
        self.register_parameter("bias_v", None)
        # What torch's encoders ask for before they read weights themselves.
        self.in_proj_weight = self.in_proj_bias = None
        self._qkv_same_embed_dim = False

    @classmethod
    def opening(cls, module: nn.Module) -> Self:
        assert isinstance(module, nn.MultiheadAttention)
        opened = cls(module.embed_dim, module.num_heads, module.dropout, module.batch_first, module.add_zero_attn)
        opened.bias_k, opened.bias_v = module.bias_k, module.bias_v  # type: ignore[assignment]
        whole, bias = module.in_proj_weight, module.in_proj_bias
        weights = [getattr(module, f"{name}_weight") for name in PROJECTIONS] if whole is None else _thirds(whole)
        biases = [None] * 3 if bias is None else _thirds(bias)
        trained = whole is None or whole.requires_grad, bias is not None and bias.requires_grad
        for name, own_weight, own_bias in zip(PROJECTIONS, weights, biases, strict=True):
            setattr(opened, name, linear(own_weight, own_bias, trained))
        opened.out_proj = linear(module.out_proj.weight, module.out_proj.bias)
        return opened.train(module.training)

    def closed(self) -> nn.Module:
        layers: list[nn.Linear] = [getattr(self, name) for name in PROJECTIONS]
        weights = [layer.weight for layer in layers]
        biases = [] if all(layer.bias is None for layer in layers) else [_bias(layer) for layer in layers]
        settings = {"dropout": self.dropout, "add_zero_attn": self.add_zero_attn, "batch_first": self.batch_first}
        widths = {"kdim": self.kdim, "vdim": self.vdim}
        dense = nn.MultiheadAttention(self.embed_dim, self.num_heads, bias=bool(biases), **settings, **widths, device="meta")  # type: ignore[arg-type]
        if dense.in_proj_weight is None:
            for name, weight in zip(PROJECTIONS, weights, strict=True):
                setattr(dense, f"{name}_weight", weight)
        else:
            dense.in_proj_weight = _joined(weights)
        dense.out_proj.weight, dense.out_proj.bias = self.out_proj.weight, self.out_proj.bias
        if biases:
            dense.in_proj_bias, dense.out_proj.bias = _joined(biases), _bias(self.out_proj)
        dense.bias_k, dense.bias_v = self.bias_k, self.bias_v  # type: ignore[assignment]
        return dense.train(self.training)

    @property
    def can_be_closed(self) -> bool:
        made = (self.q_proj.in_features, self.out_proj.out_features, *(getattr(self, name).out_features for name in PROJECTIONS))
        return super().can_be_closed and set(made) == {self.embed_dim}  # a smaller network may have smaller projections

    @property
    def kdim(self) -> int:
        """Features of the keys."""
        return self.k_proj.in_features

    @property
    def vdim(self) -> int:
        """Features of the values."""
        return self.v_proj.in_features

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """
        Shapes and meanings are those of `nn.MultiheadAttention`. With L queries, S keys, N samples and E = `embed_dim`:

        Args:
            query: [L, N, E], or [N, L, E] with `batch_first`, or [L, E].
            key, value: [S, N, kdim] and [S, N, vdim], in the same order; or without N.
            key_padding_mask: [N, S], or [S]: True, or a number to be added, for keys that nobody may look at.
            need_weights: False is faster: `F.scaled_dot_product_attention`.
            attn_mask: [L, S] or [N * num_heads, L, S]: True, or a number to be added, where a query may not look.
            average_attn_weights: over the heads.
            is_causal: says of `attn_mask` that it lets each query look at the keys up to its own place.

        Returns:
            [L, N, E] as `query` is, and the weights [N, L, S], or [N, num_heads, L, S] without the average; or None.

        Raises:
            ValueError: if a shape does not fit, or `is_causal` comes without a mask.
            TypeError: if a tensor is nested, or a mask neither of bool nor of floating point.
        """
        batched = query.ndim == 3
        _check_inputs(query, key, value)
        if is_causal and attn_mask is None:
            raise ValueError("is_causal=True says something of attn_mask, and there is none: pass the causal mask with it")
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if causal else _added(attn_mask, query.dtype, "attn_mask")
        padding = _added(key_padding_mask, query.dtype, "key_padding_mask")
        if not batched:
            query, key, value = (one.unsqueeze(1) for one in (query, key, value))
            padding = None if padding is None else padding.unsqueeze(0)
        rows, place = (0, 1) if self.batch_first and batched else (1, 0)  # dimensions of the samples, and of the places in them
        samples, queries, keys = query.shape[rows], query.shape[place], key.shape[place]
        _check_masks(mask, padding, samples, self.num_heads, queries, keys)
        k, v = self.k_proj(key), self.v_proj(value)
        q = self._heads(self.q_proj(query), rows)
        if self.bias_k is not None and self.bias_v is not None:
            shape = (samples, 1, -1) if rows == 0 else (1, samples, -1)
            k, v = (torch.cat([one, bias.expand(shape)], place) for one, bias in ((k, self.bias_k), (v, self.bias_v)))
        k, v = self._heads(k, rows), self._heads(v, rows)
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        total = _total(mask, padding, samples, self.num_heads, k.shape[2] - keys)
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            scores = (q * math.sqrt(1 / self.head_dim)) @ k.transpose(-2, -1)
            weights = F.dropout((scores if total is None else scores + total).softmax(-1), dropout)
            found = weights @ v
            given: Tensor | None = weights.mean(1) if average_attn_weights else weights
        else:
            found, given = F.scaled_dot_product_attention(q, k, v, total, dropout, causal), None
        found = self.out_proj((found.transpose(1, 2) if rows == 0 else found.permute(2, 0, 1, 3)).flatten(2))
        if batched:
            return found, given
        return found.squeeze(1), None if given is None else given.squeeze(0)

    def _heads(self, x: Tensor, rows: int) -> Tensor:
        """Projected features as [samples, heads, places, features of a head]."""
        x = x.unflatten(-1, (self.num_heads, self.head_dim))
        return x.transpose(1, 2) if rows == 0 else x.permute(1, 2, 0, 3)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, dropout={self.dropout}, batch_first={self.batch_first}"


def _bias(layer: nn.Linear) -> nn.Parameter:
    held: nn.Parameter | None = layer.bias
    return nn.Parameter(layer.weight.new_zeros(layer.out_features), requires_grad=False) if held is None else held


def _thirds(whole: Tensor) -> list[Tensor]:
    return [part.clone() for part in whole.detach().chunk(3)]


def _joined(parts: Sequence[Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.cat([part.detach() for part in parts]), any(part.requires_grad for part in parts))


def _added(mask: Tensor | None, dtype: torch.dtype, name: str) -> Tensor | None:
    """A mask as the numbers that are added to the scores."""
    if mask is None or mask.is_floating_point():
        return mask
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} is of torch.bool, True where nobody may look, or of floating point, to be added; got {mask.dtype}")
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)


def _total(mask: Tensor | None, padding: Tensor | None, samples: int, heads: int, more: int) -> Tensor | None:
    """Both masks as one to be added to scores [samples, heads, queries, keys]; `more` keys at the end are open to all."""
    if mask is not None:
        mask = F.pad(mask, (0, more)) if more else mask
        mask = mask.unflatten(0, (samples, heads)) if mask.ndim == 3 else mask[None, None]
    if padding is not None:
        padding = (F.pad(padding, (0, more)) if more else padding)[:, None, None]
    return mask if padding is None else padding if mask is None else mask + padding


def _check_inputs(query: Tensor, key: Tensor, value: Tensor) -> None:
    if query.is_nested or key.is_nested or value.is_nested:
        raise TypeError("attention with sparse projections takes padded tensors, got a nested one: pass key_padding_mask instead")
    if query.ndim not in (2, 3) or not query.ndim == key.ndim == value.ndim:
        _refuse("query, key and value of 3 dimensions, or 2 without samples", query, key, value)
    if key.shape[:-1] != value.shape[:-1]:
        _refuse("as many keys as values, and samples", query, key, value)


def _check_masks(mask: Tensor | None, padding: Tensor | None, samples: int, heads: int, queries: int, keys: int) -> None:
    allowed = ((queries, keys), (samples * heads, queries, keys))
    if mask is not None and tuple(mask.shape) not in allowed:
        raise ValueError(f"expected attn_mask of shape {allowed[0]} or {allowed[1]}, got {tuple(mask.shape)}")
    if padding is not None and tuple(padding.shape) != (samples, keys):
        raise ValueError(f"expected key_padding_mask of shape {(samples, keys)}, or {(keys,)} without samples, got {tuple(padding.shape)}")


def _refuse(expected: str, *given: Tensor) -> NoReturn:
    raise ValueError(f"expected {expected}, got shapes {', '.join(str(tuple(one.shape)) for one in given)}")
