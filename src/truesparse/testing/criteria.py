"""Does a criterion of pruning keep the contract?

from truesparse.testing import check_criterion
check_criterion(MyCriterion())
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import TopologyLayer, topology_layers
from ..nn.kinds import DENSE
from ..pruning import Chosen, Criterion, Evidence, prune
from ..pruning.compete import TOGETHER, usual_across
from ..topology import Topology
from ..topology.budgets import kept
from ..topology.patterns import Pattern
from .algorithms import PATTERNS, check_settings, reason_against

Made = Callable[[nn.Module], Criterion]


def check_criterion(criterion: Criterion | Made, patterns: Sequence[Pattern] = PATTERNS) -> None:
    """Hold a criterion of pruning to the contract.

    Its settings are frozen and survive a round trip; it leaves its input as it is; scores are finite and of the shape of the weights; the
    same generator gives the same network; sparsity and pattern are met exactly, or the pattern is refused with the reason; in convolutions
    with groups too; layers that are sparse already only lose connections; values change only where `mend` or `choose` says so; whatever
    else the model has stays, and on an error everything does.

    Args:
        criterion: an instance; or a function that makes one for a model, which it may train, for those that look at training.
        patterns: that it must keep, or refuse in its `check_pattern`.

    Raises:
        AssertionError: that says which clause is broken.
    """
    make: Made = (lambda model: criterion) if isinstance(criterion, Criterion) else criterion
    first = make(pruning_model())
    check_settings(first)
    kept_patterns = [pattern for pattern in patterns if reason_against(first, pattern) is None]
    assert kept_patterns, f"{first} refuses all of {', '.join(map(str, patterns))}"
    for pattern in kept_patterns:
        _check_pruning(make, pattern)
    _check_errors(make, kept_patterns[0])


def pruning_model() -> nn.Module:
    """Convolutions, one of them strided and in groups, and linear layers, a batch norm behind each; float64, in training mode."""
    torch.manual_seed(0)
    with torch.device("cpu"):
        model = nn.Sequential(
            nn.Conv2d(8, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 8, 3, stride=2, padding=1, groups=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Linear(16, 8, bias=False),
            nn.BatchNorm1d(8),
        ).double()
    for norm in model.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(norm.weight, 0.2, 2.0)
    with torch.no_grad():
        for x, _ in pruning_data():
            model(x)  # the batch norms learn what the data is like
    return model


def pruning_data() -> list[tuple[Tensor, Tensor]]:
    """Two batches of images of 8 channels and their classes, for `pruning_model`."""
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(12, 8, 4, 4, generator=draw, dtype=torch.float64, device="cpu"), torch.randint(8, (12,), generator=draw, device="cpu"))
        for _ in range(2)
    ]


class _Watched:
    """A criterion whose every call is looked at."""

    def __init__(self, criterion: Criterion) -> None:
        self._criterion = criterion

    def __getattr__(self, name: str) -> Any:
        if name in ("choose", "mend"):
            return getattr(self, f"_{name}") if hasattr(self._criterion, name) else getattr(self._criterion, name)
        return getattr(self._criterion, name)

    def __repr__(self) -> str:
        return repr(self._criterion)

    def scores(self, evidence: Evidence) -> Tensor:
        with _unchanged(self._criterion, evidence):
            scores = self._criterion.scores(evidence)
        shape = tuple(evidence.weight.shape)
        assert tuple(scores.shape) == shape, f"{self} gives scores of shape {tuple(scores.shape)} for weights of shape {shape}"
        there = torch.ones_like(scores, dtype=torch.bool) if evidence.present is None else evidence.present
        assert bool(scores[there].isfinite().all()), f"{self} gives scores that are not finite"
        return scores

    def _mend(self, evidence: Evidence, topology: Topology) -> Tensor:
        with _unchanged(self._criterion, evidence):
            return self._criterion.mend(evidence, topology)  # type: ignore[attr-defined]

    def _choose(self, evidence: Evidence, pattern: Pattern, count: int) -> Chosen:
        self.scores(evidence)
        with _unchanged(self._criterion, evidence):
            return self._criterion.choose(evidence, pattern, count)  # type: ignore[attr-defined]


@contextmanager
def _unchanged(criterion: Criterion, evidence: Evidence) -> Iterator[None]:
    tensors = [evidence.weight, evidence.present, evidence.bias, evidence.whole, *evidence.statistics.values()]
    before = [None if tensor is None else tensor.clone() for tensor in tensors]
    yield
    same = all(old is None or new is None or torch.equal(old, new) for old, new in zip(before, tensors, strict=True))
    assert same, f"{criterion} changed its input"


def _check_pruning(make: Made, pattern: Pattern) -> None:
    """Pruned twice by half each from the same state, then more: the same, exact, and nothing but connections is lost."""
    (first, what), (again, _) = _pruned(make, pattern), _pruned(make, pattern)
    twins = topology_layers(again)
    for name, layer in topology_layers(first).items():
        same = layer.topology.equal(twins[name].topology) and torch.equal(layer.parameter, twins[name].parameter)
        assert same, f"{what} gives another network from the same generator"
    criterion, topologies = make(first), {name: layer.topology for name, layer in topology_layers(first).items()}
    _prune(first, 0.75, criterion, pattern)
    _check_counts(what, criterion, first, 0.75)
    for name, layer in topology_layers(first).items():
        inside = bool(topologies[name].contains(layer.topology.keys).all())
        assert inside, f"{what} gives a layer that is sparse already connections that it had not"


def _pruned(make: Made, pattern: Pattern) -> tuple[nn.Module, str]:
    """(the model, pruned by half, by what)."""
    model = pruning_model()
    criterion = make(model)
    what, before = f"{criterion} with {pattern}", copy.deepcopy(model)
    others, state = _others(model), torch.random.get_rng_state()
    _prune(model, 0.5, criterion, pattern)
    assert torch.equal(state, torch.random.get_rng_state()), f"{what} draws from torch's global generator, not from the one it is given"
    assert _equal(others, _others(model)), f"{what} changes more of the model than its layers"
    _check_counts(what, criterion, model, 0.5)
    mends = hasattr(criterion, "mend") or hasattr(criterion, "choose")
    for name, layer in topology_layers(model).items():
        dense: Any = before.get_submodule(name)
        weight = dense.weight.detach().flatten()[layer.topology.keys]
        assert bool(layer.parameter.isfinite().all()), f"{what} leaves values that are not finite"
        assert mends or torch.equal(layer.parameter, weight), f"{what} changes the weights that stay, and has neither mend nor choose"
    return model, what


def _check_counts(what: str, criterion: Criterion, model: nn.Module, sparsity: float) -> None:
    layers = topology_layers(model)
    assert len(layers) == 4, f"{what} left {4 - len(layers)} of 4 layers dense"
    due = {name: layer.pattern.round(layer.topology.shape, kept(layer.topology.size, sparsity)) for name, layer in layers.items()}
    steps = {name: layer.pattern.step(layer.topology.shape) for name, layer in layers.items()}
    for layer in layers.values():
        layer.pattern.check(layer.topology)
    if usual_across(criterion, [layer.pattern for layer in layers.values()], False) in TOGETHER:
        found, wanted = sum(layer.topology.nnz for layer in layers.values()), sum(due.values())
        assert 0 <= wanted - found < max(steps.values()), f"{what} leaves {found} connections, where {sparsity:.0%} leaves {wanted}"
        return
    for name, layer in layers.items():
        # What does not divide among the groups of a convolution is rounded in each.
        rounding = steps[name] * layer.geometry.groups if layer.geometry.groups > 1 and hasattr(criterion, "choose") else 1
        missed = abs(layer.topology.nnz - due[name])
        assert missed < rounding, (
            f"{what} leaves {layer.topology.nnz} connections of layer {name!r}, where {sparsity:.0%} leaves {due[name]}"
        )


def _check_errors(make: Made, pattern: Pattern) -> None:
    """What cannot be done leaves the model as it was."""
    model = pruning_model()
    criterion = make(model)
    mistakes: dict[str, dict[str, Any]] = {"sparsity=1": {"sparsity": 1.0}}
    if any(isinstance(need, str) for need in getattr(criterion, "needs", ())):
        mistakes |= {"no data": {"data": None}, "a model that fails": {"forward": _broken}}
    for mistake, arguments in mistakes.items():
        before, modules, others = copy.deepcopy(model.state_dict()), list(model.modules()), _others(model)
        try:
            _prune(model, **{"sparsity": 0.5, "criterion": criterion, "pattern": pattern, **arguments})
        except ValueError:
            pass
        else:
            raise AssertionError(f"{criterion} prunes with {mistake}")
        same = list(model.modules()) == modules and _equal(before, model.state_dict()) and _equal(others, _others(model))
        assert same, f"{criterion} changes the model though it fails, with {mistake}"


def _broken(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    model(batch[0])
    raise ValueError("broken")


def _prune(model: nn.Module, sparsity: float, criterion: Criterion, pattern: Pattern, **arguments: Any) -> None:
    given: dict[str, Any] = {"data": pruning_data(), "loss": F.cross_entropy, "generator": torch.Generator().manual_seed(2), **arguments}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layers that are nearly pruned away, and whatever a criterion says of its data
        prune(model, sparsity, _Watched(criterion), pattern=pattern, **given)


def _others(model: nn.Module) -> dict[str, Any]:
    """All that is no weight of a layer: other tensors, gradients, modes."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        layer = isinstance(module, (*DENSE, TopologyLayer))
        own: dict[str, Any] = {"bias": module.bias} if layer else {**module._parameters, **module._buffers}
        found |= {f"{name}.{key}": tensor.detach().clone() for key, tensor in own.items() if tensor is not None}
        found[f"{name} mode"] = module.training
        found |= {
            f"{name} {key} is trained": parameter.requires_grad for key, parameter in module.named_parameters(recurse=False) if not layer
        }
        found[f"{name} has gradients"] = [parameter.grad is not None for parameter in module.parameters(recurse=False) if not layer]
    return found


def _equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    def same(one: Any, other: Any) -> bool:
        return torch.equal(one, other) if isinstance(one, Tensor) else one == other

    return first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)
