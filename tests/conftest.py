"""What all tests share: repeatable random examples and one seed."""

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from truesparse import _core, ops

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50, database=None)
settings.load_profile("repeatable")

# The compiler of torch imports distutils, and setuptools refuses to put its own in the place of one that a test has imported before.
os.environ.setdefault("SETUPTOOLS_USE_DISTUTILS", "stdlib")

# A shell has what it runs in the background ignore Ctrl-C, and so would all processes that tests begin.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Examples are small: several threads would only wait for each other. Tests of threads ask for as many as they want.
torch.set_num_threads(1)


# Tests that take longest, most of the time of all: `make test` leaves them out, `make test-all` does not.
SLOW = frozenset((Path(__file__).parent / "slow.txt").read_text().splitlines())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid in SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _machine_put_back() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    _core.use_isa("")


@pytest.fixture
def generator():
    """A CPU generator of its own, always in the same state."""
    return torch.Generator().manual_seed(7)


@pytest.fixture(params=["reference", "native"])
def family(request):
    """Runs a test on each family of kernels."""
    with ops.use(request.param):
        yield request.param


@pytest.fixture(scope="session")
def hooks():
    """What the documentation makes of algorithms and criteria."""
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    spec = importlib.util.spec_from_file_location("hooks", Path(__file__).parent.parent / "docs" / "site" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
