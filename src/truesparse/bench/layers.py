"""How fast is one layer, beside dense PyTorch? Called as a user calls it: modules, row-major tensors, autograd.

"forward" is a call without gradients. "forward + backward" is a call on an input that requires its gradient, as the output of
another layer does, and `backward()`: it leaves dx and dW. Layers have no bias. All ways compute with the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..common.devices import can_be_kept_busy
from ..nn import MaskedConv2d, MaskedLinear, SparseConv2d, SparseLinear
from ..ops import verbs_for
from ..runs import ConfigError
from ..runs.machine import threads_said
from ..topology.geometry import Convolution, Matrix
from ..topology.patterns import Pattern
from .beside import Beside, beside
from .csr import csr_linear
from .document import LayerRow
from .request import Conditions
from .timing import LEAST_ROUNDS, Call, elapsed, interleaved, interleaved_on_device, times_as_fast
from .work import Peaks, backward_work, forward_work, shares
from .wrong import TOLERANCE, TOLERANCE_OF_TF32, of_connections, refuse_if_wrong

FORWARD, BOTH = "forward", "forward + backward"
SEED = 0


@dataclass(frozen=True)
class LayerCase:
    """One layer on inputs of `input_shape` (batch first).

    Raises:
        ConfigError: if the pattern does not fit the layer.
    """

    geometry: Matrix | Convolution
    input_shape: tuple[int, ...]
    sparsity: float
    pattern: Pattern

    def __post_init__(self) -> None:
        try:
            self.pattern.round(self.geometry.shape, self.geometry.shape[0])
        except ValueError as error:
            raise ConfigError(f"{self.layer}: {error}") from error

    @property
    def layer(self) -> str:
        """The layer for people: "3072 -> 768", "64 -> 64, 3x3, on 32x32"."""
        g = self.geometry
        if isinstance(g, Matrix):
            return f"{g.columns} -> {g.rows}"
        stride = f" stride {g.stride[0]}" if g.stride != (1, 1) else ""
        return f"{g.in_channels} -> {g.out_channels}, {g.kernel[0]}x{g.kernel[1]}{stride}, on {self.input_shape[2]}x{self.input_shape[3]}"

    def make_sparse(self) -> SparseLinear | SparseConv2d:
        """The layer with a random topology, always the same."""
        g, generator = self.geometry, torch.Generator().manual_seed(SEED)
        chosen = {"sparsity": self.sparsity, "pattern": self.pattern, "generator": generator}
        if isinstance(g, Matrix):
            return SparseLinear(g.columns, g.rows, bias=False, **chosen)
        return SparseConv2d(g.in_channels, g.out_channels, g.kernel, g.stride, g.padding, bias=False, **chosen)


def measure_layers(
    cases: Sequence[LayerCase], conditions: Conditions, peaks: Sequence[Peaks], tell: Callable[[str], None]
) -> Iterator[LayerRow]:
    """Two rows (forward, forward + backward) for each case and each number of threads.

    Args:
        cases: which layers.
        conditions: how.
        peaks: one for each number of threads.
        tell: hears which line is about to be taken.

    Raises:
        WrongResult: if any way computes something else than float64 does. Nothing of that layer is timed then.
    """
    for case in cases:
        ways = _Ways(case, conditions)
        for peak in peaks:
            torch.set_num_threads(peak.threads)
            ways.check()
            for direction in (FORWARD, BOTH):
                tell(f"{ways.said}, batch {case.input_shape[0]}, {threads_said(peak.threads)}, {direction}")
                yield ways.timed(direction, peak)


class _Ways:
    """The four ways to compute one layer, and what they should give."""

    def __init__(self, case: LayerCase, conditions: Conditions) -> None:
        self.case, self.conditions = case, conditions
        generator = torch.Generator().manual_seed(SEED)
        sparse = case.make_sparse().to(conditions.device)
        dense = sparse.dense_module()
        self.topology = sparse.topology
        self.modules: dict[str, nn.Module] = {"dense": dense}
        self.left_out: dict[str, str] = {}
        if isinstance(dense, nn.Linear):
            self.modules["masked"] = MaskedLinear.from_dense(dense, self.topology, pattern=case.pattern)
            try:
                self.modules["csr"] = csr_linear(dense)
            except (NotImplementedError, RuntimeError) as error:
                self.left_out["csr"] = f"torch: {str(error).splitlines()[0]}"
        else:
            self.modules["masked"] = MaskedConv2d.from_dense(dense, self.topology, pattern=case.pattern)
            self.left_out["csr"] = "torch has no convolution with a CSR weight"
        self.modules["sparse"] = sparse
        self.x = torch.randn(case.input_shape, generator=generator).to(conditions.device, conditions.dtype).requires_grad_()
        # The truth, in float64: of the very numbers the layers are given.
        x, weight = self.x.detach().double().requires_grad_(), sparse.to_dense().detach().double().requires_grad_()
        y = case.geometry.dense(x, weight, None)
        self.dy = torch.randn(y.shape, generator=generator).to(conditions.device, conditions.dtype)
        dx, dweight = torch.autograd.grad(y, (x, weight), self.dy.double())
        self.expected = {"y": y.detach(), "dx": dx, "dW": dweight.flatten()[self.topology.keys]}
        self.beside: dict[str, Beside] = {}
        if isinstance(dense, nn.Linear):
            for name in conditions.beside:
                try:
                    self.beside[name] = beside(name, sparse, dense, self.x.detach(), self.expected["y"])
                except (NotImplementedError, RuntimeError) as error:
                    self.left_out[name] = f"torch: {str(error).splitlines()[0]}"

    @property
    def said(self) -> str:
        """The layer and how sparse it turned out, for people."""
        return f"{self.case.layer}, {self.topology.sparsity:.1%} sparse"

    def forward(self, name: str) -> Tensor:
        with torch.no_grad(), self.conditions.autocast():
            return self.modules[name](self.x)

    def forward_backward(self, name: str) -> Tensor:
        module = self.modules[name]
        module.zero_grad()
        self.x.grad = None
        with self.conditions.autocast():
            y = module(self.x)
        y.backward(self.dy)
        return y

    def check(self) -> None:
        """Calls everything once, which also makes plans and warms caches.

        Raises:
            WrongResult: if a result is not that of float64.
        """
        for name in list(self.modules):
            try:
                results = {"y": self.forward(name), "y of training": self.forward_backward(name)}
            except (NotImplementedError, RuntimeError) as error:
                if name != "csr":
                    raise
                del self.modules[name]
                self.left_out[name] = f"torch: {str(error).splitlines()[0]}"
                continue
            parameter = next(self.modules[name].parameters())
            results |= {"dx": self.x.grad, "dW": of_connections(parameter.grad, self.topology)}
            tolerance = TOLERANCE_OF_TF32 if self.conditions.tf32 else TOLERANCE[self.conditions.dtype]
            for what, actual in results.items():
                refuse_if_wrong(f"{self.said}: {what} of {name}", actual, self.expected[what.split()[0]], tolerance)
        for name, way in self.beside.items():
            refuse_if_wrong(f"{self.said}: y of {name}", way.call(), way.expected, way.tolerance)

    def timed(self, direction: str, peaks: Peaks) -> LayerRow:
        """One line of the table. Everything has been checked, and so called, before."""
        case, left_out = self.case, dict(self.left_out)
        calls: dict[str, Call] = {name: self._call(direction, name) for name in self.modules}
        if direction == FORWARD:
            calls |= {name: way.call for name, way in self.beside.items()}
        device = self.conditions.device
        if "csr" in calls and (once := elapsed(calls["csr"], device)) * LEAST_ROUNDS > self.conditions.seconds:
            del calls["csr"]
            left_out["csr"] = f"one call took {once:.2f} s"
        medians = interleaved(calls, self.conditions.seconds, warm=True, device=device)
        alone = interleaved_on_device(calls, self.conditions.seconds, device) if can_be_kept_busy(device) else {}
        given = case.geometry, self.topology.nnz, case.input_shape, self.x.element_size()
        work = forward_work(*given) if direction == FORWARD else forward_work(*given) + backward_work(*given)
        share_of_multiply_adds, share_of_bandwidth = shares(work, medians["sparse"], peaks)
        return LayerRow(
            layer=case.layer,
            pattern=str(case.pattern),
            sparsity=self.topology.sparsity,
            connections=self.topology.nnz,
            batch=case.input_shape[0],
            threads=peaks.threads,
            direction=direction,
            seconds=medians,
            times_as_fast=times_as_fast(medians),
            left_out=left_out,
            multiply_adds=work.multiply_adds,
            least_bytes=work.least_bytes,
            share_of_multiply_adds=share_of_multiply_adds,
            share_of_bandwidth=share_of_bandwidth,
            kernel=verbs_for(self.topology, case.geometry, self.x.dtype).name,
            device_seconds=alone,
        )

    def _call(self, direction: str, name: str) -> Call:
        way = self.forward if direction == FORWARD else self.forward_backward
        return lambda: way(name)
