"""What do the names of a `state_dict` say of pruned weights? Several tensors may be one weight: its values, and where they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .marked import from_anything, marked
from .source import Source

PARAMETRIZED = "parametrizations."
# compressed-tensors: values row by row, a bit for each position (the lowest first, rows padded to bytes), and what can be told from them.
BITMASK = ("compressed", "bitmask", "shape", "row_offsets")


def read_state(state: Mapping[str, Any]) -> Source:
    """Tensors of torch in any layout, masks of torch.nn.utils.prune and of parametrizations, bitmasks of compressed-tensors.

    Raises:
        ValueError: if parts of a weight are missing or do not fit one another, or something else than a mask makes a weight.
    """
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith("_mask") and f"{name.removesuffix('_mask')}_orig" in state:
            continue
        if name.endswith("_orig") and f"{name.removesuffix('_orig')}_mask" in state:
            base = name.removesuffix("_orig")
            found[base] = masked(base, value, state[f"{base}_mask"])
        elif "parametrizations" in name.split("."):
            found |= _parametrized(name, value, state)
        elif name.rpartition(".")[2] in BITMASK and f"{name.rpartition('.')[0]}.bitmask" in state:
            layer, _, part = name.rpartition(".")
            if part == "bitmask":
                found[f"{layer}.weight"] = _from_bitmask(layer, state)
        elif isinstance(value, Tensor) or hasattr(value, "__array__"):
            found[name] = from_anything(name, value)
    return Source(found)


def masked(name: str, weight: Any, mask: Any) -> Tensor:
    """The marked weight of what exists where a mask is not zero.

    Raises:
        ValueError: if both differ in shape.
    """
    weight, mask = (from_anything(name, one) for one in (weight, mask))
    if weight.shape != mask.shape:
        raise ValueError(f"{name!r} of the source has the shape {tuple(weight.shape)}, and its mask {tuple(mask.shape)}")
    return marked(name, weight * mask.to(weight), mask != 0)


def _parametrized(name: str, value: Any, state: Mapping[str, Any]) -> dict[str, Tensor]:
    layer, _, rest = name.rpartition(PARAMETRIZED)
    tensor, _, part = rest.partition(".")
    prefix = f"{layer}{PARAMETRIZED}{tensor}."
    parts = {other.removeprefix(prefix) for other in state if other.startswith(prefix)}
    if not parts <= {"original", "0.mask"}:
        raise ValueError(
            f"'{layer}{tensor}' of the source is made by a parametrization with {', '.join(sorted(parts))}, and only the model that it "
            "is of can tell what it makes: load the state into that, and call from_pruned(model) without a source"
        )
    if part != "original":
        return {}
    base, mask = f"{layer}{tensor}", state.get(f"{prefix}0.mask")
    return {base: from_anything(base, value) if mask is None else masked(base, value, mask)}


def _from_bitmask(layer: str, state: Mapping[str, Any]) -> Tensor:
    missing = [part for part in BITMASK[:3] if f"{layer}.{part}" not in state]
    if missing:
        raise ValueError(f"the source has a bitmask for '{layer}.weight' and lacks its {', '.join(missing)}: the file is not whole")
    values, bits, shape = (torch.as_tensor(state[f"{layer}.{part}"], device="cpu").detach().cpu() for part in BITMASK[:3])
    rows, columns = (int(extent) for extent in shape.flatten())
    if bits.shape != (rows, -(-columns // 8)):
        raise ValueError(f"the bitmask of '{layer}.weight' has the shape {tuple(bits.shape)}, which is none of {rows} x {columns} bits")
    present = torch.from_numpy(np.unpackbits(bits.to(torch.uint8).numpy(), axis=1, count=columns, bitorder="little")).bool()
    if int(present.sum()) != values.numel():
        raise ValueError(f"the bitmask of '{layer}.weight' has {int(present.sum())} connections, and there are {values.numel()} values")
    if values.dtype.itemsize == 1:
        raise ValueError(f"the values of '{layer}.weight' are quantised to {values.dtype}: exact connections need floating-point weights")
    weight = values.new_zeros(rows, columns)
    weight[present] = values.flatten()
    return marked(f"{layer}.weight", weight, present)
