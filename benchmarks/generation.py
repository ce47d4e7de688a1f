"""A pruned language model that generates: tokens a second of packed layers beside dense PyTorch, in several widths of values.

    pip install 'truesparse[language]'
    truesparse prune smollm2 --criterion sparsegpt --sparsity 0.5 --out runs/smol50
    python benchmarks/generation.py runs/smol50 --threads 1

Of each way: tokens a second of a prompt of 128 tokens, and of 32 that are appended one by one with the model's own `generate` and cache;
milliseconds that the linear layers alone take for one token; and bytes of their weights. Medians of turns.
"""

import argparse
import copy
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

import truesparse as ts
from truesparse.common.markdown import table_head, table_row
from truesparse.common.processor import processor
from truesparse.inference.packed import PackedLayer
from truesparse.language import language_model, tokens_a_second

ROUNDS = 9


def linear_layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, (nn.Linear, PackedLayer))]


def of_a_token(model: nn.Module, dtype: torch.dtype) -> Callable[[], None]:
    """Calls each linear layer once, on one row."""
    calls: list[tuple[nn.Module, Tensor]] = [(layer, torch.randn(1, layer.in_features).to(dtype)) for layer in linear_layers(model)]  # type: ignore[arg-type]

    @torch.inference_mode()
    def call() -> None:
        for layer, x in calls:
            layer(x)

    return call


def megabytes(model: nn.Module) -> float:
    own = (layer.layout.nbytes if isinstance(layer, PackedLayer) else layer.weight.nbytes for layer in linear_layers(model))  # type: ignore[union-attr]
    return sum(own) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder of transformers, sparse")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sparse = language_model(options.model).model
    dense = ts.densify(copy.deepcopy(sparse))
    ways = {"dense float32": (dense, torch.float32), "dense bfloat16": (copy.deepcopy(dense).bfloat16(), torch.bfloat16)}
    for values in ("float32", "bfloat16", "int8"):
        packed = copy.deepcopy(sparse)
        ts.pack_layers(packed, values=values)
        ways[f"packed {values}"] = packed, torch.float32
    calls = {name: of_a_token(model, dtype) for name, (model, dtype) in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = perf_counter()
            call()
            times[name].append(perf_counter() - start)
    speeds = tokens_a_second({name: model for name, (model, _) in ways.items()})
    print(f"{options.model}, {processor()}, threads: {options.threads}")
    heads = ("", "prompt, tokens a second", "generated, tokens a second", "linear layers of a token, ms", "MB of them")
    print(*table_head(*heads), sep="\n")
    for name, (model, _) in ways.items():
        prompt, generated = speeds[name]
        print(table_row(name, f"{prompt:.0f}", f"{generated:.1f}", f"{1e3 * median(times[name]):.2f}", f"{megabytes(model):.0f}"))


if __name__ == "__main__":
    main()
