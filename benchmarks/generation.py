"""A pruned language model that generates: tokens a second of packed layers beside dense PyTorch, in several widths of values.

    pip install 'truesparse[language]'
    truesparse prune smollm2 --criterion sparsegpt --sparsity 0.5 --out runs/smol50
    python benchmarks/generation.py runs/smol50 --threads 1

    pip install llama-cpp-python                     # builds llama.cpp: its rows, too
    python benchmarks/generation.py runs/smol50 --gguf smollm2.gguf

Of each way: tokens a second of a prompt of 128 tokens, and of 32 that are appended one by one with the model's own `generate` and cache;
milliseconds that the linear layers alone take for one token; and bytes of their weights. Medians of turns.
"""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
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
    return [module for module in model.modules() if isinstance(module, (nn.Linear, Int8Linear, PackedLayer))]


def of_a_token(model: nn.Module, dtype: torch.dtype) -> Callable[[], None]:
    """Calls each linear layer once, on one row."""
    calls: list[tuple[nn.Module, Tensor]] = [(layer, torch.randn(1, layer.in_features).to(dtype)) for layer in linear_layers(model)]  # type: ignore[arg-type]

    @torch.inference_mode()
    def call() -> None:
        for layer, x in calls:
            layer(x)

    return call


class Int8Linear(nn.Module):
    """A dense layer with torch's int8 weights, a scale a row; inputs and sums are bfloat16, as that path is fast."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        self.in_features = dense.in_features
        weight = dense.weight.detach().float()
        scales = weight.abs().amax(1).clamp_min(1e-12) / 127
        self.weight, self.scales = (weight / scales[:, None]).round().to(torch.int8), scales.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.ops.aten._weight_int8pack_mm(x.reshape(-1, self.in_features).bfloat16(), self.weight, self.scales)
        return rows.to(x.dtype).reshape(*x.shape[:-1], -1)


def with_int8(model: nn.Module) -> nn.Module:
    """`model`, its linear layers with torch's int8 weights."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))
    return model


def megabytes(model: nn.Module) -> float:
    own = (layer.layout.nbytes if isinstance(layer, PackedLayer) else layer.weight.nbytes for layer in linear_layers(model))  # type: ignore[union-attr]
    return sum(own) / 1e6


def of_llama(gguf: str, kind: str, threads: int, folder: str) -> tuple[float, float, float]:
    """llama.cpp, the weights of a GGUF file as `kind`: tokens a second of a prompt of 128 and of 32 more, MB of the file. Medians."""
    import llama_cpp

    path = f"{folder}/{kind}.gguf"
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.allow_requantize = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}"), True
    if llama_cpp.llama_model_quantize(gguf.encode(), path.encode(), settings):
        raise SystemExit(f"llama.cpp could not make {kind} of {gguf}")
    model = llama_cpp.Llama(path, n_ctx=256, n_batch=128, n_threads=threads, n_threads_batch=threads, verbose=False)
    prompt, pairs = list(range(100, 228)), []
    for _ in range(ROUNDS):
        model.reset()
        start = perf_counter()
        model.eval(prompt)
        middle = perf_counter()
        for token in range(300, 332):
            model.eval([token])
        pairs.append((len(prompt) / (middle - start), 32 / (perf_counter() - middle)))
    return median(p for p, _ in pairs), median(g for _, g in pairs), Path(path).stat().st_size / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder of transformers, sparse")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gguf", help="the same model for llama.cpp, whose weights are rounded to Q8_0 and Q4_0")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sparse = language_model(options.model).model
    dense = ts.densify(copy.deepcopy(sparse))
    ways = {"dense float32": (dense, torch.float32), "dense bfloat16": (copy.deepcopy(dense).bfloat16(), torch.bfloat16)}
    ways["torch int8"] = with_int8(copy.deepcopy(dense)), torch.bfloat16
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
    for kind in ("Q8_0", "Q4_0") if options.gguf else ():
        with TemporaryDirectory() as folder:
            prompt, generated, size = of_llama(options.gguf, kind, options.threads, folder)
        print(table_row(f"llama.cpp {kind}", f"{prompt:.0f}", f"{generated:.1f}", "", f"{size:.0f} (file)"))


if __name__ == "__main__":
    main()
