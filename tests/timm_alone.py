"""timm where torchvision's compiled operators are of another build than torch and cannot be loaded: timm imports it and calls none.

`make install` puts both into a folder apart, for other libraries import torchvision wherever they find it.
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

APART = Path(sys.prefix) / "timm"


def import_timm():
    """The package, or a skip."""
    if APART.is_dir() and str(APART) not in sys.path:
        sys.path.append(str(APART))
    found = importlib.util.find_spec("torchvision")
    if found is None or importlib.util.find_spec("timm") is None:
        pytest.skip("timm and torchvision are not installed")
    if "torchvision" not in sys.modules:
        try:
            torch.ops.load_library(str(Path(found.origin).with_name("_C.so")))
        except OSError:
            # torchvision gives these two a second implementation when it is imported, and finds nothing to give it to.
            import_timm.keeps = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                import_timm.keeps.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return pytest.importorskip("timm")
