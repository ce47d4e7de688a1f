"""Kernels of Triton without a GPU: run by its interpreter, in which a whole process is, or compiled for GPUs that are not there.

`make test-gpu` does both, each in processes of their own.
"""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """What is compiled is compiled anew."""
    os.environ["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
