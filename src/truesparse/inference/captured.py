"""How is a call on a GPU launched as one thing? As a CUDA graph: captured once, replayed on memory of its own.

No GPU has run this yet: tests replay what a stand-in for `torch.cuda.CUDAGraph` has recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..common.hooks import Watched

DEVICES = ("cuda",)  # that have graphs
WARM_UPS = 3  # calls before: kernels are compiled and loaded, libraries take their memory
TOLERANCE = 1e-2  # of the largest output: libraries may choose other kernels in a graph
PLAIN = (bool, int, float, str, type(None))


def recorded(call: Callable[[], Any], device: torch.device) -> tuple[Any, Any]:
    """(the graph, what the call gave: each replay writes there again). Other threads must leave the device alone meanwhile."""
    with torch.no_grad(), torch.cuda.device(device):
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                call()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=beside):  # that of the device: torch's own one is of whatever device came first
            result = call()
        return graph, result


class CapturedCall:
    """A function's call as a CUDA graph, for inputs of the shapes and dtypes of these.

    Inputs are copied into memory of its own and outputs out of it, so that no call sees those of another. Calls take turns, on whatever
    streams and from whatever threads they come.

    Args:
        call: of tensors on one GPU; gives tensors, in lists, dicts or what else torch knows to look into.
        inputs: an example.

    Raises:
        RuntimeError: if it writes into its inputs, gives something that may hold tensors out of sight, or a replay gives something else.
    """

    def __init__(self, call: Callable[..., Any], inputs: Sequence[Tensor]) -> None:
        self.device = inputs[0].device
        with torch.inference_mode(False), torch.no_grad():
            self._capture(call, [one.detach() for one in inputs])

    def _capture(self, call: Callable[..., Any], inputs: Sequence[Tensor]) -> None:
        # Of other numbers than the example, which is what the replay is compared at. Whole ones may be places, whose order means something.
        self._inputs = tuple(one.flip(tuple(range(one.ndim))) if one.is_floating_point() else one.clone() for one in inputs)
        versions = [one._version for one in self._inputs]
        self._graph, self._outputs = recorded(lambda: call(*self._inputs), self.device)
        if [one._version for one in self._inputs] != versions:
            raise RuntimeError("the network writes into its inputs, which a CUDA graph could not show its caller; pass it copies instead")
        strange = {type(one).__name__ for one in tree_leaves(self._outputs) if not isinstance(one, (Tensor, *PLAIN))}
        if strange:
            raise RuntimeError(f"the network gives {', '.join(strange)}, which may hold memory of the graph: let it give tensors")
        self._lock, self._done = Lock(), torch.cuda.Event()
        self._refuse_wrong(call, inputs)

    def __call__(self, inputs: Sequence[Tensor]) -> Any:
        """What the function gives, in tensors of the caller's own."""
        with self._lock, torch.no_grad(), torch.cuda.device(self.device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._done)  # the last call may be under way on another one
            for own, given in zip(self._inputs, inputs, strict=True):
                own.copy_(given)
            self._graph.replay()
            outputs = tree_map(lambda one: one.clone() if isinstance(one, Tensor) else one, self._outputs)
            self._done.record(stream)
            return outputs

    def _refuse_wrong(self, call: Callable[..., Any], inputs: Sequence[Tensor]) -> None:
        pairs = zip(tree_leaves(call(*inputs)), tree_leaves(self(inputs)), strict=True)
        if not all(_alike(one, other) for one, other in pairs if isinstance(one, Tensor)):
            raise RuntimeError(
                "a replay of the CUDA graph gives something else than the network: something in it that pack did not look into decides by "
                "values, or keeps what it computed; call the network without capture"
            )


class CapturedCalls:
    """The calls of a network that are graphs, by the shapes and dtypes of their inputs.

    Args:
        call: of the network, with tensors in a row.
        network: hooks on whose modules are to be called.
    """

    def __init__(self, call: Callable[..., Any], network: nn.Module, device: torch.device) -> None:
        self.call, self.device, self._watched = call, device, Watched(network)
        self._calls: dict[tuple[Any, ...], CapturedCall] = {}

    def add(self, inputs: Sequence[Tensor]) -> None:
        """
        Raises:
            RuntimeError: if a call with these would not be one of a graph, or cannot become one.
        """
        if not self._can_replay(inputs):
            raise RuntimeError(
                f"a CUDA graph needs dense inputs on {self.device} without gradients, no hooks on modules, no autocast and no other "
                "capture under way: capture without these, or call the network as it is"
            )
        self._calls = {**self._calls, _kind(inputs): CapturedCall(self.call, inputs)}

    def find(self, inputs: Sequence[Any]) -> CapturedCall | None:
        """The one that gives what the network gives for these inputs."""
        return self._calls.get(_kind(inputs)) if self._can_replay(inputs) else None

    def _can_replay(self, inputs: Sequence[Any]) -> bool:
        follows = torch.is_grad_enabled()
        return (
            all(type(one) is Tensor and one.device == self.device and one.layout is torch.strided for one in inputs)
            and not (follows and any(one.requires_grad for one in inputs))
            and not self._watched
            and not torch.is_autocast_enabled(self.device.type)
            and not torch.cuda.is_current_stream_capturing()
        )


def _kind(inputs: Sequence[Tensor]) -> tuple[Any, ...]:
    return tuple((one.shape, one.dtype) for one in inputs)


def _alike(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    finite = one.isfinite() & other.isfinite()
    largest = float(one[finite].abs().max()) if bool(finite.any()) else 0.0
    return torch.allclose(one, other, rtol=0, atol=TOLERANCE * largest, equal_nan=True)
