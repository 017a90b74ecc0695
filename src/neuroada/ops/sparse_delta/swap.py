"""Put a support into a frozen weight and take it out again, whatever happens in between (invariants I1 to I3, I8)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from neuroada.ops.sparse_delta.backends.choice import uses_kernels
from neuroada.ops.sparse_delta.entries import entries, flat
from neuroada.ops.sparse_delta.holding import release
from neuroada.ops.sparse_delta.registry import HELD, Held, memory_of
from neuroada.ops.sparse_delta.support import FrozenWeight, Support, overlaps


def with_support(weight: FrozenWeight, support: Support | None, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """`compute(W)`, where W [O, I] is the base weight with exactly this support, or none, in it.

    A parameter holds its pretrained values again, or what `hold` put there, as soon as `compute` has ended in any way,
    Ctrl-C included: the writes that undo are the first calls of their `finally` blocks, and Python looks at signals
    only after calls and on entering functions. `compute` must not come back to the same weight.
    """
    parameter = weight.parameter
    if parameter is None:
        return compute(_written(weight.alias(), support))
    memory = memory_of(parameter)
    if memory.held is None and parameter in HELD:
        release(weight)  # the parameter was moved or cast while a support was held in it
    memory.contended = memory.contended or memory.busy
    with memory.lock:
        memory.busy = True
        try:
            if weight.mode != "transient":
                return _in_place(weight, memory.held, support, compute)
            copy = _lifted(weight.alias(), memory.held, _copy)
        finally:
            memory.busy = False
    return compute(_written(copy, support))


def _in_place(
    weight: FrozenWeight, held: Held | None, support: Support | None, compute: Callable[[Tensor], Tensor]
) -> Tensor:
    alias = weight.alias()
    if support is None:
        return _lifted(alias, held, compute)
    if held is None:
        return _swapped(alias, support, compute)
    if held.is_current(weight, support):
        return compute(alias)
    return _lifted(alias, held, lambda lifted: _swapped(lifted, support, compute))


def _swapped(weight: Tensor, support: Support, compute: Callable[[Tensor], Tensor]) -> Tensor:
    if uses_kernels(weight):
        return _swapped_by_kernels(weight, support, compute)
    storage = flat(weight)
    where, originals, values = entries(weight, support)
    try:
        storage.index_put_((where,), values)
        return compute(weight)
    finally:
        storage.index_put_((where,), originals)


def _swapped_by_kernels(weight: Tensor, support: Support, compute: Callable[[Tensor], Tensor]) -> Tensor:
    from neuroada.ops.sparse_delta.backends.triton import swap as triton_swap

    at = weight, support.indices, support.neurons
    originals = triton_swap.read(*at)
    try:
        triton_swap.write(*at, originals, support.deltas)
        return compute(weight)
    finally:
        try:
            triton_swap.restore(*at, originals)
        except KeyboardInterrupt:  # finish first
            triton_swap.restore(*at, originals)
            raise


def _lifted(weight: Tensor, held: Held | None, compute: Callable[[Tensor], Tensor]) -> Tensor:
    if held is None:
        return compute(weight)
    storage, where = flat(held.weight.alias()), held.where()
    values = storage.take(where)
    try:
        storage.index_put_((where,), held.originals)
        return compute(weight)
    finally:
        storage.index_put_((where,), values)


def write(weight: Tensor, support: Support) -> None:
    """Put a support into a weight [O, I] for good."""
    if uses_kernels(weight):
        from neuroada.ops.sparse_delta.backends.triton import swap as triton_swap

        triton_swap.swap_in(weight, support.indices, support.neurons, support.deltas)
        return
    where, _, values = entries(weight, support)
    flat(weight).index_put_((where,), values)


def _written(weight: Tensor, support: Support | None) -> Tensor:
    if support is not None:
        write(weight, support)
    return weight


def _copy(weight: Tensor) -> Tensor:
    """A copy in the same layout where it can be had, so that the same GEMM is called with it."""
    if overlaps(weight):
        return weight.contiguous()
    return flat(weight).clone().as_strided(weight.shape, weight.stride())
