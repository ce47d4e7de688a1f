"""What does a recurrent cell do between its two matrix products? And the cells of torch, opened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from .base import Opened, linear

State = tuple[Tensor, ...]  # (h,), or (h, c) of an LSTM
Cell = Callable[[Tensor, Tensor, State], State]


def tanh(x: Tensor, h: Tensor, state: State) -> State:
    """Elman's: of the products with the input and with the state before, and that state, the next state."""
    return (torch.tanh(x + h),)


def relu(x: Tensor, h: Tensor, state: State) -> State:
    return (torch.relu(x + h),)


def gru(x: Tensor, h: Tensor, state: State) -> State:
    """Cho et al. 2014, https://arxiv.org/abs/1406.1078, with the reset gate after the product, as torch has it."""
    (before,) = state
    size = before.shape[-1]
    reset, update = torch.sigmoid(x[..., : 2 * size] + h[..., : 2 * size]).chunk(2, -1)
    new = torch.tanh(x[..., 2 * size :] + reset * h[..., 2 * size :])
    return (new + update * (before - new),)


def lstm(x: Tensor, h: Tensor, state: State) -> State:
    """Hochreiter and Schmidhuber 1997; of the gates input, forget, cell and output, in torch's order."""
    take, forget, new, give = (x + h).chunk(4, -1)
    cell = torch.sigmoid(forget) * state[1] + torch.sigmoid(take) * torch.tanh(new)
    return torch.sigmoid(give) * torch.tanh(cell), cell


CELLS: dict[str, Cell] = {"RNN_TANH": tanh, "RNN_RELU": relu, "GRU": gru, "LSTM": lstm}


def has_memory(mode: str) -> bool:
    """Whether the state has two parts."""
    return mode == "LSTM"


class OpenedCell(Opened):
    """`nn.LSTMCell`, `nn.GRUCell` or `nn.RNNCell` with its matrices as layers: `ih` for the input, `hh` for the state.

    It takes and gives exactly what the dense cell does.

    Attributes:
        dense_class: the class of the dense cell.
        mode: "LSTM", "GRU", "RNN_TANH" or "RNN_RELU".
    """

    whole = True
    ih: nn.Module
    hh: nn.Module

    def __init__(self, dense_class: type[nn.RNNCellBase], mode: str, input_size: int, hidden_size: int, bias: bool) -> None:
        super().__init__()
        self.dense_class, self.mode = dense_class, mode
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias

    @classmethod
    def opening(cls, module: nn.Module) -> Self:
        assert isinstance(module, nn.RNNCellBase)
        mode = type(module).__name__.removesuffix("Cell")
        if isinstance(module, nn.RNNCell):
            mode += f"_{_nonlinearity(module).upper()}"
        opened = cls(type(module), mode, module.input_size, module.hidden_size, module.bias)
        opened.ih = linear(module.weight_ih, module.bias_ih)
        opened.hh = linear(module.weight_hh, module.bias_hh)
        return opened.train(module.training)

    def closed(self) -> nn.Module:
        settings: dict[str, Any] = {"nonlinearity": self.nonlinearity} if self.nonlinearity else {}
        dense = self.dense_class(self.input_size, self.hidden_size, self.bias, device="meta", **settings)
        for part in ("ih", "hh"):
            layer = getattr(self, part)
            setattr(dense, f"weight_{part}", layer.weight)
            setattr(dense, f"bias_{part}", layer.bias)
        return dense.train(self.training)

    @property
    def nonlinearity(self) -> str:
        """That of `nn.RNNCell`; of the others none, "": theirs are given."""
        return nonlinearity_of(self.mode)

    def forward(self, input: Tensor, hx: Tensor | State | None = None) -> Tensor | State:
        """
        Args:
            input: [batch, input_size], or [input_size].
            hx: [batch, hidden_size], or [hidden_size]; of an LSTM a pair of these. None is zeros.

        Returns:
            The next state, of the form of `hx`.

        Raises:
            ValueError: if a shape does not fit.
        """
        count = 2 if has_memory(self.mode) else 1
        if input.ndim not in (1, 2) or input.shape[-1] != self.input_size:
            raise ValueError(f"expected an input of shape (batch, {self.input_size}) or ({self.input_size},), got {tuple(input.shape)}")
        x = self.ih(input)
        given = (x.new_zeros(*input.shape[:-1], self.hidden_size),) * count if hx is None else hx if isinstance(hx, tuple) else (hx,)
        check_state(given, count, (*input.shape[:-1], self.hidden_size))
        state = CELLS[self.mode](x, self.hh(given[0]), given)
        return state if count == 2 else state[0]

    def extra_repr(self) -> str:
        return f"{self.mode}, {self.input_size}, {self.hidden_size}"


def nonlinearity_of(mode: str) -> str:
    return mode.partition("_")[2].lower()


def check_state(given: State, count: int, *shapes: tuple[int, ...]) -> None:
    """
    Raises:
        ValueError: if there are not so many parts, or one has another shape: the last of `shapes` is that of all that follow.
    """
    wanted = [shapes[min(place, len(shapes) - 1)] for place in range(count)]
    came = [tuple(one.shape) for one in given]
    if came != wanted:
        said = f"a pair (h, c) of shapes {wanted[0]} and {wanted[1]}" if count == 2 else f"a state of shape {wanted[0]}"
        raise ValueError(f"expected {said}, got {', '.join(map(str, came))}")


def _nonlinearity(module: nn.RNNCell) -> str:
    return module.nonlinearity
