"""A pretrained ConvNeXt of timm, pruned step by step to 90 % while it is fine-tuned on CIFAR-10: docs/guide/frameworks.md

python examples/timm_finetune.py
python examples/timm_finetune.py --toy     # a small one without pretraining, on the digits that come with truesparse, in seconds
"""

import argparse
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch.utils.data import DataLoader

import truesparse as ts
import truesparse.data
from truesparse.tasks.cifar10_mlp import DEVIATION, MEAN


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="convnext_atto")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--size", type=int, default=64, help="the images are made so many pixels wide")
    parser.add_argument("--file", type=Path, default=Path("finetuned.safetensors"))
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    if options.toy:
        train, test = truesparse.data.load("digits").standardized(0.3, 0.37, 16)
        options.size, options.epochs, every = 32, 1, 5
        model = timm.create_model(options.model, in_chans=1, num_classes=10, depths=(1, 1, 1, 1), dims=(8, 16, 32, 64))
    else:
        train, test = truesparse.data.load("cifar10").standardized(MEAN, DEVIATION)
        every = 50
        model = timm.create_model(options.model, pretrained=True, num_classes=10)
    loader, tests = DataLoader(train, batch_size=64, shuffle=True, drop_last=True), DataLoader(test, batch_size=256)

    ts.sparsify(model, 0.0)  # all connections, with the pretrained weights: GMP takes them away one by one
    steps = options.epochs * len(loader)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=5e-4, weight_decay=0.05, layer_decay=0.9)
    schedule = CosineLRScheduler(optimizer, t_initial=steps, warmup_t=steps // 20, t_in_epochs=False)
    rewirer = ts.Rewirer(model, optimizer, ts.GMP(sparsity=options.sparsity), every=every, until=0.75 * steps)

    def resized(images: torch.Tensor) -> torch.Tensor:
        return F.interpolate(images, size=(options.size, options.size), mode="bilinear", antialias=False)

    number = 0
    for epoch in range(options.epochs):
        model.train()
        for x, y in loader:
            F.cross_entropy(model(resized(x)), y, label_smoothing=0.1).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if rewirer.step():
                optimizer.step()
            optimizer.zero_grad()
            number += 1
            schedule.step_update(number)
        model.eval()
        with torch.inference_mode():
            accuracy = sum(int((model(resized(x)).argmax(1) == y).sum()) for x, y in tests) / len(test)
        print(f"epoch {epoch + 1}: accuracy {accuracy:.1%}")
    print(ts.summary(model))
    ts.save(model, options.file)
    return accuracy


if __name__ == "__main__":
    main()
