"""A Lightning module trained truly sparse by one callback, and read back from its checkpoint: docs/guide/frameworks.md

python examples/lightning_digits.py            # MNIST
python examples/lightning_digits.py --toy      # the digits that come with truesparse, in seconds
"""

import argparse
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

import truesparse as ts
import truesparse.data
from truesparse.integrations.lightning import SparseTraining, load_from_checkpoint


class Digits(pl.LightningModule):
    """Nothing in it knows of sparsity."""

    def __init__(self, inputs: int, width: int = 512) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: list[torch.Tensor], number: int) -> torch.Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def test_step(self, batch: list[torch.Tensor], number: int) -> None:
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.05)


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--resume", type=Path, help="a checkpoint to go on from")
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args(arguments)

    pl.seed_everything(0, verbose=False)
    data = truesparse.data.load("digits" if options.toy else "mnist")
    train, test = data.standardized(0.3, 0.37, 16) if options.toy else data.standardized(0.1307, 0.3081)
    loader, tests = DataLoader(train, batch_size=64, shuffle=True), DataLoader(test, batch_size=500)
    module = Digits(train[0][0].numel(), width=64 if options.toy else 512)

    sparse = SparseTraining(ts.RigL(), options.sparsity, every=10 if options.toy else 100)
    trainer = pl.Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        callbacks=[sparse, pl.callbacks.ModelCheckpoint(options.folder, save_last=True)],
        logger=pl.loggers.CSVLogger(options.folder),
        gradient_clip_val=1.0,
        log_every_n_steps=10,
        enable_progress_bar=not options.toy,
        enable_model_summary=False,
    )
    trainer.fit(module, loader, ckpt_path=options.resume)
    print({name: round(value, 4) for name, value in sparse.session.measures().items()})

    read = load_from_checkpoint(Digits, options.folder / "last.ckpt")
    (result,) = trainer.test(read, tests, verbose=False)
    print(f"accuracy {result['accuracy']:.1%}")
    return result["accuracy"]


if __name__ == "__main__":
    main()
