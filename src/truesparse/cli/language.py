"""`truesparse prune` and `truesparse pack` of a language model: block after block, perplexity, and what it writes before and after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

BEGINNING = "The mayor of the city said on Monday that"
BLOCKS, PRUNING = "blocks", "pruning.json"


def refuse_options(source: str, given: Mapping[str, Any]) -> None:
    """
    Raises:
        ConfigError: if one of the options, which mean nothing for a language model, was given.
    """
    from ..runs import ConfigError

    for option, value in given.items():
        if value:
            raise ConfigError(f"{option} is not for language models, and {source} is one: leave it out")


def prune_language_model(
    source: str,
    out: Path,
    criterion: str,
    sparsity: float,
    across: str | None,
    pattern: str | None,
    exclude: Iterable[str],
    calibrate: str | None,
    seed: int,
) -> int:
    """Prune block after block into a folder of transformers; the same command again goes on where it was stopped.

    Raises:
        ConfigError: if something asked for cannot be.
        RunError: if the folder holds something else already, or cannot be written.
    """
    import json
    import shutil

    import torch

    from ..common.files import write_atomically
    from ..common.shown import Table, nbytes_said
    from ..language import generated, language_model, perplexity, windows
    from ..language.texts import BROWN
    from ..nn.convert import topology_layers
    from ..pruning import prune_blocks
    from ..runs import ConfigError, RunError
    from .results import wide_console

    try:
        taken = out.exists() and any(out.iterdir()) and not (out / BLOCKS).is_dir()  # which is there until all is written
    except OSError as error:
        raise RunError(f"cannot use {out}: {error.strerror}; choose another --out") from error
    if taken:
        raise RunError(f"the folder {out} is not empty; choose another --out")
    opened = language_model(source)
    model, found = opened.model, windows(calibrate or BROWN, opened.tokenizer)
    data = [{"input_ids": tokens} for tokens in found.calibration]
    dense = sum(weight.nbytes for weight in model.parameters())
    before, text = perplexity(model, found.test), generated(model, opened.tokenizer, BEGINNING)
    start = perf_counter()
    try:
        prune_blocks(
            model,
            sparsity,
            criterion,
            data,
            folder=out / BLOCKS,
            across=across,
            pattern=pattern,
            exclude=exclude,
            generator=torch.Generator().manual_seed(seed),
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"cannot prune {source}: {error}") from error
    seconds = perf_counter() - start
    after = perplexity(model, found.test)
    try:
        opened.save(out)
        layers = topology_layers(model)
        left, size = (sum(getattr(layer.topology, what) for layer in layers.values()) for what in ("nnz", "size"))
        said = {"source": opened.said, "criterion": criterion, "sparsity": 1 - left / size, "text": calibrate or BROWN}
        results = {"perplexity": {"before": before, "after": after}, "seconds": round(seconds, 1)}
        write_atomically(out / PRUNING, json.dumps({**said, **results}, indent=1))
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror}; the pruned blocks are kept, the same command goes on") from error
    shutil.rmtree(out / BLOCKS)
    nbytes = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    rows = (
        ("before", f"{before:.2f}", nbytes_said(dense), "", text),
        ("pruned", f"{after:.2f}", nbytes_said(nbytes), f"{seconds:.0f}", generated(model, opened.tokenizer, BEGINNING)),
    )
    console = wide_console()
    caption = f"{opened.said}; {criterion}, {left:,} of {size:,} weights in {len(layers)} layers stay ({1 - left / size:.1%} sparse)"
    console.print(Table(("", "perplexity", "file", "seconds", "goes on with"), rows, numeric=frozenset({1, 2, 3}), caption=caption).rich())
    print(f"The model is in {out}, see truesparse pack; with truesparse.integrations.transformers imported, from_pretrained opens it")
    return 0


def pack_language_model(source: str, batch: int, values: str, tune: bool) -> None:
    """Pack a language model's layers for one token after another, and time it beside dense PyTorch."""
    import copy

    import torch

    from ..common.processor import processor
    from ..common.shown import Table, nbytes_said
    from ..inference import pack_layers
    from ..language import generated, language_model, tokens_a_second
    from ..language.speed import GENERATED, PROMPT
    from ..nn import densify
    from ..runs.machine import threads_said
    from .results import wide_console

    opened = language_model(source)
    dense = densify(copy.deepcopy(opened.model))
    explanation = pack_layers(opened.model, batch, values=values, tune=tune)
    console = wide_console()
    console.print(f"{opened.said}, packed for {batch} token{'s' * (batch > 1)} at a time", markup=False, highlight=False, soft_wrap=True)
    console.print(explanation.by_layout().rich())
    models = {"dense": dense, "packed": opened.model}
    speeds = tokens_a_second(models)
    sizes = {"dense": sum(row.dense_bytes for row in explanation.rows), "packed": sum(row.bytes for row in explanation.rows)}
    rows: list[tuple[str, ...]] = []
    for name, model in models.items():
        said = (f"{speed:.1f} ({speed / own:.1f})" for speed, own in zip(speeds[name], speeds["dense"], strict=True))
        rows.append((name, *said, nbytes_said(sizes[name]), generated(model, opened.tokenizer, BEGINNING)))
    heads = ("", f"prompt of {PROMPT}", f"{GENERATED} tokens after it", "layers", "goes on with")
    how = f"tokens a second (times dense), medians in turns, {threads_said(torch.get_num_threads())}, {processor()}"
    console.print(Table(heads, tuple(rows), numeric=frozenset({1, 2, 3}), caption=how).rich())
