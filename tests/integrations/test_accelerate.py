"""Accelerate needs nothing of its own: prepared, accumulated, clipped, saved and loaded, a run goes on as if it had never stopped."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import truesparse as ts

accelerate = pytest.importorskip("accelerate")


def data():
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(32, 12, generator=generator), torch.randint(0, 4, (32,), generator=generator))


def train(algorithm, sparsity, epochs, begin=0, load=None, save=None):
    torch.manual_seed(0)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = ts.sparsify(nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4)), sparsity)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data(), batch_size=4))
    rewirer = ts.Rewirer(model, optimizer, algorithm, every=3, until=24, generator=torch.Generator().manual_seed(0))
    rewirer.attach()
    accelerator.register_for_checkpointing(rewirer)
    if load is not None:
        accelerator.load_state(load)
    for _ in range(begin, epochs):
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(F.cross_entropy(model(x), y))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()
    if save is not None:
        accelerator.save_state(save)
    return model, optimizer, rewirer


@pytest.mark.parametrize(("algorithm", "sparsity"), [(ts.RigL(), 0.8), (ts.GMP(sparsity=0.7), 0.0), (ts.SNFS(window=2), 0.8)], ids=str)
def test_a_run_goes_on_as_if_it_had_never_stopped(algorithm, sparsity, tmp_path):
    whole = train(algorithm, sparsity, 8)
    train(algorithm, sparsity, 4, save=tmp_path)
    other = train(algorithm, sparsity, 8, begin=4, load=tmp_path)
    assert whole[2].rewirings == other[2].rewirings == 7
    states = [(model.state_dict(), optimizer.state_dict()["state"]) for model, optimizer, _ in (whole, other)]
    assert all(torch.equal(value, states[1][0][name]) for name, value in states[0][0].items())
    assert all(torch.equal(states[0][1][key][part], states[1][1][key][part]) for key in states[0][1] for part in states[0][1][key])


def test_it_is_the_loop_that_one_would_write():
    trained, _, rewirer = train(ts.RigL(), 0.8, 8)
    torch.manual_seed(0)
    model = ts.sparsify(nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4)), 0.8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    own = ts.Rewirer(model, optimizer, ts.RigL(), every=3, until=24, generator=torch.Generator().manual_seed(0))
    for _ in range(8):
        for number, (x, y) in enumerate(DataLoader(data(), batch_size=4)):
            (F.cross_entropy(model(x), y) / 2).backward()
            if number % 2:
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                if own.step():
                    optimizer.step()
                optimizer.zero_grad()
    assert own.rewirings == rewirer.rewirings
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in model.state_dict().items())
