"""A vision transformer trained truly sparse by transformers' Trainer, and read back from its folder: docs/guide/frameworks.md

python examples/transformers_vit.py            # CIFAR-10
python examples/transformers_vit.py --toy      # the digits that come with truesparse, in seconds
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, TensorDataset
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

import truesparse as ts
import truesparse.data
from truesparse.integrations.transformers import SparseTraining
from truesparse.tasks.cifar10_mlp import DEVIATION, MEAN


class Named(Dataset):
    """Samples by the names that the model gives its inputs."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        image, label = self.data[number]
        return {"pixel_values": image, "labels": label}


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(1) == prediction.label_ids))}


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--folder", type=Path, default=Path("runs/vit"))
    parser.add_argument("--resume", action="store_true", help="goes on from the last checkpoint in the folder")
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    if options.toy:
        train, test = truesparse.data.load("digits").standardized(0.3, 0.37, 16)
        shape: dict[str, int] = {"image_size": 8, "patch_size": 2, "num_channels": 1}
        size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    else:
        train, test = truesparse.data.load("cifar10").standardized(MEAN, DEVIATION)
        shape = {"image_size": 32, "patch_size": 4, "num_channels": 3}
        size = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 3}
    model = ViTForImageClassification(ViTConfig(**shape, **size, num_labels=10))

    settings = TrainingArguments(
        output_dir=str(options.folder),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=256,
        learning_rate=2e-3,
        weight_decay=0.05,
        warmup_steps=20,
        lr_scheduler_type="cosine",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        report_to="none",
        disable_tqdm=options.toy,
        use_cpu=True,
    )
    sparse = SparseTraining(ts.RigL(), options.sparsity, every=10 if options.toy else 100)
    trainer = Trainer(model, settings, train_dataset=Named(train), eval_dataset=Named(test), compute_metrics=accuracy, callbacks=[sparse])
    trainer.train(resume_from_checkpoint=options.resume or None)
    print(ts.summary(model))

    trainer.save_model(str(options.folder / "last"))
    read = AutoModelForImageClassification.from_pretrained(options.folder / "last")
    images = test.tensors[0][:256]
    with torch.inference_mode():
        assert torch.equal(read(images).logits, model.eval()(images).logits)
    return trainer.evaluate()["eval_accuracy"]


if __name__ == "__main__":
    main()
