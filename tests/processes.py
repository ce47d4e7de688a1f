"""The command line in a process of its own, forked from a server that has imported torch: a new interpreter would take seconds for that.

Where it is about `python -m truesparse` itself, tests start that.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

from truesparse.cli.main import main
from truesparse.comparison.workers import fresh_processes

PATIENCE = 120.0  # seconds, on however busy a machine


class Command:
    """`truesparse ARGUMENTS`, under way.

    Args:
        arguments: of the command.
        terminal: path of the terminal that it is to have; None: it has none, and what it says goes into files.
        environment: variables to set; None removes one.
    """

    def __init__(self, arguments, terminal=None, **environment):
        self.terminal = terminal
        self._said = None if terminal is not None else tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        files = [terminal] * 3 if self._said is None else [os.devnull, *(str(Path(self._said.name) / name) for name in ("out", "err"))]
        self.process = fresh_processes().Process(target=_become, args=(list(map(str, arguments)), files, environment))
        self.process.start()

    @property
    def out(self):
        return self._read("out")

    @property
    def err(self):
        return self._read("err")

    def _read(self, name):
        path = Path(self._said.name) / name
        return path.read_text() if path.exists() else ""

    @property
    def pid(self):
        return self.process.pid

    @property
    def runs(self):
        return self.process.exitcode is None

    def wait(self):
        """The exit code."""
        self.process.join(PATIENCE)
        assert not self.runs, "it has not ended"
        return self.process.exitcode

    def until(self, holds):
        """Waits for something that the command brings about."""
        end = time.monotonic() + PATIENCE
        while not holds():
            assert self.runs or holds(), f"the process ended early: {'' if self._said is None else self.err}"
            assert time.monotonic() < end, "nothing happened"
            time.sleep(0.01)

    def close(self):
        if self.runs:
            self.process.kill()
        self.process.join()
        if self._said is not None:
            self._said.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _become(arguments, files, environment):
    os.setsid()  # a terminal opened hereafter is its own, and so are signals to its group
    for descriptor, file in enumerate(files):
        opened = os.open(file, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, encoding="utf-8", closefd=False) for number in (1, 2))
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    tempfile.tempdir = None  # as the environment says now
    sys.argv = ["truesparse", *arguments]
    main(arguments)
