"""What does a run leave behind? A folder in which every file is whole at any moment.

config.json                                  every choice of the run, the recipe's checksum, and the machine
layers.json                                  steps an epoch, and what each sparse layer is, see `layers.described`
metrics.jsonl                                one line for each epoch and variant
results.json                                 the closing table
pruning.json                                 of a network that was pruned before: what each round has removed, see `pruned.described`
VARIANT/checkpoint.pt                        where the training stands
VARIANT/model.safetensors                    the network after the last complete epoch
VARIANT/average.safetensors                  the same with the averages of its weights, where the run has them
VARIANT/topologies/epoch-0000.safetensors    LAYER.indptr and LAYER.indices of every sparse layer; 0000 is the start
VARIANT/updates/epoch-0001.safetensors       what each topology update of the epoch dropped and grew, see `updates.Updates.take`
"""

from __future__ import annotations

import errno
import io
import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.numpy
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn

from ..common.devices import CPU
from ..common.files import PARTIAL, write_atomically
from ..nn import topology_layers
from .algorithm import algorithm_sha256, full_name
from .config import RunConfig, as_text
from .errors import RunError

NETWORK, AVERAGE, PRUNING = "model.safetensors", "average.safetensors", "pruning.json"
DAMAGE = (ValueError, TypeError, KeyError, AttributeError)  # what a config that is not one leads to


class RunFolder:
    """The files of a run, below `path`. Of several processes only one `writes`."""

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes = path, writes

    @property
    def resume_command(self) -> str:
        """What to type to go on."""
        return f"truesparse train --out {shlex.quote(str(self.path))} --resume"

    def check_new(self) -> None:
        """
        Raises:
            RunError: if there is something in it already, or it cannot be read.
        """
        try:
            taken = self.path.exists() and any(self.path.iterdir())
        except OSError as error:
            raise RunError(f"cannot use {self.path} as the run's folder: {error.strerror}; choose another --out") from error
        if taken:
            is_run = (self.path / "config.json").exists()
            advice = f"to go on with the run in it: {self.resume_command}" if is_run else "choose another --out"
            raise RunError(f"the folder {self.path} is not empty; {advice}")

    def create(self) -> None:
        """
        Raises:
            RunError: if it cannot be made.
        """
        if not self.writes:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot make the folder {self.path}: {error.strerror}; choose another --out") from error

    def write_config(self, config: RunConfig, recipe_sha256: str, machine: Mapping[str, Any]) -> None:
        extra = {"recipe_sha256": recipe_sha256, "algorithm_sha256": algorithm_sha256(config.algorithm), "machine": dict(machine)}
        self._write(self.path / "config.json", as_text(config, extra))

    def read_config(self) -> tuple[RunConfig, str]:
        """(config, checksum of the recipe).

        Raises:
            RunError: if there is no run here, its config is damaged, or the user's own algorithm has changed.
            ConfigError: if the file of the user's own algorithm cannot be read.
        """
        path = self.path / "config.json"
        try:
            values = json.loads(path.read_text())
            recipe_sha256, algorithm = values.pop("recipe_sha256"), full_name(values["algorithm"])
            own_sha256 = values.pop("algorithm_sha256", None)
            values.pop("machine")
        except OSError as error:
            raise RunError(f"there is no run to resume in {self.path}: cannot read {path}: {error.strerror}") from error
        except DAMAGE as error:
            raise RunError(damaged_config(path, error)) from error
        # Before the config, which its settings may no longer fit.
        if algorithm_sha256(algorithm) != own_sha256:
            raise RunError(
                f"the algorithm {algorithm} has changed since the run in {self.path} began: restore it, or start anew with another --out"
            )
        try:
            return RunConfig.from_json(values), recipe_sha256
        except DAMAGE as error:
            raise RunError(damaged_config(path, error)) from error

    def remove_partial_files(self) -> None:
        """What a killed process had begun to write."""
        for path in self.path.rglob(f".*{PARTIAL}") if self.writes else ():
            path.unlink(missing_ok=True)

    def write_epoch(self, variant: str, epoch: int, model: nn.Module, metadata: Mapping[str, Any]) -> None:
        """The network and its topologies after `epoch`. The checkpoint that says so comes after them."""
        self.write_network(variant, epoch, model, metadata, NETWORK)
        self.write_topologies(variant, epoch, model)

    def write_network(self, variant: str, epoch: int, model: nn.Module, metadata: Mapping[str, Any], name: str) -> None:
        """The network after `epoch` as the file `name`."""
        # One entry only: safetensors writes several in an order of its own, and files of equal runs would differ.
        described = {"truesparse": json.dumps({**metadata, "variant": variant, "epoch": epoch, "shapes": _shapes(model)}, sort_keys=True)}
        weights = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in model.state_dict().items()}
        self._write(self.path / variant / name, safetensors.torch.save(weights, metadata=described))

    def write_topologies(self, variant: str, epoch: int, model: nn.Module) -> None:
        layers = topology_layers(model)
        if not layers:
            return
        arrays = {f"{name}.indptr": layer.topology.indptr for name, layer in layers.items()}
        arrays |= {f"{name}.indices": layer.topology.indices for name, layer in layers.items()}
        content = safetensors.torch.save(
            {name: array.cpu().clone() for name, array in arrays.items()},
            metadata={"truesparse": json.dumps({"epoch": epoch, "shapes": _shapes(model)}, sort_keys=True)},
        )
        self._write(self.path / variant / "topologies" / f"epoch-{epoch:04d}.safetensors", content)

    def write_updates(self, variant: str, epoch: int, model: nn.Module, arrays: dict[str, NDArray[Any]], merged: int) -> None:
        """What changed in the topologies during `epoch`; `merged` rewirings make an update."""
        described = {"epoch": epoch, "merged": merged, "shapes": _shapes(model)}
        content = safetensors.numpy.save(arrays, metadata={"truesparse": json.dumps(described, sort_keys=True)})
        self._write(self.path / variant / "updates" / f"epoch-{epoch:04d}.safetensors", content)

    def write_layers(self, described: Mapping[str, Any]) -> None:
        self._write(self.path / "layers.json", json.dumps(described, indent=2) + "\n")

    def write_checkpoint(self, variant: str, state: Mapping[str, Any]) -> None:
        # Through memory: torch's writer does not survive a file that refuses to be written.
        content = io.BytesIO()
        torch.save(dict(state), content)
        self._write(self.path / variant / "checkpoint.pt", content.getvalue())

    def read_checkpoint(self, variant: str) -> dict[str, Any] | None:
        """The state of a variant, or None if it has not come to its first checkpoint.

        Raises:
            RunError: if the file is damaged.
        """
        path = self.path / variant / "checkpoint.pt"
        if not path.exists():
            return None
        try:
            return torch.load(path, weights_only=True, map_location=CPU)
        except Exception as error:  # torch raises whatever the first damaged byte leads to
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RunError(damaged_checkpoint(path, reason)) from error

    def write_metrics(self, lines: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        self._write(self.path / "metrics.jsonl", text)

    def write_results(self, results: Mapping[str, Any]) -> None:
        self._write(self.path / "results.json", json.dumps(results, indent=2) + "\n")

    def write_pruning(self, described: Mapping[str, Any]) -> None:
        self._write(self.path / PRUNING, json.dumps(described, indent=2) + "\n")

    def read_results(self) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
        """(closing table, metrics of all epochs) of a complete run, None of another.

        Raises:
            RunError: if a file is damaged.
        """
        path = self.path / "results.json"
        if not path.exists():
            return None
        try:
            results = json.loads(path.read_text())
            path = self.path / "metrics.jsonl"
            return results, [json.loads(line) for line in path.read_text().splitlines()]
        except (OSError, ValueError) as error:
            raise RunError(f"{path} is damaged: {error}; make it anew with: {self.resume_command}") from error

    def _write(self, path: Path, content: bytes | str) -> None:
        if not self.writes:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        except OSError as error:
            full = error.errno == errno.ENOSPC
            reason, advice = ("the disk is full", "Free space") if full else (error.strerror, "Make the folder writable")
            kept = f"the files written before are whole. {advice}, then go on with: {self.resume_command}"
            raise RunError(f"cannot write {path}: {reason}; {kept}") from error


def _shapes(model: nn.Module) -> dict[str, list[int]]:
    """[rows, columns] of each layer with a topology: the arrays do not say how many columns there are."""
    return {name: list(layer.geometry.shape) for name, layer in topology_layers(model).items()}


def damaged_config(path: Path, reason: Exception) -> str:
    return f"{path} is damaged: {reason}; restore it, or start anew with another --out"


def damaged_checkpoint(path: Path, reason: str) -> str:
    return f"the checkpoint {path} is damaged ({reason}); restore it from a copy, or start anew with another --out"
