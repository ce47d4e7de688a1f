"""How does a recurrent network whose matrices are layers run? The inputs of all steps at once, the state step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ...common.tracing import may_be_followed
from ..linear import SparseLinear
from .base import HOOKS, Opened, linear, outside
from .cells import CELLS, State, check_state, has_memory, nonlinearity_of

SETTINGS = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
PARTS = ("ih", "hh", "hr")


class OpenedRecurrent(Opened):
    """`nn.LSTM`, `nn.GRU` or `nn.RNN` with its matrices as layers, two for each of its layers and directions.

    `ih_l0` multiplies the inputs of layer 0, `hh_l0` its state, `hr_l0` projects it where there is a `proj_size`; the suffix
    "_reverse" is that of torch. It takes and gives exactly what the dense module does; its settings are attributes of the same names.

    Attributes:
        dense_class: the class of the dense module.
        mode: "LSTM", "GRU", "RNN_TANH" or "RNN_RELU".
    """

    whole = True

    def __init__(self, module: nn.RNNBase) -> None:
        super().__init__()
        self.dense_class, self.mode = type(module), module.mode
        self.input_size, self.hidden_size, self.proj_size = module.input_size, module.hidden_size, module.proj_size
        self.num_layers, self.bias, self.batch_first = module.num_layers, module.bias, module.batch_first
        self.dropout, self.bidirectional = module.dropout, module.bidirectional

    @classmethod
    def opening(cls, module: nn.Module) -> Self:
        assert isinstance(module, nn.RNNBase)
        opened = cls(module)
        for suffix in opened._suffixes():
            for part in opened._parts:
                bias = getattr(module, f"bias_{part}_{suffix}", None)
                setattr(opened, f"{part}_{suffix}", linear(getattr(module, f"weight_{part}_{suffix}"), bias))
        return opened.train(module.training)

    def closed(self) -> nn.Module:
        settings: dict[str, Any] = {name: getattr(self, name) for name in SETTINGS}
        if self.proj_size:
            settings["proj_size"] = self.proj_size
        if self.nonlinearity:
            settings["nonlinearity"] = self.nonlinearity
        dense = self.dense_class(**settings, device="meta")
        for suffix in self._suffixes():
            for part in self._parts:
                layer: nn.Linear = getattr(self, f"{part}_{suffix}")
                setattr(dense, f"weight_{part}_{suffix}", layer.weight)
                if layer.bias is not None:
                    setattr(dense, f"bias_{part}_{suffix}", layer.bias)
        dense._init_flat_weights()
        return dense.train(self.training)

    @property
    def nonlinearity(self) -> str:
        """That of `nn.RNN`; of the others none, "": theirs are given."""
        return nonlinearity_of(self.mode)

    def flatten_parameters(self) -> None:
        """Nothing to do: of `nn.LSTM` it is called for the sake of cuDNN."""

    def forward(self, input: Tensor | PackedSequence, hx: Tensor | State | None = None) -> tuple[Any, Tensor | State]:
        """
        Shapes and meanings are those of `nn.LSTM`, `nn.GRU` and `nn.RNN`. With L steps, N samples, D directions:

        Args:
            input: [L, N, input_size], or [N, L, input_size] with `batch_first`, or [L, input_size], or a `PackedSequence`.
            hx: the state before the first step, [D * num_layers, N, hidden_size] (`proj_size`, where there is one), or without N; of an
                LSTM a pair with the cells [D * num_layers, N, hidden_size]. None is zeros.

        Returns:
            The states of the last layer, [L, N, D * hidden_size] as `input` is, and the state after the last step, as `hx` is.

        Raises:
            ValueError: if a shape does not fit.
            TypeError: under torch.export.
        """
        if torch.compiler.is_exporting():
            raise TypeError(
                f"a sparse {self.mode} would be exported for the length of the example alone, step by step: export "
                "ts.densify(copy.deepcopy(model)), which computes the same for any length"
            )
        if torch.compiler.is_compiling():
            return outside(self.forward, input, hx)  # type: ignore[no-any-return]
        packed = input if isinstance(input, PackedSequence) else None
        batched = packed is not None or input.ndim == 3  # type: ignore[union-attr]
        x, sizes = (packed.data, packed.batch_sizes.tolist()) if packed else self._by_steps(input)  # type: ignore[arg-type]
        if x.ndim != 2 or x.shape[1] != self.input_size:
            raise ValueError(f"expected packed inputs of {self.input_size} features, got shape {tuple(x.shape)}")
        state = self._initial(hx, x, sizes[0] if sizes else 0, batched)
        if packed is not None and hx is not None and packed.sorted_indices is not None:
            state = tuple(one.index_select(1, packed.sorted_indices) for one in state)
        outputs, state = self._layers(x, sizes, state)
        result: Any
        if packed is not None:
            if packed.unsorted_indices is not None:
                state = tuple(one.index_select(1, packed.unsorted_indices) for one in state)
            result = PackedSequence(outputs, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        else:
            outputs = outputs.unflatten(0, (len(sizes), -1)) if sizes else outputs.unflatten(0, (0, 1))
            result = outputs.transpose(0, 1) if self.batch_first and batched else outputs
            if not batched:
                result, state = result.squeeze(1), tuple(one.squeeze(1) for one in state)
        return result, state if has_memory(self.mode) else state[0]

    def _by_steps(self, input: Tensor) -> tuple[Tensor, list[int]]:
        """All samples of step 0, then those of step 1, ..., [L * N, input_size]; and how many there are of each."""
        if input.ndim not in (2, 3) or input.shape[-1] != self.input_size:
            order = "N, L" if self.batch_first else "L, N"
            raise ValueError(f"expected an input of shape ({order}, {self.input_size}) or (L, {self.input_size}), got {tuple(input.shape)}")
        x = input.unsqueeze(1) if input.ndim == 2 else input.transpose(0, 1) if self.batch_first else input
        if not x.shape[0]:
            raise ValueError(f"expected a sequence of at least one step, got an input of shape {tuple(input.shape)}")
        return x.flatten(0, 1), [x.shape[1]] * x.shape[0]

    def _initial(self, hx: Tensor | State | None, x: Tensor, samples: int, batched: bool) -> State:
        """The states of all layers and directions before their first step, each [D * num_layers, samples, size]."""
        count, layers = 2 if has_memory(self.mode) else 1, len(self._suffixes())
        sizes = (self.proj_size or self.hidden_size, self.hidden_size)
        if hx is None:
            return tuple(x.new_zeros(layers, samples, size) for size in sizes[:count])
        given = hx if isinstance(hx, tuple) else (hx,)
        check_state(given, count, *((layers, samples, size) if batched else (layers, size) for size in sizes))
        return given if batched else tuple(one.unsqueeze(1) for one in given)

    def _layers(self, x: Tensor, sizes: list[int], state: State) -> tuple[Tensor, State]:
        ends: list[State] = []
        for number in range(self.num_layers):
            outputs = []
            for direction in self._directions:
                before = tuple(one[len(ends)] for one in state)
                states, end = self._sequence(f"l{number}{direction}", x, sizes, before, bool(direction))
                outputs.append(states)
                ends.append(end)
            x = torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0]
            if number < self.num_layers - 1:
                x = F.dropout(x, self.dropout, self.training)
        return x, tuple(torch.stack(parts) for parts in zip(*ends, strict=True))

    def _sequence(self, suffix: str, x: Tensor, sizes: list[int], state: State, reverse: bool) -> tuple[Tensor, State]:
        """One layer in one direction: (its states at all steps, in the order of `x`; that after its last step)."""
        inputs: Tensor = getattr(self, f"ih_{suffix}")(x)
        hidden, project = (_at_each_step(getattr(self, f"{part}_{suffix}", None)) for part in ("hh", "hr"))
        assert hidden is not None
        cell, steps = CELLS[self.mode], list(inputs.split(sizes))
        outputs: list[Tensor] = [inputs] * len(steps)
        for place in reversed(range(len(steps))) if reverse else range(len(steps)):
            # Samples are in the order of their lengths: those that take part in a step come first, whichever way it goes.
            taking_part = tuple(one[: sizes[place]] for one in state)
            new = cell(steps[place], hidden(taking_part[0]), taking_part)
            if project is not None:
                new = project(new[0]), *new[1:]
            outputs[place] = new[0]
            state = tuple(
                one if len(one) == len(whole) else torch.cat([one, whole[len(one) :]]) for one, whole in zip(new, state, strict=True)
            )
        return torch.cat(outputs), state

    @property
    def _parts(self) -> tuple[str, ...]:
        return PARTS if self.proj_size else PARTS[:2]

    @property
    def _directions(self) -> tuple[str, ...]:
        return ("", "_reverse") if self.bidirectional else ("",)

    def _suffixes(self) -> list[str]:
        return [f"l{number}{direction}" for number in range(self.num_layers) for direction in self._directions]

    def extra_repr(self) -> str:
        return f"{self.mode}, {', '.join(f'{name}={getattr(self, name)}' for name in (*SETTINGS, 'proj_size'))}"


def _at_each_step(layer: nn.Module | None) -> Callable[[Tensor], Tensor] | None:
    """A layer as it is called at all steps of one sequence."""
    if type(layer) is not SparseLinear or any(getattr(layer, hooks) for hooks in HOOKS):
        return layer
    if may_be_followed() or torch.compiler.is_compiling() or torch.is_autocast_enabled(layer.values.device.type):
        return layer
    return layer.repeated()
