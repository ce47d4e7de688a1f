"""examples/ddp.py trains in two processes, begun as anyone would begin them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "ddp.py"
SECONDS = 240


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_it_learns(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, str(EXAMPLE), "--epochs", "3", "--checkpoint", str(tmp_path / "state.pt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 1", "epoch 2", "epoch 3"]
    assert float(lines[-1].split(": ")[1].split("%")[0]) > 50
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["rewirer"]["rewirings"] > 0
