"""Sparse training in several processes: the script that one would write for dense training, and three lines more.

    torchrun --nproc-per-node 2 examples/ddp.py

On several machines, with the same command on each:

    torchrun --nnodes 2 --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint HOST:29500 examples/ddp.py

Digits of 8 x 8 pixels; they come with the package.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import truesparse as ts
import truesparse.data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--batch-size", type=int, default=64, help="of all processes together")
    parser.add_argument("--checkpoint", default=None, help="file to write after each epoch")
    options = parser.parse_args()

    distributed.init_process_group("gloo")
    rank, processes = distributed.get_rank(), distributed.get_world_size()

    digits = truesparse.data.load("digits")
    train = TensorDataset(digits.train_images.float().flatten(1) / 16, digits.train_labels)
    sampler = DistributedSampler(train, seed=0)
    loader = DataLoader(train, options.batch_size // processes, sampler=sampler, drop_last=True)

    torch.manual_seed(0)  # the same in all processes: they must begin with the same connections
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
    ts.sparsify(net, options.sparsity)
    model = DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    steps = options.epochs * len(loader)
    rewirer = ts.Rewirer(model, optimizer, ts.RigL(), every=10, until=0.75 * steps)

    for epoch in range(options.epochs):
        sampler.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            if rewirer.step():
                optimizer.step()
        if rank == 0:
            with torch.no_grad():
                scores = net(digits.test_images.float().flatten(1) / 16)
            accuracy = float((scores.argmax(1) == digits.test_labels).float().mean())
            print(f"epoch {epoch + 1}: {accuracy:.1%} right, {rewirer.rewirings} rewirings", flush=True)
            if options.checkpoint:
                state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "rewirer": rewirer.state_dict()}
                torch.save(state, options.checkpoint)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
