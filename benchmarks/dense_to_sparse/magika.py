"""Magika, the kind of a file by its bytes: an embedding, a convolution over positions and a linear layer, 0.8 M weights of its ONNX file.
Score: files of this machine, so it differs from one to another, by their names. Fine-tuned on others towards what the dense one says."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from truesparse.data import PypiPackage, fetch

from .network import Network, fitted

FILES = {"model.onnx": "1e9e20fff4286b08d5a53d2cc129b984", "config.min.json": "3b451642619badcae2a0284270392c7f"}  # MD5
FOLDERS = (sys.prefix, sys.base_prefix, "/usr/share", "/usr/lib", "/usr/include")
# Names that leave no doubt of the kind: suffix -> Magika's label.
KINDS = {
    "c": "c", "cmake": "cmake", "css": "css", "csv": "csv", "deb": "deb", "gz": "gzip", "html": "html",
    "jar": "jar", "js": "javascript", "json": "json", "jsonl": "jsonl", "md": "markdown", "onnx": "onnx", "pem": "pem",
    "php": "php", "pl": "perl", "pm": "perl", "png": "png", "py": "python", "pyc": "pythonbytecode", "rst": "rst",
    "sh": "shell", "so": "elf", "sql": "sql", "svg": "svg", "toml": "toml", "ttf": "ttf", "woff2": "woff2",
    "xml": "xml", "yaml": "yaml",
}  # fmt: skip
BYTES, BLOCK, PADDING = 1024, 4096, 256  # of each end that are read, of which white space is stripped, and what stands for no byte
EACH, BATCH, EPOCHS, RATE = 40, 32, 4, 5e-4


class Kinds(nn.Module):
    """[files, 2048] bytes in, [files, 214] scores of kinds out."""

    def __init__(self, arrays: dict[str, Tensor]) -> None:
        super().__init__()
        named = {name.rpartition("jax2tf_get_logits_/")[2].removeprefix("pjit_get_logits_/MagikaV2/"): one for name, one in arrays.items()}
        self.bytes = nn.Embedding.from_pretrained(named["Const:0"] + named["Dense_0/Reshape:0"].flatten(), freeze=False)
        self.places = _norm(named["LayerNorm_0/Reshape_2:0"], named["LayerNorm_0/Reshape_3:0"])
        kernel, answer = named["Conv_0/transpose_3:0"].squeeze(-1), named["Const_24:0"].T
        self.near = _with(nn.Conv1d(kernel.shape[1], kernel.shape[0], kernel.shape[2]), kernel, named["const_fold_opt__209"])
        self.channels = _norm(named["LayerNorm_1/Reshape_2:0"], named["LayerNorm_1/Reshape_3:0"])
        self.answer = _with(nn.Linear(answer.shape[1], answer.shape[0]), answer, named["Dense_1/Reshape:0"])

    def forward(self, files: Tensor) -> Tensor:
        # Four bytes are one position of 256 channels; each channel is normalised over the positions.
        x = F.gelu(self.bytes(files), approximate="tanh").view(len(files), 512, 256).transpose(1, 2)
        x = F.gelu(self.near(self.places(x)), approximate="tanh")
        return self.answer(self.channels(x.amax(2)))


def _norm(weight: Tensor, bias: Tensor) -> nn.Module:
    return _with(nn.LayerNorm(weight.numel(), eps=1e-6), weight.flatten(), bias)


def _with(layer: nn.Module, weight: Tensor, bias: Tensor) -> nn.Module:
    layer.load_state_dict({"weight": weight, "bias": bias.flatten()})
    return layer


def ends(path: Path) -> Tensor:
    """[2048] the first and the last bytes of a file, as Magika takes them."""
    content = path.read_bytes()
    first, last = content[:BLOCK].lstrip()[:BYTES], content[-BLOCK:].rstrip()[-BYTES:]
    return torch.tensor([*first, *[PADDING] * (2 * BYTES - len(first) - len(last)), *last])


def _files() -> Iterator[tuple[Path, str]]:
    """(path, label) of up to `EACH` files of each kind, spread over those that there are."""
    found: dict[str, list[Path]] = {}
    for path in sorted({path for folder in FOLDERS for path in Path(folder).rglob("*.*")}):
        kind = KINDS.get(path.suffix[1:])
        if kind and path.is_file() and not path.is_symlink() and 64 <= path.stat().st_size < 1e7:
            found.setdefault(kind, []).append(path)
    for kind, paths in sorted(found.items()):
        step = max(len(paths) // EACH, 1)
        yield from ((path, kind) for path in paths[::step][:EACH])


def network() -> Network:
    files = fetch("magika", FILES, [PypiPackage("magika", "1.0.3", 16.2, "magika/models/")])
    graph = onnx.load_from_string(files["model.onnx"]).graph
    model = Kinds({one.name: torch.from_numpy(onnx.numpy_helper.to_array(one).copy()) for one in graph.initializer}).eval()
    labels = json.loads(files["config.min.json"])["target_labels_space"]
    pairs = list(_files())
    inputs, kinds = torch.stack([ends(path) for path, _ in pairs]), torch.tensor([labels.index(kind) for _, kind in pairs])
    test = torch.arange(len(pairs)) % 2 == 0
    others, own = inputs[~test], kinds[~test]

    @torch.no_grad()
    def answers(model: nn.Module, files: Tensor) -> Tensor:
        return torch.cat([model(part) for part in files.split(50)])

    @cache
    def targets() -> Tensor:
        """[others, 214] what the dense network says, as probabilities."""
        return answers(model, others).softmax(1)

    def tune(student: nn.Module) -> None:
        generator = torch.Generator().manual_seed(0)
        order = list(chain.from_iterable(torch.randperm(len(others), generator=generator).split(BATCH) for _ in range(EPOCHS)))
        student.train()
        fitted(student, order, len(order), lambda places: F.cross_entropy(student(others[places]), targets()[places]), RATE)

    parts = list(zip(others[::4].split(BATCH), own[::4].split(BATCH), strict=True))
    return Network(
        title="Magika",
        measure=f"{int(test.sum())} files",
        model=model,
        score=lambda model: 100 * float((answers(model.eval(), inputs[test]).argmax(1) == kinds[test]).float().mean()),
        calibration=parts,
        samples=parts[:4],
        loss=F.cross_entropy,
        tune=tune,
        own_teacher=True,
    )
