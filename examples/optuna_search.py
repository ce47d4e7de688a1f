"""A search over algorithm, sparsity and learning rate with Optuna, that prunes bad trials and goes on where it stopped.

python examples/optuna_search.py --trials 30           # on the digits that come with truesparse
python examples/optuna_search.py --trials 30           # thirty more: the study is in search.db

Each trial is told its accuracy beside its number of connections: the best of both is a front, not a point.
"""

import argparse
from pathlib import Path

import optuna
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

import truesparse as ts
import truesparse.data

ALGORITHMS = {"rigl": ts.RigL, "set": ts.SET, "static": ts.Static, "gse": ts.GSE}


def network(width: int = 128) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def objective(trial: optuna.Trial, epochs: int) -> float:
    """Accuracy after training, less a point for each doubling of the connections: what a sparse network is asked for."""
    algorithm = ALGORITHMS[trial.suggest_categorical("algorithm", list(ALGORITHMS))]()
    sparsity = trial.suggest_float("sparsity", 0.8, 0.99)
    rate = trial.suggest_float("learning_rate", 1e-3, 3e-2, log=True)

    torch.manual_seed(0)
    train, test = truesparse.data.load("digits").standardized(0.3, 0.37, 16)
    loader = DataLoader(train, batch_size=64, shuffle=True)
    model = ts.sparsify(network(), sparsity)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    rewirer = ts.Rewirer(model, optimizer, algorithm, every=10, until=max(0.75 * epochs * len(loader), 11))
    score = 0.0
    for epoch in range(epochs):
        for x, y in loader:
            F.cross_entropy(model(x), y).backward()
            if rewirer.step():
                optimizer.step()
            optimizer.zero_grad()
        with torch.inference_mode():
            accuracy = float((model(test.tensors[0]).argmax(1) == test.tensors[1]).float().mean())
        connections = ts.metrics.connections(model)
        score = accuracy - 0.01 * torch.log2(torch.tensor(float(connections))).item()
        trial.report(score, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    trial.set_user_attr("accuracy", accuracy)
    trial.set_user_attr("connections", connections)
    return score


def main(arguments: list[str] | None = None) -> optuna.Study:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--storage", type=Path, default=Path("search.db"))
    options = parser.parse_args(arguments)

    study = optuna.create_study(
        study_name="sparse-digits",
        storage=f"sqlite:///{options.storage}",
        load_if_exists=True,  # a search that was stopped, or was too short, goes on
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=1),
    )
    study.optimize(lambda trial: objective(trial, options.epochs), n_trials=options.trials)
    best = study.best_trial
    print(f"{len(study.trials)} trials, the best: {best.params}, {best.user_attrs}")
    return study


if __name__ == "__main__":
    main()
