"""How is a model pruned that is too large to be measured at once? Block after block, each on what the pruned ones before it give."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import isclose
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save
from torch import nn

from ..common.files import write_atomically
from ..common.progress import show_parts
from ..nn.convert import replaced, standing_in
from ..nn.selection import Excluded, Selection, select
from ..topology import Topology
from ..topology.budgets import Budget
from ..topology.budgets import budget as named_budget
from ..topology.patterns import Pattern, Unstructured
from ..topology.patterns import pattern as named_pattern
from .base import Chosen, Criterion
from .base import criterion as named_criterion
from .candidates import Candidate, apply, candidates_of
from .choose import EVEN, choose
from .compete import EvidenceBudget, Sparsity, checked_across, rounded
from .evidence import evidence_of, needs_of
from .evidence import held as held_batches
from .probe import Batch, Forward, Probe, Probed, called
from .prune import wanted_of
from .walk import find_blocks, run, walk

Model = TypeVar("Model", bound=nn.Module)
ASKED = "asked.json"


def prune_blocks(
    model: Model,
    sparsity: Sparsity | None = 0.5,
    criterion: str | Criterion = "magnitude",
    data: Iterable[Batch] = (),
    *,
    blocks: str | None = None,
    folder: str | Path | None = None,
    forward: Forward = called,
    across: str | None = None,
    budget: str | Budget | EvidenceBudget | None = None,
    pattern: str | Pattern | None = None,
    exclude: Iterable[Excluded] = (),
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> Model:
    """Make a large trained network sparse, in place, block after block: what is measured of a block, it meets after the blocks before it
    were pruned, and one block's activations are in memory at a time.

        ts.prune_blocks(language_model, 0.5, "sparsegpt", batches, budget=ts.OWL(), folder="runs/pruned")

    Only layers inside the blocks are pruned: of a language model not the embeddings, and not the output layer.

    Args:
        model: whose blocks are an `nn.ModuleList` or `nn.Sequential`, called one after the other.
        sparsity: of all layers in the blocks together, or by name pattern, as in `prune`.
        criterion: what matters, as in `prune`; what it measures, it measures of one block at a time.
        data: batches to measure on, as in `prune`. Its blocks run on each twice.
        blocks: name of the list of blocks, as "model.layers"; None: the one that holds the most parameters.
        folder: where each block is kept when it is done: called again with the same arguments, what stands there is not done again.
        forward: calls the model on a batch, as in `prune`.
        across: "row" or "layer", as in `prune`.
        budget: how layers share the sparsity, as in `prune`; one that looks at the layers looks at the model before anything is pruned.
        pattern: the rule of every topology, as in `prune`.
        exclude: layers to leave alone, as in `prune`.
        generator: CPU generator of random choices; None is torch's global one.
        progress: show on stderr how far it is: a bar on a terminal, a line a block elsewhere.

    Returns:
        The same model.

    Raises:
        ValueError: as `prune`; if there are no blocks or they are not called one after the other; if `folder` holds blocks of another
            call. What can be known before the first block is pruned leaves the model as it was; an error after that (a measurement that
            is not finite, a full disk) leaves the blocks before it pruned.
        TypeError: as `prune`.
    """
    rule, chosen_by = named_pattern(pattern or Unstructured()), named_criterion(criterion)
    competition = checked_across(across or getattr(chosen_by, "across", "layer"), rule)
    if competition not in ("row", "layer"):
        raise ValueError(f"block after block layers cannot compete with those that come later: across={competition!r} is for ts.prune")
    getattr(chosen_by, "check_pattern", lambda pattern: None)(rule)
    held = held_batches(data)
    if not held:
        raise ValueError("block after block runs the model on data, to know what goes into each block: pass data=batches")
    selection = select(model, exclude)
    with standing_in(model, selection.opened) as running:
        found = find_blocks(running, blocks)
        parts = _parts(found, selection, rule)
        candidates = {name: one for part in parts.values() for name, one in part.items()}
        if not candidates:
            raise ValueError(f"found nothing to prune in the blocks {', '.join(found)}")
        wanted = _sparsities(running, wanted_of(sparsity, candidates, rule), candidates, budget, held, forward)
        met = walk(running, found, held, forward)
    asked = {"criterion": repr(chosen_by), "pattern": repr(rule), "across": competition, "sparsities": wanted}
    kept = None if folder is None else _Kept(Path(folder), asked, float(met.inputs[0].double().mean()))
    pruned = {one.module for one in candidates.values()}
    opened = {closed: one for closed, one in selection.opened.items() if not pruned.isdisjoint(one.modules())}
    if opened:
        model = replaced(model, {**opened})
    names = list(found)
    del found, selection, candidates, pruned  # nothing shall hold a dense layer once a sparse one has its place
    with show_parts("pruning", sum(any(name in wanted for name in part) for part in parts.values()), wanted=progress) as show:
        for place, name in enumerate(names):
            part = {layer: one for layer, one in parts.pop(name).items() if layer in wanted}
            if part:
                chosen = kept.read(place, part) if kept is not None else None
                if chosen is None:
                    probe = Probe(model.get_submodule(name), {}, met.batches(place), run, None, generator)
                    chosen = choose(part, {layer: wanted[layer] for layer in part}, chosen_by, competition, None, probe)
                    if kept is not None:
                        kept.write(place, chosen)
                model = apply(model, {}, part, chosen)
                left, size = (sum(getattr(one.topology, what) for one in chosen.values()) for what in ("nnz", "size"))
                show(name, f"{left:,} of {size:,} weights stay")
            if place < len(names) - 1:
                met = met.after(place, model.get_submodule(name))
    return model


def _parts(blocks: Mapping[str, nn.Module], selection: Selection, pattern: Pattern) -> dict[str, dict[str, Candidate]]:
    """The layers in each block by name."""
    candidates = candidates_of(selection, pattern)
    return {block: {name: one for name, one in candidates.items() if f"{name}.".startswith(f"{block}.")} for block in blocks}


def _sparsities(
    model: nn.Module,
    wanted: Sparsity,
    candidates: Mapping[str, Candidate],
    budget: str | Budget | EvidenceBudget | None,
    data: Any,
    forward: Forward,
) -> dict[str, float]:
    """The sparsity of each layer; layers that are not to be pruned are not there.

    Raises:
        ValueError: if a pattern does not fit a layer, or a layer has fewer connections than are to stay.
    """
    sizes = {name: one.weight.numel() for name, one in candidates.items()}
    if isinstance(wanted, Mapping):
        if budget is not None:
            raise ValueError("a budget shares one sparsity among the layers: pass a number, or sparsities by name and no budget")
        found = dict(wanted)
    elif isinstance(budget, EvidenceBudget):
        probe = Probe(model, {name: Probed(one.module, one.geometry) for name, one in candidates.items()}, data, forward)
        found = dict(budget.sparsities(evidence_of(candidates, probe, needs_of(budget)), wanted))
    else:
        shapes = {name: one.geometry.weight_shape for name, one in candidates.items()}
        counts = (EVEN if budget is None else named_budget(budget)).counts(shapes, wanted)
        found = {name: 1 - counts[name] / size for name, size in sizes.items()}
    for name, value in found.items():
        one = candidates[name]
        left = rounded(name, one.pattern, one.geometry.weight_shape, round((1 - value) * sizes[name]))
        if left > one.connections:
            raise ValueError(
                f"layer {name!r} has {one.connections} connections, fewer than the {left} that this sparsity leaves: "
                "ask for a higher one, or exclude it"
            )
    return found


class _Kept:
    """The blocks that are done, a file each.

    Args:
        folder: made if it is not there.
        asked: what decides what comes out, but for model and data.
        inputs: the mean of what goes into the first block, by which other data or another model is told.

    Raises:
        ValueError: if the folder holds blocks of another call.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any], inputs: float) -> None:
        self.folder, path = folder, folder / ASKED
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            before = json.loads(path.read_text())
            mean = before.pop("inputs")
            other = [name for name in asked if before.get(name) != asked[name]]
            if not isclose(mean, inputs, rel_tol=1e-3, abs_tol=1e-6):
                other.append("model or data")
            if other:
                raise ValueError(
                    f"{folder} holds blocks that were pruned otherwise ({', '.join(other)}): name another folder, or delete it"
                )
        else:
            write_atomically(path, json.dumps({**asked, "inputs": inputs}, indent=1))

    def _path(self, place: int) -> Path:
        return self.folder / f"block-{place:04d}.safetensors"

    def read(self, place: int, candidates: Mapping[str, Candidate]) -> dict[str, Chosen] | None:
        """What was chosen in the block at this place, or None if it was not reached."""
        if not self._path(place).exists():
            return None
        arrays = load_file(self._path(place))
        found: dict[str, Chosen] = {}
        for name, one in candidates.items():
            shape = (one.weight.shape[0], one.weight.shape[1])
            topology = Topology(shape, arrays[f"{name}.indptr"], arrays[f"{name}.indices"])
            found[name] = Chosen(topology, topology.scatter(arrays[f"{name}.values"]))
        return found

    def write(self, place: int, chosen: Mapping[str, Chosen]) -> None:
        arrays: dict[str, torch.Tensor] = {}
        for name, (topology, weight) in chosen.items():
            arrays[f"{name}.indptr"], arrays[f"{name}.indices"] = topology.indptr.cpu(), topology.indices.cpu()
            arrays[f"{name}.values"] = weight.flatten()[topology.keys].cpu()
        write_atomically(self._path(place), save(arrays))
