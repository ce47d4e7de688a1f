"""How are neurons kept from dying, and how do activations become sparse? By a penalty on what modules give."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import topology_layers


class ActivationPenalty:
    """A term of the loss: the mean absolute value, the mean square and the Hoyer measure of the outputs of some modules.

        penalty = ActivationPenalty(hidden_layers(model), l2=1e-4)
        ...
        (F.cross_entropy(model(x), y) + penalty.loss()).backward()

    On the outputs of layers, before the activation function, `l2` draws neurons back towards the range in which a ReLU passes
    gradients: a ReLU that is 0 for all inputs passes none, but the penalty stands before it. Shi et al. 2019,
    https://doi.org/10.1007/s11063-018-9883-8. On the outputs of activation functions (Merity et al. 2017, https://arxiv.org/abs/1708.01009,
    "AR") it keeps them small and revives nothing. `l1` makes activations sparse (Glorot et al. 2011,
    https://proceedings.mlr.press/v15/glorot11a.html, section 3), and so does `hoyer`, which asks for few activations, not for small ones:
    (sum |a|)^2 / (n sum a^2) of the n outputs a for a sample, from 1 where all are equal to 1/n where one alone is not zero (Kurtz et
    al. 2020, https://proceedings.mlr.press/v119/kurtz20a.html, section 3, without the division by n; 0 where all are zero). Give both
    the outputs of activation functions: `[module for module in model.modules() if isinstance(module, nn.ReLU)]`.

    Only forward passes in training mode, with gradients enabled, count.

    Args:
        modules: whose outputs are penalised.
        l1: factor of the mean absolute value of each module's outputs, at least 0.
        l2: factor of their mean square, at least 0.
        hoyer: factor of the mean over the samples of their Hoyer measure, at least 0. The first dimension of outputs is that of samples.

    Raises:
        ValueError: if a factor is negative, or there is no module.
    """

    def __init__(self, modules: Iterable[nn.Module], l1: float = 0.0, l2: float = 0.0, hoyer: float = 0.0) -> None:
        modules = list(modules)
        for name, factor in (("l1", l1), ("l2", l2), ("hoyer", hoyer)):
            if not 0 <= factor < float("inf"):
                raise ValueError(f"{name} must be at least 0, got {factor}")
        if not modules:
            raise ValueError("expected modules whose outputs are penalised, got none")
        self.l1, self.l2, self.hoyer = l1, l2, hoyer
        self._terms: list[Tensor] = []
        self._handles = [module.register_forward_hook(_Penalise(self)) for module in modules]

    def loss(self) -> Tensor | float:
        """The penalty of all forward passes since the last call, a scalar to add to the loss; 0.0 if there were none."""
        terms, self._terms = self._terms, []
        return torch.stack(terms).sum() if terms else 0.0

    def detach(self) -> None:
        """Remove the hooks from the modules."""
        for handle in self._handles:
            handle.remove()

    def _add(self, output: Tensor) -> None:
        term = output.new_zeros((), dtype=torch.promote_types(output.dtype, torch.float32))
        if self.l1:
            term = term + self.l1 * output.abs().mean(dtype=term.dtype)
        if self.l2:
            term = term + self.l2 * output.to(term.dtype).square().mean()
        if self.hoyer:
            term = term + self.hoyer * _hoyer(output.to(term.dtype)).mean()
        self._terms.append(term)


def _hoyer(output: Tensor) -> Tensor:
    """(sum |a|)^2 / (n sum a^2) of each sample, [samples]; 0, with a gradient of 0, where all is zero."""
    of_samples = output.flatten(1) if output.ndim > 1 else output[None]
    squares = of_samples.square().sum(1).clamp_min(torch.finfo(output.dtype).tiny)
    return of_samples.abs().sum(1).square() / squares / of_samples.shape[1]


def hidden_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a model that have topologies, or its dense linear layers and convolutions if none has, all but the last."""
    sparse: list[nn.Module] = list(topology_layers(model).values())
    dense: list[nn.Module] = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    return (sparse or dense)[:-1]


class _Penalise:
    """The forward hook. A copy or a pickle of the model must not report to this penalty, so the hook's own copies do nothing."""

    def __init__(self, penalty: ActivationPenalty | None = None) -> None:
        self.penalty = penalty

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if self.penalty is not None and module.training and torch.is_grad_enabled():
            self.penalty._add(output)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Penalise, ()
