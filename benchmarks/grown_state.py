"""What should Adam keep of a connection that has just grown? Three networks under each rule, three seeds, with the loss around rewirings.

    pip install truesparse
    python benchmarks/grown_state.py

A grown connection has no moments, and the optimizer's step count is far on: under AdamW with beta2 = .999 its first update is up to 3.2
times the learning rate, its twelfth up to 6.6 times. "zero" leaves that so, "warm" is `Rewirer(grown_state="warm")`: the second moment
starts at the layer's mean. Tried beside them, as hooks: "age" corrects for bias by each connection's own age, as SMET does
(https://arxiv.org/abs/2606.00888, without its slower start); "factors" starts the second moment at what row and column have;
"gradient" starts both at the first gradient. Networks, text and images are cut so that a run takes less than a minute on one
thread: the figures compare rules, they are no records. Each run is a line of --results; one that is there already is not done again.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from time import process_time
from typing import Any

import torch
import torch.nn.functional as F
from initialisation import CHARACTERS, CONTEXT, Split, brown, cifar10, cifar_mlp, mean_said
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

import truesparse as ts
from truesparse.bench.networks import GPT, resnet20
from truesparse.rewiring.optimizers import GrownState
from truesparse.topology import Move
from truesparse.topology.spread import row_and_column_factors

AROUND = 10  # steps before a rewiring, and after it, whose losses are compared


@dataclass(frozen=True)
class Network:
    """One network to compare: what it is, what it learns, and how."""

    make: Callable[[], nn.Module]
    data: Callable[[], Split]
    steps: int
    batch: int
    learning_rate: float


NETWORKS = {
    "GPT": Network(lambda: GPT(2, 128, CONTEXT, 4, CHARACTERS), cache(brown), 1000, 4, 2e-3),
    "CIFAR MLP": Network(cifar_mlp, partial(cifar10, 20000), 1500, 32, 1e-3),
    "ResNet-20": Network(resnet20, partial(cifar10, 10000), 600, 16, 2e-3),
}
ALGORITHMS = {"RigL": ts.RigL, "SET": ts.SET}


class Tried:
    """A rule that the library does not have, as hooks on a Rewirer and its AdamW, whose state it changes."""

    def __init__(self, rewirer: ts.Rewirer, rule: str) -> None:
        self.rewirer, self.rule = rewirer, rule
        self.group: dict[str, Any] = rewirer.optimizer.param_groups[0]
        self.steps = 0
        self.born = {name: torch.zeros(layer.topology.nnz) for name, layer in rewirer.layers.items()}
        rewirer.register_hook(self.after_rewiring)
        rewirer.optimizer.register_step_pre_hook(self.before_step)
        rewirer.optimizer.register_step_post_hook(self.after_step)
        rewirer.rewire_last()

    def state(self, name: str) -> dict[str, Tensor]:
        return self.rewirer.optimizer.state[self.rewirer.layers[name].parameter]

    def after_rewiring(self, moves: Mapping[str, Move]) -> None:
        for name, move in moves.items():
            self.born[name] = move(self.born[name], fill=self.steps)
            if self.rule == "factors":
                second, grown = self.state(name)["exp_avg_sq"], move.grown
                rows, columns = row_and_column_factors(move.new.keep(~grown), second[~grown])
                second[grown] = rows[move.new.rows[grown]] * columns[move.new.indices[grown]]

    def before_step(self, *_: Any) -> None:
        if all(layer.parameter.grad is None for layer in self.rewirer.layers.values()):
            return  # a rewiring has taken the place of the step
        self.steps += 1
        if self.rule != "gradient" or self.steps == 1:
            return
        for name, layer in self.rewirer.layers.items():
            new, gradient, state = self.born[name] == self.steps - 1, layer.parameter.grad, self.state(name)
            assert gradient is not None
            for key, power, beta in (("exp_avg", 1, self.group["betas"][0]), ("exp_avg_sq", 2, self.group["betas"][1])):
                state[key][new] = (1 - beta ** (self.steps - 1)) * gradient[new] ** power

    @torch.no_grad()
    def after_step(self, *_: Any) -> None:
        if self.rule != "age":
            return
        for name, layer in self.rewirer.layers.items():
            young = self.born[name] > 0
            state, age = self.state(name), self.steps - self.born[name][young]
            wrong, right = (self.update(state["exp_avg"][young], state["exp_avg_sq"][young], steps) for steps in (self.steps, age))
            layer.parameter[young] += wrong - right

    def update(self, first: Tensor, second: Tensor, steps: Tensor | int) -> Tensor:
        one, other = self.group["betas"]
        return self.group["lr"] * first / (1 - one**steps) / ((second / (1 - other**steps)).sqrt() + self.group["eps"])


RULES = ("zero", "warm", "age", "factors", "gradient")


def trained(network: Network, seed: int, sparsity: float, algorithm: str, rule: str, steps: int) -> dict[str, float]:
    """One run: the test score (percent, or nats a character), the test loss, and what the loss does around rewirings."""
    train_x, train_y, test_x, test_y = network.data()
    torch.manual_seed(seed)
    model = ts.sparsify(network.make(), sparsity, generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=network.learning_rate, weight_decay=0.01)
    scheduler = LambdaLR(optimizer, lambda step: min((step + 1) / (0.05 * steps), 0.5 + 0.5 * math.cos(math.pi * step / steps)))
    every, until = max(steps // 20, 1), 0.75 * steps
    generator = torch.Generator().manual_seed(seed)
    start: GrownState = "warm" if rule == "warm" else "zero"
    rewirer = ts.Rewirer(model, optimizer, ALGORITHMS[algorithm](), every, until, generator, grown_state=start)
    if rule not in ("zero", "warm"):
        Tried(rewirer, rule)
    losses: list[float] = []
    rewired: list[int] = []
    batches = (places for _ in iter(int, 1) for places in torch.randperm(len(train_x)).split(network.batch) if len(places) == network.batch)
    for step in range(steps):
        places = next(batches)
        loss = F.cross_entropy(model(train_x[places]).movedim(-1, 1), train_y[places])
        loss.backward()
        before = rewirer.rewirings
        if rewirer.step():
            optimizer.step()
        if rewirer.rewirings > before:
            rewired.append(step + 1)
        scheduler.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    model.eval()
    with torch.no_grad():
        answers = torch.cat([model(x) for x in test_x.split(250)]).movedim(-1, 1)
    loss = float(F.cross_entropy(answers, test_y))
    score = loss if test_y.ndim > 1 else 100 * float((answers.argmax(1) == test_y).float().mean())
    return {"score": score, "loss": loss, "spike": statistics.mean(spike(losses, at) for at in rewired if AROUND <= at <= steps - AROUND)}


def spike(losses: list[float], at: int) -> float:
    """How much higher the mean loss of the steps after a rewiring is than that of the steps before."""
    return statistics.mean(losses[at : at + AROUND]) - statistics.mean(losses[at - AROUND : at])


def table(runs: list[dict[str, Any]]) -> str:
    """Means and deviations over the seeds; a row for each network, algorithm, sparsity and length, two columns for each rule."""
    rules = [rule for rule in RULES if any(run["rule"] == rule for run in runs)]
    lines = ["| network | algorithm | sparsity | steps | seeds | " + " | ".join(f"{rule} | spike" for rule in rules) + " |"]
    lines.append("|---" * (5 + 2 * len(rules)) + "|")
    for case in dict.fromkeys(tuple(run[key] for key in ("network", "algorithm", "sparsity", "steps")) for run in runs):
        own = {rule: [run for run in runs if cell(run) == (*case, rule)] for rule in rules}
        seeds = " / ".join(str(len(found)) for found in own.values())
        places = 3 if case[0] == "GPT" else 1
        scores = {rule: mean_said([run["score"] for run in found], places) for rule, found in own.items() if found}
        spikes = {rule: f"{statistics.mean(run['spike'] for run in found):+.3f}" for rule, found in own.items() if found}
        said = [f"{scores.get(rule, '')} | {spikes.get(rule, '')}" for rule in rules]
        lines.append(f"| {case[0]} | {case[1]} | {case[2]:.0%} | {case[3]:,} | {seeds} | {' | '.join(said)} |")
    return "\n".join(lines)


def cell(run: dict[str, Any]) -> tuple[str, str, float, int, str]:
    return run["network"], run["algorithm"], run["sparsity"], run["steps"], run["rule"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--algorithm", nargs="+", choices=list(ALGORITHMS), default=["RigL"])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9, 0.95])
    parser.add_argument("--rule", nargs="+", choices=RULES, default=["zero", "warm", "age"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="in place of each network's own")
    parser.add_argument("--results", type=Path, default=Path("grown_state.jsonl"))
    settings = parser.parse_args()
    torch.set_num_threads(1)
    runs = [json.loads(line) for line in settings.results.read_text().splitlines()] if settings.results.exists() else []
    done = {(*cell(run), run["seed"]) for run in runs}
    networks: list[str] = settings.network
    algorithms: list[str] = settings.algorithm
    sparsities: list[float] = settings.sparsity
    rules: list[str] = settings.rule
    for seed, name, algorithm, sparsity, rule in product(range(settings.seeds), networks, algorithms, sparsities, rules):
        steps = settings.steps or NETWORKS[name].steps
        if (name, algorithm, sparsity, steps, rule, seed) in done:
            continue
        began = process_time()
        run = {"network": name, "algorithm": algorithm, "sparsity": sparsity, "steps": steps, "rule": rule, "seed": seed}
        run |= trained(NETWORKS[name], seed, sparsity, algorithm, rule, steps)
        runs.append(run)
        with settings.results.open("a") as file:
            print(json.dumps(run | {"seconds": round(process_time() - began, 1)}), file=file)
    print(table(runs))


if __name__ == "__main__":
    main()
