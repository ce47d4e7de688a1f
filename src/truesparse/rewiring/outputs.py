"""Which layer gives the answers of a model? The last one with weights, if it is a sparse one at all."""

from __future__ import annotations

from torch import nn

from ..nn import TopologyLayer
from ..nn.opened import named_once


def output_layer(model: nn.Module) -> str | None:
    """Name of the sparse layer whose rows are the answers (classes), None if the last layer with weights is dense.

    The last of `named_modules`, whose order is that of registration: a weight has two dimensions or more, so norms and biases do not count.
    """
    last = None
    for name, module in named_once(model):
        if isinstance(module, TopologyLayer):
            last = name
        elif any(parameter.ndim > 1 for parameter in module.parameters(recurse=False)):
            last = None
    return last
