"""Which extents may change without torch.compile compiling again? The numbers of connections: rewiring changes them as it goes."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def of_any_length(*arrays: Tensor | None) -> None:
    """Have torch.compile take the length of the arrays for a variable from the start.

    It learns that of inputs when they change, and of parameters and buffers never.
    """
    for array in arrays:
        if array is not None:
            # What torch._dynamo.maybe_mark_dynamic(array, 0) does; importing that takes seconds, and is not for those who never compile.
            marked: Any = array
            marked._dynamo_weak_dynamic_indices = {0}
            marked._has_dynamo_dim_marking = True
