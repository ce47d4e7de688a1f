"""What is a sparse network still worth in numbers of a few bits? Trained networks pruned, fine-tuned, quantised, and fine-tuned once more.

    pip install 'truesparse[onnx,pretrained]'
    python -m benchmarks.quantization --network mnist wrist
    python -m benchmarks.quantization --page docs/guide/deep-compression.md

The networks, their data and what fine-tuning is are those of benchmarks.dense_to_sparse. Sparse is pruned by magnitude, in rounds with
fine-tuning after each. From there on, each way of quantising begins anew. `--page` writes the table of all results.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import truesparse as ts
from truesparse.common.files import write_atomically
from truesparse.common.markdown import table_head, table_row, write_between_markers
from truesparse.data import DataError
from truesparse.embedded import quantised, run_integers
from truesparse.embedded.quantised import ranges
from truesparse.embedded.read import read

from .dense_to_sparse.network import Network

# (sparsity of each round, what competes), by network
ROUNDS: dict[str, tuple[Sequence[float], Mapping[str, Any]]] = {
    "mnist": ((0.8, 0.9, 0.95), {"across": "network"}),
    "wrist": ((0.6, 0.8), {}),
    "magika": ((0.5, 0.8), {}),
    "efficientnet": ((0.0,), {}),
}
# (words, bits, by, whether inputs are rounded to int8)
WAYS = (
    ("int8, activations int8", 8, "row", True),
    ("int4, activations int8", 4, "row", True),
    ("codebook of 4 bits", 4, "codebook", False),
)
IN_C = ("mnist", "wrist")  # whose operations all have C
RESULTS = Path(__file__).parent / "quantization.json"
MARKER = "quantization"


def scores(name: str, at_once: bool) -> dict[str, Any]:
    """All stages of one network, in percent: the dense and the sparse one, and of each way at once, trained, and in C.

    Args:
        at_once: nothing is fine-tuned.
    """
    network: Network = import_module(f"benchmarks.dense_to_sparse.{name}").network()
    began, model = time.process_time(), deepcopy(network.model)
    found: dict[str, Any] = {"network": name, "title": f"{network.title}, {network.measure}", "dense": network.score(model)}
    rounds, competition = ROUNDS[name]
    for sparsity in rounds:
        ts.prune(model.eval(), sparsity, "magnitude", exclude=network.exclude, **competition)
        if not at_once:
            tuned(model, network)
    found |= {"sparsity": rounds[-1], "sparse": network.score(model)}
    print(name, found, flush=True)
    for words, bits, by, activations in WAYS:
        one = deepcopy(model).eval()
        ts.quantize(one, bits, by, network.calibration if activations else None, forward=network.forward)
        found[words] = [network.score(one)]
        if not at_once:
            tuned(one, network)
            found[words].append(network.score(one))
        if not at_once and activations and name in IN_C:
            found[words].append(network.score(InC(one, network.calibration)))
        print(name, words, found[words], flush=True)
    return found | {"cpu_seconds": round(time.process_time() - began)}


class InC(nn.Module):
    """What the C of `ts.export_c` gives, by its model in Python, which has the same bits."""

    def __init__(self, model: nn.Module, calibration: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        network = read(model.eval(), calibration[0][0])
        self.integers = quantised(network, ranges(network, [inputs for inputs, _ in calibration]))

    def forward(self, x: Tensor) -> Tensor:
        q = run_integers(self.integers, self.integers.input_scale.quantised(x.numpy()))
        return torch.from_numpy(self.integers.output_scale.real(q))


def tuned(model: nn.Module, network: Network) -> None:
    torch.manual_seed(0)
    network.tune(model)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row a network."""
    lines = table_head("network", "dense", "sparse", *(f"{words}: at once, trained" + ", in C" * inputs for words, *_, inputs in WAYS))
    for row in sorted(rows, key=lambda row: list(ROUNDS).index(row["network"])):
        cells = [", ".join(f"{score:.2f}" for score in row[words]) for words, *_ in WAYS]
        lines.append(table_row(row["title"], f"{row['dense']:.2f} %", f"{row['sparse']:.2f} % at {row['sparsity']:.0%}", *cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(ROUNDS), nargs="+", default=[])
    parser.add_argument("--at-once", action="store_true", help="fine-tune nothing")
    parser.add_argument("--page", type=Path, help="write the table of all results into this page")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.network:
        found = scores(name, options.at_once)
        rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
        rows = [row for row in rows if row["network"] != name] + [found]
        write_atomically(RESULTS, json.dumps(rows, indent=1) + "\n")
    if options.page:
        write_between_markers(options.page, MARKER, markdown(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        sys.exit(str(error))
