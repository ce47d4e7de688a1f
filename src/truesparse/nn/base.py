"""What do sparse layers and their masked twins have in common? A topology, and one value for each connection."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from math import prod
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .. import ops
from ..common import shown
from ..common.optional import MissingLibrary
from ..topology import Move, Topology, picture
from ..topology.geometry import Geometry
from ..topology.patterns import Pattern, Unstructured
from .initial import initial_bias, initial_values, random_topology

Sample = tuple[Tensor, Tensor]  # (gradient of the output, input) of one backward pass, as the kernels had them
Magnitudes = tuple[Tensor, Tensor]  # ([rows], [columns]): no entry of the gradient is larger than their product


class Part(NamedTuple):
    """A part of a layer's dense gradient, as a backward pass has computed it.

    Args:
        of: the tensor that the layer had for its parameter: this itself, or what stood in for it (`torch.func.functional_call`).
        present: [nnz], the part at the connections.
        pair: (dy, x), whose dy^T x it is everywhere; or None,
        rows: and it is (rows, dy), dy [n, columns] added to those rows and nothing elsewhere; or None,
        whole: and it is this, [rows, columns].
        magnitudes: of `whole`; None where nothing tells them without looking at it.
    """

    of: Tensor
    present: Tensor
    pair: Sample | None = None
    rows: Sample | None = None
    whole: Tensor | None = None
    magnitudes: Magnitudes | None = None


class TopologyLayer(nn.Module):
    """A layer whose connections are a `Topology`. Its two kinds differ in how they hold the values.

    `SparseLayer` holds one number a connection; `MaskedLayer` holds a dense weight and a mask. What trains them
    (`rewire`, `Rewirer`, the algorithms) sees only what is declared here.

    Attributes:
        stands_for: the class of torch whose place it takes (`kinds.py` lists them all).
        geometry: the dense operation this layer stands for.
        pattern: the rule its topology obeys.
        bias: [rows], or in a transposed convolution [out_channels]; or None.
        acting: buffer shaped as `parameter`, bool: which connections act in the forward pass. None, as nearly always: all of them.
        changed_alone: how often the topology has changed and no optimizer was told: by `load_state_dict`, or `rewire` without one.
        met_float16: whether a forward pass has run under autocast in float16, which asks for a gradient scaler.
    """

    stands_for: ClassVar[type[nn.Module]]
    bias: nn.Parameter | None
    acting: Tensor | None
    _topology: Topology

    def __init__(self, geometry: Geometry, topology: Topology, values: Tensor, bias: Tensor | None, pattern: Pattern) -> None:
        super().__init__()
        self.geometry = geometry
        self.pattern = pattern
        self.changed_alone = 0
        self.met_float16 = False
        self._gradient_hooks: OrderedDict[int, Callable[[Part], None]] = OrderedDict()
        self._hold(topology, values)
        self.register_buffer("acting", None)
        self.bias = None if bias is None else nn.Parameter(bias)

    def _draw(
        self,
        geometry: Geometry,
        bias: bool,
        sparsity: float,
        pattern: Pattern | None,
        generator: torch.Generator | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Start as a random layer. Drawn on the CPU, so that one seed gives one layer on every device."""
        pattern = (pattern or Unstructured()).fitted(geometry)
        device = torch.device(device) if device is not None else torch.get_default_device()
        if device.type == "meta":
            raise ValueError("a sparse layer needs real arrays for its topology: build it on a real device, not on 'meta'")
        topology = random_topology(geometry, sparsity, pattern, generator)
        values = initial_values(topology, geometry, generator, dtype)
        offsets = initial_bias(topology, geometry, generator, dtype) if bias else None
        offsets = None if offsets is None else offsets.to(device)
        TopologyLayer.__init__(self, geometry, topology.to(device), values.to(device), offsets, pattern)

    @staticmethod
    @abstractmethod
    def geometry_of(module: Any) -> Geometry:
        """The geometry of a dense layer."""

    @abstractmethod
    def dense_module(self) -> nn.Module:
        """The dense layer of torch that computes exactly the same."""

    @classmethod
    def from_dense(
        cls, module: Any, topology: Topology | None = None, *, pattern: Pattern | None = None, values: Tensor | None = None
    ) -> Self:
        """A layer with the weight, bias, device and mode of `module`; nothing is shared with it.

        Args:
            module: the dense layer.
            topology: which weights to keep, over [rows, columns]: the first dimension of its weight, and the others flattened; None
                keeps those that are not zero.
            pattern: the rule the topology obeys; None is `Unstructured()`.
            values: [nnz] to use instead of the weights of `module`.

        Raises:
            ValueError: if the topology has another shape or does not obey the pattern.
        """
        geometry = cls.geometry_of(module)
        weight: Tensor = module.weight.detach()
        if topology is None:
            topology = Topology.from_mask(weight.flatten(1) != 0)
        elif topology.shape != geometry.shape:
            raise ValueError(f"expected a topology of shape {geometry.shape} for {module}, got {topology.shape}")
        pattern = (pattern or Unstructured()).fitted(geometry)
        pattern.check(topology)
        topology = topology.to(weight.device)
        values = weight.flatten()[topology.keys] if values is None else values.to(weight, copy=True)
        bias: Tensor | None = module.bias
        layer = cls.__new__(cls)
        TopologyLayer.__init__(layer, geometry, topology, values, None if bias is None else bias.detach().clone(), pattern)
        for new, old in ((layer.parameter, module.weight), (layer.bias, bias)):
            if new is not None:
                new.requires_grad_(old.requires_grad)  # type: ignore[union-attr]
        return layer.train(module.training)

    def with_connections(self, geometry: Geometry, topology: Topology, values: Tensor, bias: Tensor | None) -> Self:
        """A new layer of the same kind, mode and padding with other connections; nothing is shared with this one.

        Args:
            geometry: may differ from this layer's in its numbers of rows, columns, channels and groups.
            topology: of the shape of `geometry`.
            values: [nnz].
            bias: one for each feature or channel of the output, or None.

        The new layer has this one's pattern if the topology still obeys it, and `Unstructured()` otherwise.

        Raises:
            ValueError: if the topology has another shape than the geometry, or there is not one value a connection.
        """
        if topology.shape != geometry.shape or values.shape != (topology.nnz,):
            raise ValueError(
                f"expected a topology of shape {geometry.shape} and one value for each of its connections, "
                f"got {topology} and values of shape {tuple(values.shape)}"
            )
        layer = type(self).__new__(type(self))
        bias = None if bias is None else bias.clone()
        TopologyLayer.__init__(layer, geometry, topology, values.clone(), bias, _still_obeyed(self.pattern.fitted(geometry), topology))
        return layer.train(self.training)

    def _fill(self, dense: nn.Module) -> None:
        """Give a dense module, freshly made, this layer's weight, bias and mode."""
        for name, new, old in (("weight", self.to_dense(), self.parameter), ("bias", self.bias, self.bias)):
            if new is not None and old is not None:
                setattr(dense, name, nn.Parameter(new.detach().clone(), requires_grad=old.requires_grad))
        dense.train(self.training)

    @abstractmethod
    def _hold(self, topology: Topology, values: Tensor) -> None:
        """Register the parameter and buffers for a topology and its values [nnz]."""

    @property
    @abstractmethod
    def topology(self) -> Topology:
        """Which connections exist."""

    @property
    @abstractmethod
    def parameter(self) -> nn.Parameter:
        """The tensor that the optimizer holds for the connections."""

    @abstractmethod
    def of_connections(self, array: Tensor) -> Tensor:
        """The [nnz] entries, in the order of the topology, of an array shaped as `parameter`."""

    @property
    def acting_values(self) -> Tensor:
        """[nnz] values as the forward pass takes them: zero where a connection does not act. Differentiable."""
        return self.of_connections(self._acting(self.parameter))

    @abstractmethod
    def spread(self, array: Tensor) -> Tensor:
        """`array` [nnz] in the shape of `parameter`, zero elsewhere."""

    @abstractmethod
    def moved(self, move: Move, array: Tensor, fill: float = 0.0) -> Tensor:
        """`array`, shaped as `parameter`, after `move`; grown connections get `fill`."""

    @abstractmethod
    def install(self, move: Move) -> None:
        """Take the new topology of `move`, values following their connections. Only `truesparse.rewire` calls this."""

    def _install_acting(self, move: Move) -> None:
        self.acting = None if move.acting is None or bool(move.acting.all()) else self.spread(move.acting)

    def _expect_acting(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Make room for what a state to be loaded says of this; it may say nothing."""
        held = state_dict.get(prefix + "acting")
        self.acting = None if held is None else torch.ones_like(self.parameter, dtype=torch.bool)

    def _acting(self, values: Tensor) -> Tensor:
        """`values`, shaped as `parameter`, with what does not act at zero; gradients flow through as if it did."""
        acting = self._array("acting")
        return values if acting is None else values - values.detach().masked_fill(acting, 0)

    def _array(self, name: str) -> Any:
        """The parameter or buffer of that name."""
        return getattr(self, name)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw values and bias anew, as the constructor does; the topology stays.

        Args:
            generator: CPU generator; None is torch's global one.
        """
        topology, geometry, dtype = self.topology.to("cpu"), self.geometry, self.parameter.dtype
        with torch.no_grad():
            values = initial_values(topology, geometry, generator, dtype)
            self.parameter.copy_(self.spread(values.to(self.parameter.device)))
            if self.bias is not None:
                self.bias.copy_(initial_bias(topology, geometry, generator, dtype))

    def initialise(self, fill: Callable[[Tensor], Any]) -> None:
        """Give the values what `fill` writes at their places of the dense weight; topology and bias stay.

            layer.initialise(nn.init.xavier_uniform_)
            layer.initialise(lambda weight: nn.init.normal_(weight, std=0.02))

        The variance that `fill` gives suits the dense fan-in; a row that keeps k of n inputs has k / n of its output variance.

        Args:
            fill: writes into the dense weight that it is given, all of it, as the functions of torch.nn.init do.

        Raises:
            ValueError: if it leaves entries unwritten or writes NaN. The layer is as it was then.
        """
        parameter = self.parameter
        dense = torch.full(self.geometry.weight_shape, torch.nan, dtype=parameter.dtype, device=parameter.device)
        with torch.no_grad():
            fill(dense)
            values = dense.flatten()[self.topology.keys]
            if bool(values.isnan().any()):
                raise ValueError("fill must write every entry of the weight it is given, in place, as torch.nn.init.normal_ does")
            parameter.copy_(self.spread(values))

    @property
    def connections(self) -> int:
        """How many connections act."""
        return self.topology.nnz if self.acting is None else int(self.acting.count_nonzero())

    @abstractmethod
    def to_dense(self) -> Tensor:
        """The dense weight that the layer computes with, shaped as in the dense layer. Differentiable."""

    def register_gradient_hook(self, hook: Callable[[Part], None]) -> RemovableHandle:
        """Have `hook` called, in every backward pass, with each part of the dense gradient that the pass computes.

        Whether the gradient then reaches `.grad` is autograd's to say: `torch.autograd.grad` hands it to its caller. Copies and pickles
        of the layer call nobody.

        Returns:
            A handle whose `remove()` undoes this.
        """
        handle = RemovableHandle(self._gradient_hooks)
        self._gradient_hooks[handle.id] = hook
        return handle

    def gradient_bounds(self, samples: list[Sample]) -> Magnitudes:
        """(sum of |dy| of each row, sum of |x| of each column): the gradient at (row, column) is at most their product.

        In a transposed convolution the rows are those of x, and the columns those of dy.

        In a convolution a column takes the sum of its whole input channel, over all groups.
        """
        sides = zip(*(self.geometry.sides(dy, x) for dy, x in self._widened(samples)), strict=True)
        rows, channels = (torch.stack([_sum_of_channels(array.abs()) for array in arrays]).sum(0) for arrays in sides)
        inputs = self.geometry.weight_shape[1]
        return rows, channels.view(-1, inputs).sum(0).repeat_interleave(self.geometry.shape[1] // max(inputs, 1))

    def _widened(self, samples: list[Sample]) -> list[Sample]:
        # Autocast runs the layers around this one in another dtype; sums of many products want more bits than a 16-bit one has.
        dtype = ops.values_dtype(self.parameter.dtype)
        return [(dy.to(dtype), x.to(dtype)) for dy, x in samples]

    def _hears(self) -> Callable[[Part], None]:
        """What tells the hooks there are at the time of a backward pass, and does not keep the layer alive until then."""
        hooks = self._gradient_hooks

        def tell(part: Part) -> None:
            for hook in list(hooks.values()):
                hook(part)

        return tell

    def _heard(self, dense: Tensor, bounds: list[Magnitudes] | None = None) -> Tensor:
        """`dense`, the weight made of the parameter: whatever its gradient will be, the hooks hear of it."""
        if dense.requires_grad and not torch.compiler.is_compiling():
            tell, of, topology = self._hears(), self.parameter, self._topology

            def hook(gradient: Tensor) -> None:
                if self._topology is not topology:
                    raise RuntimeError(ops.CHANGED)
                whole = gradient.detach().flatten(1)
                tell(Part(of, whole.flatten()[topology.keys], whole=whole, magnitudes=bounds.pop() if bounds else None))

            dense.register_hook(hook)
        return dense

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_gradient_hooks": OrderedDict()}

    @property
    @abstractmethod
    def kernel(self) -> str:
        """Which kernel runs this layer."""

    @property
    def kernel_or_none(self) -> str | None:
        """The same, or None where no kernel runs it on its device with its dtype."""
        try:
            return self.kernel
        except (NotImplementedError, MissingLibrary):
            return None

    @abstractmethod
    def plan_nbytes(self) -> int:
        """Bytes of what the kernels have derived from the topology so far: its transpose, block pointers, offsets."""

    def _flat(self, x: Tensor) -> Tensor:
        """An input or output as the kernels take it: with exactly one batch dimension."""
        features = self.geometry.sample_ndim
        return x if x.ndim == features + 1 else x.reshape(prod(x.shape[:-features]), *x.shape[-features:])

    def _prepared(self, x: Tensor) -> Tensor:
        """The input with whatever happens before the kernel (padding by reflection and the like)."""
        return x

    def extra_repr(self) -> str:
        topology = self.topology
        counts = f"connections={topology.nnz}, sparsity={topology.sparsity:.4f}"
        if self.acting is not None:
            counts += f", acting={self.connections}"
        return f"{self.geometry.arguments}, bias={self.bias is not None}, {counts}, pattern={self.pattern}"

    def _repr_html_(self) -> str:
        """For a notebook: what the layer holds, and a small picture of its connections."""
        topology, own = self.topology, [*self.parameters(recurse=False), *self.buffers(recurse=False)]
        acting = [] if self.acting is None else [("acting", f"{self.connections:,}")]
        pairs = [
            ("connections", f"{topology.nnz:,} of {topology.size:,}"),
            *acting,
            ("sparsity", f"{topology.sparsity:.2%}"),
            ("pattern", str(self.pattern)),
            ("kernel", self.kernel_or_none or "none for its device and dtype"),
            ("parameters and buffers", shown.nbytes_said(sum(tensor.nbytes for tensor in own))),
        ]
        keys = topology.indices if topology.indices.is_meta else topology.keys
        return shown.facts(f"{type(self).__name__}({self.geometry.arguments})", pairs, picture.html(topology.shape, keys))


def _sum_of_channels(array: Tensor) -> Tensor:
    return array.transpose(0, 1).flatten(1).sum(1)


def _still_obeyed(pattern: Pattern, topology: Topology) -> Pattern:
    try:
        pattern.check(topology)
    except ValueError:
        return Unstructured()
    return pattern
