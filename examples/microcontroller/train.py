"""Digits of 8 x 8 pixels: a network trained sparse, and a dense one of the same neurons, each as one C header with its test images.

python train.py build        # writes build/sparse/network.h, build/dense/network.h, build/images.h
"""

import copy
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import truesparse as ts
from truesparse.tasks import digits_mlp

EPOCHS, BATCH, EVERY = 60, 32, 20
SPARSITY = 0.9


def trained(model: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int, sparse: bool) -> nn.Module:
    """After that many epochs; if it is sparse, RigL moves its connections in the first three quarters of them."""
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-2)
    steps = epochs * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rewirer = ts.Rewirer(model, optimizer, ts.RigL(), every=EVERY, until=int(0.75 * steps)) if sparse else None
    for _ in range(epochs):
        for places in torch.randperm(len(x)).split(BATCH):
            F.cross_entropy(model(x[places]), y[places]).backward()
            if rewirer is None or rewirer.step():
                optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return model.eval()


def images_header(images: torch.Tensor, labels: torch.Tensor) -> str:
    """The test set as C: pixels as they are, 0 to 16; an image a line."""
    lines = (", ".join(f"{pixel:.0f}" for pixel in image) for image in images.flatten(1).tolist())
    pixels, answers = ",\n".join(f"    {{{line}}}" for line in lines), ",\n".join(f"    {label}" for label in labels.tolist())
    return (
        f"#define IMAGES {len(images)}\nstatic const unsigned char images[IMAGES][64] = {{\n{pixels}\n}};\n"
        f"static const unsigned char labels[IMAGES] = {{\n{answers}\n}};\n"
    )


def main(folder: Path, epochs: int = EPOCHS) -> None:
    torch.manual_seed(0)
    (x, y), (test, answers) = (data.tensors for data in digits_mlp.data())
    start = digits_mlp.model()
    models = {
        "dense": trained(copy.deepcopy(start), x, y, epochs, sparse=False),
        "sparse": trained(ts.sparsify(copy.deepcopy(start), SPARSITY, budget="erk"), x, y, epochs, sparse=True),
    }
    for name, model in models.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        exported = ts.export_c(model, x[:1], folder / name / "network.h", values="int8", calibration=x.split(BATCH))
        accuracy = float((model(test).argmax(1) == answers).float().mean())
        print(f"{name}: {accuracy:.2%} of {len(test)} test images in PyTorch, float32\n{exported}\n")
    pixels = test.flatten(1) * digits_mlp.DEVIATION + digits_mlp.MEAN
    (folder / "images.h").write_text(images_header(pixels.round(), answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
