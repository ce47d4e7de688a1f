"""How does DistributedDataParallel live with layers whose connections change? It leaves topologies alone, and follows their counts.

What it needs to be told is told when it is made: a hook of torch says when a module is put into another one.

* It broadcasts buffers before each forward pass, and topologies are buffers. They are the same in all processes, which is checked here
  and after each rewiring, so they stay where they are.
* Its reducer knows the length of each parameter. Where a layer has another count of connections, the next forward pass begins with
  another reducer.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel

from ..nn import SparseLayer, TopologyLayer
from ..nn.convert import topology_layers
from ..topology import Topology
from .processes import Processes, code_of

c10d: Any = distributed  # not all of its names are declared
TOPOLOGY = ("indptr", "indices", "fingerprint", "acting", "mask")  # buffers that say which connections there are

_wrappers: list[weakref.ref[DistributedDataParallel]] = []  # those alive, in the order in which they were made
_counts: weakref.WeakKeyDictionary[DistributedDataParallel, Any] = weakref.WeakKeyDictionary()  # of what their reducers were made for


def wrapping(layers: Iterable[TopologyLayer]) -> DistributedDataParallel | None:
    """The `DistributedDataParallel` that holds one of the layers; of several the newest; None where none does."""
    wanted = set(layers)
    alive = (wrapper for reference in reversed(_wrappers) if (wrapper := reference()) is not None)
    return next((wrapper for wrapper in alive if any(module in wanted for module in wrapper.modules())), None)


def together(layers: Iterable[TopologyLayer], group: Any = None) -> Processes:
    """The processes that train these layers: those of `group`, else of the DistributedDataParallel around them, else all there are."""
    wrapper = wrapping(layers) if group is None else None
    return Processes.of(group if wrapper is None else wrapper.process_group)


def code_of_topology(topology: Topology) -> int:
    """A number that tells topologies apart."""
    return topology.derived(_code_of_topology)


def _code_of_topology(topology: Topology) -> int:
    return code_of(str(topology.shape), topology.indptr, topology.indices)


def check_same(processes: Processes, codes: Mapping[str, int], device: torch.device, error: str) -> None:
    """
    Args:
        processes: that train together.
        codes: of each layer, by name.
        device: to exchange from.
        error: what is said, with `layer` and `rank` to fill in.

    Raises:
        RuntimeError: if those of one process are not those of the first.
    """
    found = processes.difference([*codes.values()], device)
    if found is not None:
        raise RuntimeError(error.format(layer=[*codes][found[0]], rank=found[1]))


def check_same_topologies(processes: Processes, topologies: Mapping[str, Topology]) -> None:
    """
    Raises:
        RuntimeError: if those of one process are not those of the first; names the layer and the rank.
    """
    if processes.size == 1 or not topologies:
        return
    device = next(iter(topologies.values())).device
    check_same(processes, {name: code_of_topology(topology) for name, topology in topologies.items()}, device, OTHER_TOPOLOGY)


OTHER_TOPOLOGY = (
    "layer {layer!r} has other connections in process {rank} than in process 0: call the same torch.manual_seed(...) in all processes "
    "before the model is made and sparsified, or load one state_dict into all"
)


def _put_into(module: nn.Module, name: str, child: nn.Module | None) -> None:
    """Hears of every module that becomes a part of another one."""
    if child is None:
        return
    if isinstance(module, DistributedDataParallel):
        if name == "module":
            _wrapped(module, child)
    elif _wrappers and any(isinstance(part, TopologyLayer) for part in child.modules()):
        _check_not_wrapped(module, name)


def _wrapped(wrapper: DistributedDataParallel, model: nn.Module) -> None:
    _wrappers[:] = [reference for reference in _wrappers if reference() is not None]
    _wrappers.append(weakref.ref(wrapper))
    layers = topology_layers(model)
    if not layers:
        return
    processes = Processes.of(wrapper.process_group)
    check_same_topologies(processes, {name: layer.topology for name, layer in layers.items()})
    # By all names: torch knows a layer that is in two places by the first of them.
    everywhere = [f"{name}." if name else "" for name, one in model.named_modules(remove_duplicate=False) if isinstance(one, TopologyLayer)]
    wrapper.parameters_to_ignore.update(f"{name}{buffer}" for name in everywhere for buffer in TOPOLOGY)
    _counts[wrapper] = _lengths(model)
    wrapper.register_forward_pre_hook(_follow_counts, prepend=True)


def _check_not_wrapped(module: nn.Module, name: str) -> None:
    """
    Raises:
        RuntimeError: if the module is a part of a DistributedDataParallel, which would not know its new layer.
    """
    for reference in _wrappers:
        wrapper = reference()
        if wrapper is not None and any(part is module for part in wrapper.modules()):
            raise RuntimeError(
                f"{name!r} becomes sparse inside a DistributedDataParallel, which would not exchange its gradients: sparsify the model "
                "before DistributedDataParallel(model)"
            )


def _lengths(model: nn.Module) -> list[tuple[int, int]]:
    """What a reducer is made for: the parameters of the sparse layers, and how often each has had another length."""
    return [(id(layer.values), layer.resized) for layer in model.modules() if isinstance(layer, SparseLayer)]


def _follow_counts(wrapper: nn.Module, args: tuple[Any, ...]) -> None:
    """Before each forward pass."""
    assert isinstance(wrapper, DistributedDataParallel)
    lengths = _lengths(wrapper.module)
    known = _counts.setdefault(wrapper, lengths)  # a copy, or one unpickled, has made a reducer just now
    if lengths != known:
        _renew_reducer(wrapper)
        _counts[wrapper] = lengths


def _renew_reducer(wrapper: DistributedDataParallel) -> None:
    """What unpickling does, and what was set on the old reducer. No process hears of it: the others do the same."""
    hook_name = wrapper._get_ddp_logging_data().get("comm_hook", "")
    parameters, expect_sparse = wrapper._build_params_for_reducer()
    names = wrapper._build_debug_param_to_name_mapping(parameters)
    wrapper.logger = None
    del wrapper.reducer  # takes its hooks with it, and its buckets, before there are others
    wrapper._ddp_init_helper(parameters, expect_sparse, names, wrapper.static_graph)
    assert wrapper.logger is not None
    hooks, wrapper._comm_hooks = wrapper._comm_hooks, []
    for hook, state in hooks:
        wrapper.register_comm_hook(state, hook)
    built_in = c10d.BuiltinCommHookType.__members__.get(hook_name.rsplit(".", 1)[-1])
    if built_in is not None:
        wrapper._register_builtin_comm_hook(built_in)
    if wrapper.static_graph:
        wrapper._static_graph_delay_allreduce_enqueued = False
        wrapper.reducer._set_static_graph()
        wrapper.logger._set_static_graph()


register_module_module_registration_hook(_put_into)
