"""How are values held when only the connections exist? One number a connection, the topology as buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..topology import Move, Topology
from .base import Part, Sample, TopologyLayer, identity_of


class SparseLayer(TopologyLayer):
    """A layer that stores, trains and runs only its connections.

    Attributes:
        values: `nn.Parameter` [nnz], row by row, columns ascending.
        indptr, indices: the topology as buffers, so that `state_dict` and `.to(device)` carry it.
    """

    values: nn.Parameter
    indptr: Tensor
    indices: Tensor

    def _hold(self, topology: Topology, values: Tensor) -> None:
        self.values = nn.Parameter(values)
        self._set_topology(topology)

    def _set_topology(self, topology: Topology) -> None:
        self.register_buffer("indptr", topology.indptr)
        self.register_buffer("indices", topology.indices)
        self._topology, self._seen = topology, identity_of(topology.indptr, topology.indices)

    @property
    def topology(self) -> Topology:
        """Which connections exist. Replaced by `truesparse.rewire` and `load_state_dict`, never changed in place."""
        # Whatever swaps a buffer (.to(device), deepcopy, assign=True), writes into it (an average of models) or moves its memory
        # (share_memory) is seen here: kernels have plans and addresses of the topology that they were made for.
        indptr, indices = self._buffers["indptr"], self._buffers["indices"]  # each look-up as an attribute costs a microsecond
        assert indptr is not None
        assert indices is not None
        seen, topology = identity_of(indptr, indices), self._topology
        if seen != self._seen or topology.indptr is not indptr or topology.indices is not indices:
            make = Topology._trusted if indptr.is_meta else Topology
            topology = make(self.geometry.shape, indptr, indices)
            self._topology, self._seen = topology, seen
        return topology

    @property
    def parameter(self) -> nn.Parameter:
        return self.values

    def plan_nbytes(self) -> int:
        return self._verbs().nbytes

    @property
    def kernel(self) -> str:
        """Which kernel runs this layer: "cpu.matrix[avx512]"."""
        return self._verbs().name

    def forward(self, input: Tensor) -> Tensor:
        """
        Under autocast, input and output are of its dtype, as in dense layers; values and bias stay as they are, their gradients too.

        Raises:
            ValueError: if the shape of `input` does not fit.
            TypeError: if `input` and the values differ in dtype, outside of autocast.
            NotImplementedError: if there is no kernel for this device and dtype.
        """
        if torch.compiler.is_compiling():
            # Kernels want addresses and plans, which the tensors of a graph being traced have not: the graph ends before the layer.
            outside: Callable[[Tensor], Tensor] = torch.compiler.disable(self._product)  # type: ignore[assignment]
            return outside(input)
        return self._product(input)

    def _product(self, input: Tensor) -> Tensor:
        x, values = self._prepared(input), self._acting(self.values)
        self.geometry.check_input(x)
        held = output = values.dtype
        if torch.is_autocast_enabled(x.device.type):
            held, output = self._autocast_dtypes(x.device.type)
            x = x.to(held)
        elif x.dtype != held:
            raise TypeError(
                f"expected an input of {held}, the dtype of the values, got {x.dtype}; convert the input, or the layer with .to(...)"
            )
        tell, of = self._hears(), self.values
        y = ops.product(values, self._flat(x), self.bias, self._verbs(held), lambda dvalues, dy, x: tell(Part(of, dvalues, (dy, x))))
        y = y if held == output else y.to(output)
        lead = x.shape[: x.ndim - self.geometry.sample_ndim]
        return y if len(lead) == 1 else y.reshape(*lead, *y.shape[1:])

    def _autocast_dtypes(self, device: str) -> tuple[torch.dtype, torch.dtype]:
        """(in which dtype the kernels get x, that of the output)."""
        if self.values.dtype == torch.float64:
            return torch.float64, torch.float64  # autocast leaves float64 alone
        output = torch.get_autocast_dtype(device)
        self.met_float16 |= output == torch.float16
        # No kernel holds samples in float16: those are widened before and rounded after.
        return torch.float32 if output == torch.float16 else output, output

    def to_dense(self) -> Tensor:
        return self._heard(self.topology.scatter(self._acting(self.values)).view(self.geometry.weight_shape))

    def of_connections(self, array: Tensor) -> Tensor:
        return array

    def spread(self, array: Tensor) -> Tensor:
        return array

    def moved(self, move: Move, array: Tensor, fill: float = 0.0) -> Tensor:
        return move(array, fill)

    def install(self, move: Move) -> None:
        self._replace_values(move.values(self.values.detach()))
        self._set_topology(move.new)
        self._install_acting(move)

    def gradient_rows(self, samples: list[Sample], start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of the dense gradient, summed over one or more backward passes, [stop - start, columns]."""
        return ops.summed_rows(self._verbs().gradient_rows, self._widened(samples), start, stop)

    def top_gradients(self, samples: list[Sample], kept: Topology, count: int) -> Tensor:
        """Positions outside `kept` of the `count` largest absolute entries of the summed dense gradient, ascending int64."""
        return self._verbs().top_gradients(self._widened(samples), kept, count)

    def gradients_at(self, samples: list[Sample], positions: Topology) -> Tensor:
        """The summed dense gradient at `positions`, [positions.nnz], whether there are connections or not."""
        verbs = ops.verbs_for(positions, self.geometry, ops.values_dtype(self.values.dtype))
        first, *others = self._widened(samples)
        total = verbs.sddmm(*first)
        for dy, x in others:
            total += verbs.sddmm(dy, x)
        return total

    def _verbs(self, dtype: torch.dtype | None = None) -> ops.Verbs:
        """Those for inputs of `dtype`; None is the dtype of the values."""
        return ops.verbs_for(self.topology, self.geometry, dtype or self.values.dtype)

    def _replace_values(self, values: Tensor) -> None:
        """Give the parameter other data, possibly of another length, while optimizers keep holding the same parameter."""
        if values.shape != self.values.shape:
            # A graph that is still alive keeps the node that accumulates this parameter's gradient, and that node
            # remembers the old length. Passing through another dtype makes torch forget the node.
            self.values.grad = None
            other = torch.float64 if self.values.dtype != torch.float64 else torch.float32
            self.values.data = torch.empty(0, dtype=other, device=values.device)
        self.values.data = values
        torch.autograd.graph.increment_version(self.values)  # what a graph has saved of them is not theirs any longer

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise AttributeError(
                f"{type(self).__name__} has no dense weight: its connections are .values and .topology; .to_dense() makes the dense weight"
            )
        return super().__getattr__(name)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        arrays = {name: state_dict[prefix + name] for name in ("indptr", "indices", "values") if prefix + name in state_dict}
        who = prefix.removesuffix(".") or type(self).__name__
        if 0 < len(arrays) < 3:
            # Copied one by one, they would change a topology in place, or give values to the connections of another.
            error_msgs.append(f"{who}: expected indptr, indices and values together, got only {', '.join(arrays)}")
            return
        if arrays:
            try:
                indptr, indices, values = (array.to(self.values.device) for array in arrays.values())
                topology = Topology(self.geometry.shape, indptr.clone(), indices.clone())
                self.pattern.check(topology)
                if values.shape != (topology.nnz,):
                    raise ValueError(f"expected {topology.nnz} values, one for each connection, got shape {tuple(values.shape)}")
                acting = state_dict.get(prefix + "acting")
                if acting is not None and (acting.shape != values.shape or acting.dtype != torch.bool):
                    raise ValueError(
                        f"acting must be bool, one for each of {topology.nnz} connections, got {acting.dtype} {tuple(acting.shape)}"
                    )
            except (TypeError, ValueError) as error:
                error_msgs.append(f"{who}: {error}")
                return
            if not topology.equal(self.topology):
                self.changed_alone += 1
                self._replace_values(self.values.new_empty(topology.nnz))
                self._set_topology(topology)
            self._expect_acting(state_dict, prefix)
        own = self.indptr, self.indices
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        if own[0] is self.indptr and own[1] is self.indices:
            self._seen = identity_of(*own)  # written with what they held
