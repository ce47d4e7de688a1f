"""How do the ascending arrays of one topology become those of another? By merging, in linear time.

On the CPU the kernels do it; on any other device the same is said in torch, which sorts and searches instead, and never asks the device
how many there are of something: the host would wait for all that the device has been given to do.

Arrays are as in `Topology`: indptr [rows + 1] and indices [nnz] int32, `keys` ascending int64 positions `row * columns + column`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _core

WORK_OF_A_THREAD = 100_000  # connections, some 200 microseconds: less is not worth another thread

Connections = tuple[Tensor, Tensor]  # indptr, indices

_MOVE = {torch.int32: _core.move_int32, torch.int64: _core.move_int64}
_LOWEST = {torch.float32: _core.lowest_float32, torch.float64: _core.lowest_float64}


def row_of_each(connections: Connections) -> Tensor:
    """Row of each connection, [nnz] int32."""
    indptr, indices = connections
    if not here(indptr):
        rows = torch.arange(indptr.numel() - 1, dtype=torch.int32, device=indptr.device)
        return rows.repeat_interleave(indptr.diff(), output_size=indices.numel())
    rows = torch.empty_like(indices)
    _core.row_of_each(indptr.numel() - 1, indptr.data_ptr(), rows.data_ptr())
    return rows


def key_of_each(columns: int, connections: Connections) -> Tensor:
    """Key of each connection, [nnz] int64."""
    indptr, indices = connections
    if not here(indptr):
        return row_of_each(connections).to(torch.int64).mul_(columns).add_(indices)
    keys = torch.empty(indices.numel(), dtype=torch.int64, device="cpu")
    _core.key_of_each(indptr.numel() - 1, columns, indptr.data_ptr(), indices.data_ptr(), keys.data_ptr())
    return keys


def compressed(shape: tuple[int, int], keys: Tensor) -> Connections:
    """The connections at `keys`, which lie inside the matrix."""
    rows, columns = shape
    if not here(keys):
        starts = torch.arange(rows + 1, device=keys.device).mul_(columns)
        return torch.searchsorted(keys.contiguous(), starts, out_int32=True), (keys % max(columns, 1)).to(torch.int32)
    keys = keys.contiguous()
    indptr, indices = torch.empty(rows + 1, dtype=torch.int32, device="cpu"), torch.empty(keys.numel(), dtype=torch.int32, device="cpu")
    _core.compress(rows, columns, keys.data_ptr(), keys.numel(), indptr.data_ptr(), indices.data_ptr())
    return indptr, indices


def collected(shape: tuple[int, int], rows: Tensor, columns: Tensor) -> Connections:
    """The connections at (rows[i], columns[i]), [n] each, inside the matrix; what is there several times counts once."""
    if not here(rows, columns):
        return compressed(shape, (rows.to(torch.int64) * shape[1] + columns).unique())
    rows, columns = rows.to(torch.int32).contiguous(), columns.to(torch.int32).contiguous()
    indptr, indices = torch.empty(shape[0] + 1, dtype=torch.int32, device="cpu"), torch.empty_like(columns)
    count = _core.collect(shape[0], rows.data_ptr(), columns.data_ptr(), columns.numel(), indptr.data_ptr(), indices.data_ptr())
    return indptr, indices[:count].clone() if count < indices.numel() else indices


def kept(columns: int, connections: Connections, chosen: Tensor, count: int | None = None) -> Connections:
    """The connections where `chosen` [nnz] bool is true; `count` is how many, where that is known."""
    indptr, indices = connections
    rows = indptr.numel() - 1
    if not here(indptr, chosen):
        return compressed((rows, columns), key_of_each(columns, connections)[places(chosen, count)])
    chosen = chosen.contiguous()
    kept_indptr = torch.empty_like(indptr)
    count = _core.kept_starts(rows, indptr.data_ptr(), chosen.data_ptr(), kept_indptr.data_ptr())
    kept_indices = torch.empty(count, dtype=torch.int32, device="cpu")
    _core.keep(
        rows,
        indptr.data_ptr(),
        indices.data_ptr(),
        chosen.data_ptr(),
        kept_indptr.data_ptr(),
        kept_indices.data_ptr(),
        threads_for(indices.numel()),
    )
    return kept_indptr, kept_indices


def grown(columns: int, connections: Connections, keys: Tensor) -> Connections | None:
    """The connections and those at `keys`; None if a key is connected already, which is seen on the CPU only."""
    indptr, indices = connections
    rows, count = indptr.numel() - 1, indices.numel() + keys.numel()
    if not here(indptr, keys):
        return compressed((rows, columns), torch.cat([key_of_each(columns, connections), keys]).sort().values)
    keys = keys.contiguous()
    grown_indptr, grown_indices = torch.empty_like(indptr), torch.empty(count, dtype=torch.int32, device="cpu")
    vacant = _core.grow(
        rows,
        columns,
        indptr.data_ptr(),
        indices.data_ptr(),
        keys.data_ptr(),
        keys.numel(),
        grown_indptr.data_ptr(),
        grown_indices.data_ptr(),
        threads_for(count),
    )
    return (grown_indptr, grown_indices) if vacant else None


def followed(columns: int, old: Connections, new: Connections) -> Tensor:
    """Index in `old` of each connection of `new`, or -1, [new.nnz] int32."""
    if not here(*old, *new):
        return position_in(key_of_each(columns, old), key_of_each(columns, new)).to(torch.int32)
    source = torch.empty(new[1].numel(), dtype=torch.int32, device="cpu")
    threads = threads_for(old[1].numel() + new[1].numel())
    before, after = (old[0].data_ptr(), old[1].data_ptr()), (new[0].data_ptr(), new[1].data_ptr())
    _core.follow(new[0].numel() - 1, columns, *before, *after, source.data_ptr(), threads)
    return source


def moved(array: Tensor, source: Tensor, fill: float) -> Tensor:
    """`array[source]`, and `fill` where the source, int32 or int64, is -1. Differentiable."""
    if not array.numel():
        return array.new_full(source.shape, fill)
    tracked = array.requires_grad and torch.is_grad_enabled()
    if not here(array, source) or tracked or array.element_size() > 8 or source.dtype not in _MOVE:
        return array[source.clamp(min=0)].masked_fill_(source < 0, fill)
    array, source, filling = array.contiguous(), source.contiguous(), array.new_tensor(fill)
    result = array.new_empty(source.shape)
    addresses = source.data_ptr(), source.numel(), filling.data_ptr(), result.data_ptr()
    _MOVE[source.dtype](array.element_size(), array.data_ptr(), *addresses, threads_for(source.numel()))
    return result


def lowest(scores: Tensor, count: int) -> Tensor | None:
    """Ascending indices of the `count` lowest of `scores` [n]; None where the kernels do not do it."""
    if not here(scores) or not scores.is_floating_point() or not 0 <= count <= scores.numel():
        return None
    if scores.dtype not in _LOWEST:
        scores = scores.nan_to_num(nan=torch.finfo(scores.dtype).max, posinf=torch.inf, neginf=-torch.inf).to(torch.float32)
    scores, indices = scores.contiguous(), torch.empty(count, dtype=torch.int64, device="cpu")
    _LOWEST[scores.dtype](scores.data_ptr(), scores.numel(), count, indices.data_ptr(), threads_for(scores.numel()))
    return indices


def places(chosen: Tensor, count: int | None = None) -> Tensor:
    """Ascending indices of the true entries of `chosen` [n] bool, [count] int64; None asks how many there are, and waits for the answer."""
    if count is None or here(chosen):
        return chosen.nonzero().squeeze(1)
    return chosen.to(torch.uint8).sort(descending=True, stable=True).indices[:count]


def counted(indices: Tensor, bins: int) -> Tensor:
    """How often each number from 0 to `bins` - 1 is among the `indices` [n], [bins] int64. torch.bincount would look for the largest."""
    if here(indices):
        return torch.bincount(indices, minlength=bins)
    return torch.zeros(bins, dtype=torch.int64, device=indices.device).scatter_add_(
        0, indices.long(), torch.ones_like(indices, dtype=torch.int64)
    )


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on another device, which the host does not wait for. Nobody writes to it any more."""
    if tensor.device == device:
        return tensor
    return (tensor.pin_memory() if here(tensor) and device.type == "cuda" else tensor).to(device, non_blocking=device.type != "cpu")


def placed(sums: Tensor, wanted: Tensor) -> Tensor:
    """The first of the ascending `sums` that is larger than each of `wanted`, or the last one; float64 on the CPU, from 0 on, [n] int64.

    As torch.searchsorted, in constant time for each where `wanted` are drawn uniformly.
    """
    sums, wanted = sums.contiguous(), wanted.contiguous()
    places = torch.empty(wanted.numel(), dtype=torch.int64, device="cpu")
    _core.place(sums.data_ptr(), sums.numel(), wanted.data_ptr(), wanted.numel(), places.data_ptr(), threads_for(wanted.numel()))
    return places


def accepted(present: Tensor, taken: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """(`taken` with what is neither taken, present nor repeated of `drawn`; the rest of `drawn`).

    All are ascending keys on the CPU; only `drawn` may have repeats.
    """
    present, taken, drawn = present.contiguous(), taken.contiguous(), drawn.contiguous()
    merged, refused = torch.empty(taken.numel() + drawn.numel(), dtype=torch.int64, device="cpu"), torch.empty_like(drawn)
    first, second, third = ((array.data_ptr(), array.numel()) for array in (present, taken, drawn))
    count = _core.accept(*first, *second, *third, merged.data_ptr(), refused.data_ptr())
    return merged[: taken.numel() + count], refused[: drawn.numel() - count]


def sort_(keys: Tensor) -> Tensor:
    """`keys`, sorted in place."""
    if not here(keys):
        return keys.copy_(keys.sort().values)
    keys.numpy().sort()  # torch would sort an index along, in more memory and ten times the time
    return keys


def position_in(keys: Tensor, wanted: Tensor) -> Tensor:
    """Index of each of `wanted` in `keys`, or -1."""
    if not keys.numel():
        return torch.full_like(wanted, -1, dtype=torch.int64)
    at = torch.searchsorted(keys, wanted).clamp_(max=keys.numel() - 1)
    return torch.where(keys[at] == wanted, at, -1)


def here(*arrays: Tensor) -> bool:
    """Whether all are on the CPU, where the kernels are and nothing is waited for."""
    return all(array.device.type == "cpu" for array in arrays)


def threads_for(work: int, of_a_thread: int | None = None) -> int:
    """As many of torch's threads as the work keeps busy.

    Args:
        work: in any unit.
        of_a_thread: how much of it is worth another thread; None is `WORK_OF_A_THREAD`, and the work is entries to pass over.
    """
    return max(1, min(torch.get_num_threads(), work // (of_a_thread or WORK_OF_A_THREAD)))
