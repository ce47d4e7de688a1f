"""Kernels of Triton without a GPU: run by its interpreter, which the whole process is for, or compiled for one that is not there.

make test-triton    both, each in a process of its own
"""

import os

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """What is compiled is compiled anew."""
    os.environ["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
