"""How does `truesparse train --nproc N` run in N processes of this machine? torchrun's own launcher begins and watches them."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from torch import distributed
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ..comparison.workers import fresh_processes
from ..distributed import join
from ..runs import ConfigError, RunError, check_processes, load_recipe, make_config
from ..runs.devices import check_own_devices, device_here
from ..runs.folder import RunFolder
from .train import new_folder, run

STOPPED = 130  # the exit code of a run that was asked to stop; the first process has said how to go on
STANDS = 1.0  # seconds that a process which fails waits, so that one that was killed is noticed before those it takes with it


def run_in_processes(count: int, task: str | None, chosen: dict[str, Any], out: Path | None, resuming: bool, places: dict[str, str]) -> int:
    """The exit code.

    Raises:
        ConfigError, RunError: what one process would say at once, what a process says that fails first, or that one was killed.
    """
    # What can be wrong with the choices is told before there are processes.
    if resuming:
        assert out is not None
        config, _ = RunFolder(out).read_config()
        threads = chosen.get("threads")
    else:
        assert task is not None
        recipe = load_recipe(task)
        config = make_config(recipe.task, recipe.settings, chosen)
        threads, out = config.threads, out or new_folder(recipe.name)
        RunFolder(out).check_new()
    check_processes(count, config.batch_size, threads)
    device = chosen.get("device", config.device)
    check_own_devices(device, count)
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what there is to say is said here
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        start_method=fresh_processes().get_start_method(),
    )
    with tempfile.TemporaryDirectory() as said:
        try:
            elastic_launch(settings, _work)(said, device, task, chosen, out, resuming, places)
            return 0
        except SignalException:
            return STOPPED
        except ChildFailedError as error:
            if all(failure.exitcode == STOPPED for failure in error.failures.values()):
                return STOPPED
            raise _first_of(Path(said), error, RunFolder(out)) from None


def _first_of(said: Path, error: ChildFailedError, folder: RunFolder) -> Exception:
    """What failed first, as one line."""
    for rank, failure in error.failures.items():
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            return RunError(
                f"process {rank} of the run was killed ({name}), and the others have ended; the files written before are whole. "
                f"Go on with: {folder.resume_command}"
            )
    for path in sorted(said.iterdir(), key=lambda path: int(path.suffix[1:])):
        code, message = path.read_text().split("\n", 1)
        return (ConfigError if code == "2" else RunError)(message)
    rank, failure = error.get_first_failure()
    return RunError(f"process {rank} of the run ended with code {failure.exitcode}; go on with: {folder.resume_command}")


def _work(said: str, device: str, task: str | None, chosen: dict[str, Any], out: Path, resuming: bool, places: dict[str, str]) -> None:
    """One of the processes."""
    try:
        join(device_here(device))
        if run(task, chosen, out, resuming, places):
            distributed.barrier()  # the launcher ends all of them with the first one, which has files to write
            os._exit(STOPPED)
    except (ConfigError, RunError, ValueError, RuntimeError, OSError) as error:
        code = 2 if isinstance(error, ConfigError) else 1
        (Path(said) / f"{os.environ['RANK']}.{time.time_ns()}").write_text(f"{code}\n{error}")
        time.sleep(STANDS)
        os._exit(code)
