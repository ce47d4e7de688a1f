"""What every kernel test needs: random topologies, the settings of the machine put back, outputs filled with NaN."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from truesparse import _core
from truesparse.ops import cpu


@pytest.fixture(autouse=True)
def _every_thread_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small examples are shared out among threads too."""
    monkeypatch.setattr(cpu, "WORK_OF_A_THREAD", 1)


@pytest.fixture(autouse=True)
def _empty_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """An output that a kernel leaves unwritten, in whole or in part, then shows."""
    empty = torch.empty

    def filled(*args: object, **kwargs: object) -> Tensor:
        made = empty(*args, **kwargs)  # type: ignore[call-overload]
        return made.fill_(float("nan")) if made.is_floating_point() else made.fill_(-(2**31))

    monkeypatch.setattr(torch, "empty", filled)


@pytest.fixture(params=_core.supported_isas())
def isa(request: pytest.FixtureRequest) -> str:
    """Every instruction set of this machine in turn."""
    _core.use_isa(request.param)
    return request.param


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> int:
    torch.set_num_threads(request.param)
    return request.param


@pytest.fixture(params=[torch.float32, torch.float64, torch.bfloat16], ids=["float32", "float64", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Of x, y and their gradients."""
    return request.param
