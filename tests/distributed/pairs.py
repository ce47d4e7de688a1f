"""Several real processes on gloo, forked once, and what each of them answers."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import tempfile
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

PATIENCE = 120.0  # seconds, on however busy a machine


def answers(work, processes=2):
    """[what `work(rank)` returns, or the text of what it raises, in each of so many processes]; `work` may use torch.distributed."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this process has threads, of which the others use none
        importlib.import_module("torch._dynamo")  # DistributedDataParallel does: once here instead of in each process
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=_work, args=(work, rank, processes, Path(folder)), daemon=True) for rank in range(processes)]
        for child in children:
            child.start()
        for child in children:
            child.join(PATIENCE)
            child.kill()
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(processes)]


def _work(work, rank, processes, folder):
    torch.set_num_threads(1)
    meet = f"file://{folder}/meet"
    distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=processes, timeout=timedelta(seconds=PATIENCE))
    try:
        answer = work(rank)
    except BaseException:
        answer = traceback.format_exc()
    torch.save(answer, folder / f"{rank}.pt")
    os._exit(0)
