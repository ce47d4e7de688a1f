"""What does an optimizer keep for the connections, and what would it have kept for absent ones? Also inside whatever wraps it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import nan
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..nn import SparseLayer, TopologyLayer
from ..topology import Move, Topology
from .absent import Smoothing

GrownState = Literal["zero", "warm"]
SECOND_MOMENT = "exp_avg_sq"
WITHOUT_SECOND_MOMENT = tuple(
    getattr(torch.optim, name) for name in ("SGD", "ASGD", "Rprop", "RMSprop", "Adagrad", "Adadelta", "Adamax", "Adafactor")
)
CODES = (torch.uint8, torch.int8)  # of quantized states, whose scales are kept elsewhere


@dataclass(frozen=True)
class StateEntry:
    """A tensor, shaped as a layer's parameter, that an optimizer keeps for it.

    Args:
        state: what the optimizer keeps for the parameter, by name.
        name: of the tensor in it.
        fill: what grown connections start at,
        weight: or that they start at their value, for it is another copy of the weights.
    """

    state: dict[str, Any]
    name: str
    fill: float
    weight: bool = False

    def put(self, layer: TopologyLayer, move: Move, moved: Tensor) -> None:
        """Keep what has become of the tensor, once the layer has its new topology."""
        if self.weight:
            moved = torch.where(layer.spread(move.grown.to(torch.uint8)).bool(), layer.parameter.detach(), moved)
        self.state[self.name] = moved


def optimizers_in(optimizer: Any) -> list[Optimizer]:
    """An optimizer and the ones it wraps, the innermost, which takes the steps, last.

    Accelerate's and Lightning's optimizers, `ZeroRedundancyOptimizer`, Lookahead and SAM keep the wrapped one as an attribute.

    Raises:
        TypeError: if there is no optimizer of torch in it, or several beside each other.
    """
    found: list[Optimizer] = []
    while True:
        if isinstance(optimizer, Optimizer):
            found.append(optimizer)
        inner = list({id(one): one for one in vars(optimizer).values() if _steps(one)}.values()) if _has_attributes(optimizer) else []
        if not inner:
            break
        if len(inner) > 1:
            raise TypeError(f"{type(optimizer).__name__} wraps {len(inner)} optimizers: make a Rewirer for each, with the layers' own one")
        optimizer = inner[0]
    if not found:
        raise TypeError(f"expected an optimizer of torch, or an object that wraps one, got {type(optimizer).__name__}")
    return found


def following(layer: TopologyLayer, optimizer: Any, owner: Topology | None = None, grown_state: GrownState = "zero") -> list[StateEntry]:
    """What an optimizer, and those it wraps, keep for the connections of `layer` and has to follow them. Nothing for None.

    Args:
        owner: the topology that the state belongs to, if not the present one.
        grown_state: what grown connections start at: "zero", what the optimizer itself starts with; "warm", the second moment at its mean
            over the layer's connections.

    Raises:
        TypeError: if something is kept that cannot follow.
        ValueError: if there is no second moment to start.
    """
    if optimizer is None:
        return []
    shape = layer.parameter.shape
    if owner is not None and isinstance(layer, SparseLayer):
        shape = torch.Size([owner.nnz])
    states: dict[int, StateEntry] = {}
    chain = optimizers_in(optimizer)
    for one in chain:
        for entry in _following(layer, one, shape):
            states.setdefault(id(entry.state[entry.name]), entry)
    _refuse_own_tensors(layer, [optimizer, *chain[:-1]])
    entries = list(states.values())
    return entries if grown_state == "zero" else _warm(layer, chain[-1], entries)


def check_grown_state(grown_state: str, optimizer: Optimizer) -> None:
    """
    Raises:
        ValueError: if there is no such rule, or the optimizer keeps no second moment as Adam does.
    """
    if grown_state not in get_args(GrownState):
        raise ValueError(f"grown_state is {' or '.join(map(repr, get_args(GrownState)))}, got {grown_state!r}")
    if grown_state == "warm" and isinstance(optimizer, WITHOUT_SECOND_MOMENT):
        raise ValueError(_nothing_to_warm(optimizer))


def _warm(layer: TopologyLayer, optimizer: Optimizer, entries: list[StateEntry]) -> list[StateEntry]:
    """The same, with grown connections at the mean of the second moment."""
    if entries and not any(entry.name == SECOND_MOMENT for entry in entries):
        raise ValueError(_nothing_to_warm(optimizer))
    return [replace(entry, fill=_mean(layer, entry)) if entry.name == SECOND_MOMENT else entry for entry in entries]


def _mean(layer: TopologyLayer, entry: StateEntry) -> float:
    held = layer.of_connections(entry.state[entry.name]).double()
    return float(held.mean()) if held.numel() else entry.fill


def _nothing_to_warm(optimizer: Optimizer) -> str:
    return (
        f"grown_state='warm' starts the second moment that Adam and its kin keep as {SECOND_MOMENT!r}, and "
        f"{type(optimizer).__name__} keeps none: leave grown_state out"
    )


def _following(layer: TopologyLayer, optimizer: Optimizer, shape: torch.Size) -> Iterator[StateEntry]:
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError(
            "LBFGS keeps one history for all parameters together, which cannot follow the connections; use SGD, Adam, AdamW, ..."
        )
    parameter = layer.parameter
    group = group_of(optimizer, parameter)
    if group and isinstance(layer, SparseLayer):
        _refuse_other_steps(optimizer)
    state = optimizer.state.get(parameter, {})
    for name, entry in state.items():
        why_not = _cannot_follow(entry, shape)
        if why_not:
            raise TypeError(
                f"{type(optimizer).__name__} keeps {name!r}, {why_not}, for a parameter of shape {tuple(shape)}: it cannot follow "
                "the connections; use an optimizer whose state has the parameter's shape (SGD, Adam, AdamW, RMSprop, Adagrad, NAdam, ...)"
            )
        if isinstance(entry, Tensor) and entry.ndim and entry.shape == shape:
            yield StateEntry(state, name, _fresh_state(optimizer, name, group), _is_weight(optimizer, name))


def _cannot_follow(entry: Any, shape: torch.Size) -> str:
    """What it is, if it is neither one number for all nor one for each connection; else nothing."""
    if not isinstance(entry, Tensor):
        return "" if entry is None or isinstance(entry, (bool, int, float)) else f"a {type(entry).__name__}"
    if entry.ndim and type(entry) not in (Tensor, nn.Parameter):
        return f"a tensor of the class {type(entry).__name__}"  # whose numbers may be kept with others in a way of its own
    if entry.ndim and entry.dtype in CODES:
        return f"numbers of eight bits ({entry.dtype})"
    return "" if entry.shape == shape or entry.numel() == 1 else f"a tensor of shape {tuple(entry.shape)}"


def _refuse_other_steps(optimizer: Optimizer) -> None:
    """
    Raises:
        TypeError: if the optimizer's step cannot be taken with one number a connection.
    """
    if isinstance(optimizer, torch.optim.Muon):
        raise TypeError(
            "Muon's step is a function of a whole matrix of gradients, and the values of a sparse layer are one number a connection: "
            "give them to AdamW or SGD and keep Muon for dense layers; the training guide has a Muon for sparse layers"
        )
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise TypeError(
            "SparseAdam is for gradients that are sparse tensors, as nn.Embedding(sparse=True) has them; those of sparse layers are dense "
            "vectors: use Adam or AdamW"
        )


def _refuse_own_tensors(layer: TopologyLayer, wrappers: Iterable[Any]) -> None:
    """
    Raises:
        TypeError: if a wrapper keeps tensors like the layer's parameter outside of an optimizer's `state`, where nobody moves them.
    """
    parameter = layer.parameter
    for wrapper in wrappers:
        for name, value in vars(wrapper).items() if _has_attributes(wrapper) else ():
            if name in ("state", "param_groups", "defaults") or isinstance(value, Optimizer):
                continue
            if any(tensor.shape == parameter.shape and not isinstance(tensor, nn.Parameter) for tensor in _tensors(value, 3)):
                raise TypeError(
                    f"{type(wrapper).__name__} keeps tensors of shape {tuple(parameter.shape)} in {name!r}, which cannot follow the "
                    "connections when they change: let it keep them in .state[parameter], as optimizers "
                    "do, or pass the Rewirer the optimizer inside it"
                )


def _tensors(value: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, (Mapping, list, tuple, set)):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(one, depth - 1)


def _steps(value: Any) -> bool:
    """Whether it is an optimizer, or behaves as one."""
    return isinstance(value, Optimizer) or (callable(getattr(value, "step", None)) and callable(getattr(value, "zero_grad", None)))


def _has_attributes(value: Any) -> bool:
    return hasattr(value, "__dict__")


def _is_weight(optimizer: Optimizer, name: str) -> bool:
    """Whether it is another copy of the weights: averaged (ASGD), slow (Lookahead), the first (MADGRAD, Prodigy), schedule-free."""
    return name in ("ax", "x0", "p0") or "slow" in name or (name == "z" and "ScheduleFree" in type(optimizer).__name__)


def _fresh_state(optimizer: Optimizer, name: str, group: Mapping[str, Any]) -> float:
    """What the optimizer itself starts this state at."""
    if isinstance(optimizer, torch.optim.Adagrad) and name == "sum":
        return float(group.get("initial_accumulator_value", 0.0))
    if isinstance(optimizer, torch.optim.Rprop) and name == "step_size":
        return float(group["lr"])
    return 0.0


def group_of(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Any]:
    """The settings of the optimizer for this parameter; none if it does not hold it."""
    return next((group for group in optimizer.param_groups if any(held is parameter for held in group["params"])), {})


def momentum_of(optimizer: Optimizer, parameter: nn.Parameter) -> Tensor | None:
    """What the optimizer makes of the gradients so far; None if it keeps nothing of the kind."""
    state = optimizer.state.get(parameter, {})
    if "exp_avg" in state and "exp_avg_sq" in state:
        return state["exp_avg"] / (state["exp_avg_sq"].sqrt() + group_of(optimizer, parameter).get("eps", Smoothing.epsilon))
    return state.get("momentum_buffer")


def second_moment_of(optimizer: Optimizer, layer: TopologyLayer) -> Tensor | None:
    """[nnz] what it keeps of the squares of the gradients; None if it keeps no such number for each connection."""
    held = optimizer.state.get(layer.parameter, {}).get(SECOND_MOMENT)
    return layer.of_connections(held) if isinstance(held, Tensor) and held.shape == layer.parameter.shape else None


def learning_rate_of(optimizer: Optimizer, parameter: nn.Parameter) -> float:
    """For this parameter at this step; NaN where there is none (Adafactor of transformers with relative steps)."""
    rate = group_of(optimizer, parameter)["lr"]
    return nan if rate is None else float(rate)


def smoothing_of(optimizer: Optimizer, group: Mapping[str, Any]) -> Smoothing:
    """How it would have smoothed the gradients of absent connections."""
    if isinstance(optimizer, torch.optim.SGD):
        return Smoothing(first=group.get("momentum", 0.0))
    if "betas" in group and "eps" in group:
        betas = [float(beta) for beta in group["betas"]]  # three in Adan, whose second is for differences of gradients
        return Smoothing(betas[0], betas[-1], float(group["eps"]))
    return Smoothing()
