"""How are values held when only the connections exist? One number a connection, the topology as buffers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from .. import ops
from ..common.tracing import follower
from ..ops import autograd, operators
from ..ops.listeners import NOBODY, leaves, numbered
from ..topology import Move, Topology
from ..topology.identity import fingerprint, identity_of, is_fingerprint, version_of
from .base import Part, Sample, TopologyLayer
from .compiled import of_any_length
from .eager import check_followed, nothing_unusual, refusal
from .state import ARRAYS, stated_topology
from .values import as_plain, recognised, values_parameter
from .weight import DenseWeight

_ABSENT = object()
# Stands for values that a graph has computed, which are gone when it is heard of.
_COMPUTED = torch.zeros(0, requires_grad=True, device="cpu").view(-1)


class SparseLayer(TopologyLayer):
    """A layer that stores, trains and runs only its connections.

    Attributes:
        values: `nn.Parameter` [nnz], row by row, columns ascending. Its `ndim` is that of the dense weight, so that scripts which spare
            parameters of one dimension from weight decay do not spare it.
        indptr, indices: the topology as buffers, so that `state_dict` and `.to(device)` carry it.
        fingerprint: buffer, a number made of both: it tells a state whose entries were averaged or exchanged one by one.
        resized: how often the number of connections has changed: whoever has laid out their gradients by it must do so anew.
    """

    values: nn.Parameter
    resized: int = 0
    indptr: Tensor
    indices: Tensor
    fingerprint: Tensor

    def _hold(self, topology: Topology, values: Tensor) -> None:
        self.values = values_parameter(values, len(self.geometry.weight_shape))
        self._recognise()
        self._set_topology(topology)

    def _set_topology(self, topology: Topology) -> None:
        if "_topology" in self.__dict__:
            leaves(self._number, self._topology)
        self._installed: Tensor | None = fingerprint(topology.indptr, topology.indices)
        self.register_buffer("indptr", topology.indptr)
        self.register_buffer("indices", topology.indices)
        self.register_buffer("fingerprint", self._installed.clone())
        self._topology, self._seen = topology, identity_of(topology.indptr, topology.indices)
        of_any_length(self.values, topology.indices)

    @property
    def topology(self) -> Topology:
        """Which connections exist. Replaced by `truesparse.rewire` and `load_state_dict`, never changed in place.

        Raises:
            RuntimeError: if something else wrote another topology into the buffers: an average of models, a broadcast.
            ValueError: if the buffers hold no topology, as after `to_empty`.
        """
        # Whatever swaps a buffer (.to(device), deepcopy, assign=True), writes into it or moves its memory (share_memory) is seen
        # here: kernels have plans and addresses of the topology that they were made for.
        held = self.__dict__  # each look-up as an attribute of a module costs a microsecond
        buffers, topology = held["_buffers"], held["_topology"]
        indptr, indices = buffers["indptr"], buffers["indices"]
        seen = identity_of(indptr, indices)
        if seen != held["_seen"] or topology.indptr is not indptr or topology.indices is not indices:
            self._topology = topology = self._still(indptr, indices)
            self._seen = seen
        return topology

    def _still(self, indptr: Tensor, indices: Tensor) -> Topology:
        """The topology that was installed, in buffers that may be others."""
        if indptr.is_meta:
            return Topology._trusted(self.geometry.shape, indptr, indices)
        held = self.fingerprint.clone() if self._installed is None else self._installed
        if not is_fingerprint(held, indptr, indices):
            kind = type(self).__name__
            if self._installed is None:
                raise ValueError(f"{kind} holds no topology since it was on the meta device: call load_state_dict before it is used")
            raise RuntimeError(
                f"something wrote another topology, or none, into the buffers of a {kind} (an average of models, a broadcast), whose "
                "values belong to the connections that it had: load with load_state_dict, average with ts.stability.Average"
            )
        self._installed = held
        return Topology._trusted(self.geometry.shape, indptr, indices)

    @property
    def parameter(self) -> nn.Parameter:
        return self.values

    def plan_nbytes(self) -> int:
        return self.verbs().nbytes

    @property
    def kernel(self) -> str:
        """Which kernel runs this layer: "cpu.matrix[avx512]"."""
        return self.verbs().name

    def forward(self, input: Tensor) -> Tensor:
        """
        Under autocast, input and output are of its dtype, as in dense layers; values and bias stay as they are, their gradients too.

        Raises:
            ValueError: if the shape of `input` does not fit.
            TypeError: if `input` and the values differ in dtype, outside of autocast; if a program is being traced or transformed.
            NotImplementedError: if there is no kernel for this device and dtype.
        """
        if nothing_unusual(input):
            # The same as below in less time: of a small layer, most of a call is Python.
            held = self.__dict__
            parameters, geometry, dtype = held["_parameters"], self.geometry, input.dtype
            values, bias = parameters.get("values"), parameters.get("bias", _ABSENT)  # where a parametrization computes them, they are not
            if values is not None and bias is not _ABSENT and values.dtype is dtype and held["_buffers"]["acting"] is None:
                x = self._prepared(input)
                geometry.check_input(x)
                verbs = ops.verbs_for(self.topology, geometry, dtype)
                heard = partial(_tell, self._gradient_hooks, values, values._version)
                if x.ndim == geometry.sample_ndim + 1:
                    return autograd.product(values, x, bias, verbs, heard)
                return self._shaped(autograd.product(values, self._flat(x), bias, verbs, heard), x)
        values = self._array("values")
        if check_followed(self, input):
            values = as_plain(values)
        x, values = self._prepared(input), self._acting(values)
        self.geometry.check_input(x)
        held = output = values.dtype
        if torch.is_autocast_enabled(x.device.type):
            held, output = self._autocast_dtypes(x.device.type)
            x = x.to(held)
        elif x.dtype != held:
            raise TypeError(
                f"expected an input of {held}, the dtype of the values, got {x.dtype}; convert the input, or the layer with .to(...)"
            )
        y = operators.product(values, self._flat(x), self._array("bias"), self)
        return self._shaped(y if held == output else y.to(output), x)

    def _shaped(self, y: Tensor, x: Tensor) -> Tensor:
        """An output of the kernels with the batch dimensions of `x`."""
        lead = x.ndim - self.geometry.sample_ndim
        return y if lead == 1 else y.reshape(*x.shape[:lead], *y.shape[1:])

    def operands(self) -> tuple[Tensor, Tensor, str, int]:
        """(indptr, indices, geometry, listener), as operators take them."""
        return self._array("indptr"), self._array("indices"), self._spelled, self._listener()

    def _array(self, name: str) -> Any:
        """The parameter or buffer of that name, in less time than `getattr`.

        On the way there torch.compile does not see that it is one: it would take its length for one that never changes.
        """
        held = self.__dict__
        parameters, buffers = held["_parameters"], held["_buffers"]
        found = parameters.get(name, _ABSENT)
        found = buffers.get(name, _ABSENT) if found is _ABSENT else found
        return getattr(self, name) if found is _ABSENT else found  # a parametrization computes it

    def _listener(self) -> int:
        compiling = torch.compiler.is_compiling()
        if torch.compiler.is_exporting() or (not compiling and follower() is not None):
            self._check_arrays()
            return NOBODY  # a program that others run, or gradients that go to no .grad
        return self._number if isinstance(self._array("values"), nn.Parameter) else -self._number

    def _check_arrays(self) -> None:
        """What `topology` refuses, where the buffers are wrapped or have no memory, so that only those can be asked that they stand for."""
        if not torch.compiler.is_dynamo_compiling():
            with _disable_current_modes():
                indptr, indices = self._topology.indptr, self._topology.indices
                if identity_of(indptr, indices) != self._seen:
                    self._topology, self._seen = self._still(indptr, indices), identity_of(indptr, indices)

    def verbs(self, dtype: torch.dtype | None = None) -> ops.Verbs:
        """Those for inputs of `dtype`; None is the dtype of the values."""
        return ops.verbs_for(self.topology, self.geometry, self.values.dtype if dtype is None else dtype)

    def heard(self) -> Callable[[Tensor, Tensor, Tensor], None]:
        """What tells the hooks of the gradients of the forward pass under way."""
        values = self._array("values")
        return partial(_tell, self._gradient_hooks, values, version_of(values))

    def hear(self, dvalues: Tensor, dy: Tensor, x: Tensor, own: bool) -> None:
        of = self.values if own else _COMPUTED
        _tell(self._gradient_hooks, of, version_of(of), dvalues, dy, x)

    def repeated(self) -> ops.Repeated:
        """The layer as a function to be called at every step of one sequence: its values get their gradient from all steps at once.

        Input [batch, columns] of the dtype of the values, output [batch, rows]. For torch's eager mode, outside of autocast.
        """
        return ops.Repeated(self._acting(self.values), self.bias, self.verbs(), self.heard())

    def _autocast_dtypes(self, device: str) -> tuple[torch.dtype, torch.dtype]:
        """(in which dtype the kernels get x, that of the output)."""
        if self.values.dtype == torch.float64:
            return torch.float64, torch.float64  # autocast leaves float64 alone
        output = torch.get_autocast_dtype(device)
        self.met_float16 |= output == torch.float16
        # The kernels of the CPU do not hold samples in float16: those are widened before and rounded after.
        return output if output != torch.float16 or ops.holds(output, device) else torch.float32, output

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
        return ops.summed_rows(self.verbs().gradient_rows, self._widened(samples), start, stop)

    def top_gradients(self, samples: list[Sample], kept: Topology, count: int) -> Tensor:
        """Positions outside `kept` of the `count` largest absolute entries of the summed dense gradient, ascending int64."""
        return self.verbs().top_gradients(self._widened(samples), kept, count)

    def gradients_at(self, samples: list[Sample], positions: Topology) -> Tensor:
        """The summed dense gradient at `positions`, [positions.nnz], whether there are connections or not."""
        verbs = ops.verbs_for(positions, self.geometry, ops.values_dtype(self.values.dtype))
        first, *others = self._widened(samples)
        total = verbs.sddmm(*first)
        for dy, x in others:
            total += verbs.sddmm(dy, x)
        return total

    def _replace_values(self, values: Tensor) -> None:
        """Give the parameter other data, possibly of another length, while optimizers keep holding the same parameter."""
        if values.shape != self.values.shape:
            # A graph that is still alive keeps the node that accumulates this parameter's gradient, and that node
            # remembers the old length. Passing through another dtype makes torch forget the node.
            self.resized += 1
            self.values.grad = None
            other = torch.float64 if self.values.dtype != torch.float64 else torch.float32
            self.values.data = torch.empty(0, dtype=other, device=values.device)
        self.values.data = values
        torch.autograd.graph.increment_version(self.values)  # what a graph has saved of them is not theirs any longer

    @property
    def weight(self) -> Tensor:
        """The dense weight, to be read: its dtype, device and shape are there at once, its values are made when asked for (`to_dense`).

        Raises:
            RuntimeError: if it is written to.
            AttributeError: if another one is assigned, as tying weights does.
        """
        if torch.compiler.is_compiling():
            outside: Any = torch.compiler.disable(self._weight)
            return outside()
        return self._weight()

    def _weight(self) -> Tensor:
        shape = self.geometry.weight_shape

        def gradient() -> Tensor | None:
            held = self.values.grad
            return None if held is None else self.topology.scatter(held).view(shape)

        return DenseWeight(self.values, shape, self.to_dense, gradient)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight" and isinstance(value, DenseWeight) and value.is_that_of(self.values):
            return  # tied already
        self._refuse_weight(name)
        super().__setattr__(name, value)
        if name == "values":
            self._recognise_values()

    def __delattr__(self, name: str) -> None:
        self._refuse_weight(name)
        super().__delattr__(name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        self._refuse_weight(name)
        super().register_parameter(name, param)

    def _refuse_weight(self, name: str) -> None:
        if name == "weight":
            raise AttributeError(
                f"{type(self).__name__} holds no dense weight that could be replaced or tied to another: write to .values, load with "
                "load_state_dict, or leave a layer whose weight is shared dense with sparsify(..., exclude=...)"
            )

    def _recognise(self) -> None:
        self._number, self._spelled = numbered(self), repr(self.geometry)

    def _recognise_values(self) -> None:
        values = self._parameters.get("values")
        recognised(values, len(self.geometry.weight_shape))
        of_any_length(values, self._buffers.get("indices"), self._buffers.get("acting"))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._recognise()
        indptr, indices = self._array("indptr"), self._array("indices")
        self._topology, self._seen = Topology._trusted(self.geometry.shape, indptr, indices), None  # to be looked at before its use
        self._recognise_values()

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._recognise_values()
        if self.indices.is_meta:
            self._installed = None
        return self

    def __prepare_scriptable__(self) -> nn.Module:
        raise refusal(type(self).__name__, "torch.jit.script")

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if self._installed is not None:
            _ = self.topology  # values beside another topology are nobody's checkpoint
        super()._save_to_state_dict(destination, prefix, keep_vars)

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
        given = [name for name in ARRAYS if prefix + name in state_dict]
        who = prefix.removesuffix(".") or type(self).__name__
        if 0 < len(given) < len(ARRAYS):
            # Copied one by one, they would change a topology in place, or give values to the connections of another.
            error_msgs.append(f"{who}: expected indptr, indices and values together, got only {', '.join(given)}")
            return
        assign = bool(local_metadata.get("assign_to_params_buffers", False))
        if given and (assign or not self.values.is_meta):  # torch itself says that nothing is copied into a layer on meta
            try:
                topology = stated_topology(self, state_dict, prefix, None if assign else self.values.device)
            except (TypeError, ValueError) as error:
                error_msgs.append(f"{who}: {error}")
                return
            if not self._holds(topology):
                self.changed_alone += 1
                self._replace_values(self.values.new_empty(topology.nnz))
                self._set_topology(topology)
            self._expect_acting(state_dict, prefix)
        state_dict = {**state_dict, prefix + "fingerprint": self.fingerprint}  # states from before there was one lack it
        own = self.indptr, self.indices
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        if own[0] is self.indptr and own[1] is self.indices:
            self._seen = identity_of(*own)  # written with what they held

    def _holds(self, topology: Topology) -> bool:
        """Whether the buffers are those of this topology, and were installed so."""
        return (
            topology.device == self.indices.device
            and self._installed is not None
            and int(self._installed) == int(fingerprint(topology.indptr, topology.indices))
            and torch.equal(self.indptr, topology.indptr)
            and torch.equal(self.indices, topology.indices)
        )


def _tell(hooks: Mapping[int, Callable[[Part], None]], of: Tensor, version: int, dvalues: Tensor, dy: Tensor, x: Tensor) -> None:
    """Tell those who listen at the time of a backward pass. Knows the hooks, not the layer, which a graph shall not keep alive.

    Args:
        version: of `of` in the forward pass. Where the kernels had what was computed of it, autograd does not see that it has changed.

    Raises:
        RuntimeError: if it has changed since.
    """
    if version_of(of) != version:
        raise RuntimeError(ops.CHANGED)
    if hooks:  # in few steps somebody listens
        part = Part(of, dvalues.detach(), (dy.detach(), x.detach()))
        for hook in list(hooks.values()):
            hook(part)


def tell_of_rows(hooks: Mapping[int, Callable[[Part], None]], of: Tensor, dvalues: Tensor, rows: Tensor, dy: Tensor) -> None:
    """The same of rows that were looked up."""
    for hook in list(hooks.values()):
        hook(Part(of, dvalues, rows=(rows, dy)))
