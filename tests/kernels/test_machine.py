"""Instruction sets can be listed and forced; the threads are torch's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from kernel_cases import random_topology

from truesparse import _core
from truesparse.ops.cpu import MatrixKernels
from truesparse.topology.geometry import Matrix


def in_new_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
    )


def test_every_instruction_set_can_be_forced() -> None:
    supported = _core.supported_isas()
    assert "scalar" in supported
    for name in supported:
        _core.use_isa(name)
        assert _core.isa() == name
        assert MatrixKernels(random_topology(3, 3, 0.5), Matrix(3, 3)).name == f"cpu.matrix[{name}]"
    _core.use_isa("")
    if not os.environ.get("TRUESPARSE_ISA"):
        assert _core.isa() == supported[-1]


def test_an_unknown_instruction_set_is_an_error_that_lists_them() -> None:
    with pytest.raises(ValueError, match="unknown instruction set 'mmx'; known: scalar, avx2, avx512, neon; this machine has: scalar"):
        _core.use_isa("mmx")


def test_an_instruction_set_this_machine_has_not_is_an_error() -> None:
    missing = sorted({"avx2", "avx512", "neon"} - set(_core.supported_isas()))[-1]
    with pytest.raises(ValueError, match=f"'{missing}', which this machine does not have; it has: scalar"):
        _core.use_isa(missing)


def test_the_environment_variable_forces() -> None:
    found = in_new_process("from truesparse import _core; print(_core.isa())", TRUESPARSE_ISA="scalar")
    assert found.stdout.strip() == "scalar", found.stderr


def test_a_wrong_environment_variable_is_reported_at_first_use_not_at_import() -> None:
    code = "from truesparse import _core; print(_core.supported_isas()[0]); _core.isa()"
    found = in_new_process(code, TRUESPARSE_ISA="sse9")
    assert found.stdout.strip() == "scalar"
    assert "TRUESPARSE_ISA asks for an unknown instruction set 'sse9'" in found.stderr


def test_the_threads_are_those_of_the_runtime_torch_loaded() -> None:
    torch.ones(10).sum()
    assert _core.threading().startswith(("openmp: /", "serial: no OpenMP runtime loaded"))
    if sys.platform == "linux" and "OpenMP" in torch.__config__.parallel_info():
        assert _core.threading().startswith("openmp: ")
