"""What are the values of a quantised layer? Made in every forward pass of what is trained: themselves before rounding, or a codebook."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEAST_INPUT, MOST_INPUT = -128, 127
MOST_BITS = 8


def straight_through(numbers: Tensor, most: float = torch.inf) -> Tensor:
    """The nearest whole number within -most and most, ties to even; its gradient is that of the identity.

    Also outside the bounds: a value that training has carried past them can come back. Bengio et al. 2013,
    https://arxiv.org/abs/1308.3432
    """
    held = numbers.detach()
    return held.round().clamp(-most, most) + (numbers - held)  # which is 0, so that the sum is exact


class RoundedByRow(nn.Module):
    """Whole multiples of one scale a row of the topology: value = scale x number, -2^(bits - 1) < number < 2^(bits - 1).

    Args:
        trained: [nnz], the values before they are rounded: what an optimizer trains.
        scale: [rows], of the dtype of the values, above 0. It stays as it is.
        bits: of a number.
    """

    by = "row"

    def __init__(self, trained: nn.Parameter, scale: Tensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.trained = trained
        self.scale: Tensor
        self.register_buffer("scale", scale)

    @property
    def of_connections(self) -> str:
        """The name of the tensor that has an entry a connection."""
        return "trained"

    def forward(self, indptr: Tensor) -> Tensor:
        scale = self._scale_of_each(indptr)
        return self._rounded(scale) * scale

    def numbers(self, indptr: Tensor) -> Tensor:
        """[nnz] int8."""
        return self._rounded(self._scale_of_each(indptr)).detach().to(torch.int8)

    def table(self) -> Tensor:
        """What the numbers refer to: the scales, [rows]."""
        return self.scale

    def _scale_of_each(self, indptr: Tensor) -> Tensor:
        return self.scale.repeat_interleave(indptr.diff(), output_size=self.trained.shape[0])

    def _rounded(self, scale: Tensor) -> Tensor:
        return straight_through(self.trained / scale, 2 ** (self.bits - 1) - 1)


class FromCodebook(nn.Module):
    """Each value is an entry of one codebook; the gradient of an entry is the sum over its connections.

    Han, Mao and Dally 2016, https://arxiv.org/abs/1510.00149, section 3: which entry is fixed, the entries are trained.

    Args:
        trained: [at most 2^bits], the codebook: what an optimizer trains.
        codes: [nnz] uint8, the entry of each connection.
        bits: of a number.
    """

    by = "codebook"

    def __init__(self, trained: nn.Parameter, codes: Tensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.trained = trained
        self.codes: Tensor
        self.register_buffer("codes", codes)

    @property
    def of_connections(self) -> str:
        """The name of the tensor that has an entry a connection."""
        return "codes"

    def forward(self, indptr: Tensor) -> Tensor:
        return self.trained.index_select(0, self.codes.to(torch.int32))

    def numbers(self, indptr: Tensor) -> Tensor:
        """[nnz] uint8."""
        return self.codes

    def table(self) -> Tensor:
        """What the numbers refer to: the codebook."""
        return self.trained.detach()


class RoundedInput(nn.Module):
    """An input as int8 holds it: x = scale x (number - zero point), -128 <= number <= 127; the gradient is zero outside of that.

    Args:
        inputs, outputs: (scale above 0, zero point in [-128, 127]) of the layer's input, and of its output, which is not rounded here:
            who runs the layer in whole numbers needs it.
    """

    scale: Tensor
    zero_point: Tensor
    output_scale: Tensor
    output_zero_point: Tensor

    def __init__(self, inputs: tuple[float, int], outputs: tuple[float, int], device: torch.device | None = None) -> None:
        super().__init__()
        for name, (scale, zero_point) in (("", inputs), ("output_", outputs)):
            self.register_buffer(f"{name}scale", torch.tensor(scale, dtype=torch.float32, device=device))
            self.register_buffer(f"{name}zero_point", torch.tensor(zero_point, dtype=torch.int32, device=device))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale.to(x.dtype)
        return ((straight_through(x / scale) + self.zero_point).clamp(LEAST_INPUT, MOST_INPUT) - self.zero_point) * scale
