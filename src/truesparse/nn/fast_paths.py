"""Where does torch read weights past the layers that hold them? Its encoders do in evaluation, where all of them is dense."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from .base import TopologyLayer
from .opened import Opened

# (attribute that says whether the fast path may be taken, its value where it may not), which torch sets itself where it cannot run.
FAST_PATHS: Mapping[type[nn.Module], tuple[str, object]] = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
    nn.TransformerEncoder: ("use_nested_tensor", False),
}
BEFORE = "_fast_path_when_dense"


def set_fast_paths(model: nn.Module) -> None:
    """Let torch's encoders call their parts where these are sparse, or attention is opened; and as before where they no longer are.

    They would hand the weights of all their layers to one dense kernel.
    """
    for module in model.modules():
        for kind, (attribute, off) in FAST_PATHS.items():
            if isinstance(module, kind):
                if any(isinstance(part, (TopologyLayer, Opened)) for part in module.modules()):
                    module.__dict__.setdefault(BEFORE, getattr(module, attribute, off))
                    setattr(module, attribute, off)
                elif BEFORE in module.__dict__:
                    setattr(module, attribute, module.__dict__.pop(BEFORE))
