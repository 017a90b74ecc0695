"""Put supports into a frozen weight and take them out again, whatever happens in between (invariants I1 to I3, I8)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from neuroada.errors import WeightError
from neuroada.ops.sparse_delta.support import FrozenWeight, Support, overlaps, version_of
from neuroada.ops.sparse_delta.torch import flat, positions, shifted


@dataclass(eq=False)
class _Held:
    support: Support
    where: Tensor
    originals: Tensor
    version: int


@dataclass(eq=False)
class _WeightState:
    lock: threading.RLock = field(default_factory=threading.RLock)
    held: _Held | None = None
    busy: bool = False
    contended: bool = False


_STATES: WeakIdKeyDictionary = WeakIdKeyDictionary()
_STATES_LOCK = threading.Lock()


def _state_of(parameter: Tensor) -> _WeightState:
    state = _STATES.get(parameter)
    if state is None:
        with _STATES_LOCK:
            state = _STATES.setdefault(parameter, _WeightState())
    return state


def is_held(parameter: Tensor) -> bool:
    """Whether a support stands in this parameter at the moment, put there by `hold`."""
    return (state := _STATES.get(parameter)) is not None and state.held is not None


def is_contended(parameter: Tensor) -> bool:
    """Whether two threads were ever seen inside the operation on this parameter at once."""
    return (state := _STATES.get(parameter)) is not None and state.contended


@torch.no_grad()
def entries(weight: Tensor, support: Support) -> tuple[Tensor, Tensor, Tensor]:
    """(positions, originals, originals + deltas) of a support in a weight [O, I], each [N, K]; positions are int64, in
    `flat(weight)`."""
    where = positions(weight, support.indices, support.neurons)
    originals = flat(weight).take(where)
    return where, originals, shifted(originals, support.deltas)


def read(weight: Tensor, support: Support) -> Tensor:
    """The entries of a weight [O, I] at a support: [N, K] in the weight's dtype."""
    return flat(weight).take(positions(weight, support.indices, support.neurons))


def with_support(weight: FrozenWeight, support: Support | None, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """`compute(W)`, where W [O, I] is the base weight with exactly this support, or none, in it.

    A parameter holds its pretrained values again, or what `hold` put there, as soon as `compute` has ended in any way,
    Ctrl-C included: the writes that undo are the first calls of their `finally` blocks, and Python looks at signals
    only after calls and on entering functions. `compute` must not come back to the same weight.
    """
    parameter = weight.parameter
    if parameter is None:
        return compute(_written(weight.alias(), support))
    state = _state_of(parameter)
    state.contended = state.contended or state.busy
    with state.lock:
        state.busy = True
        try:
            if weight.mode == "transient":
                copy = _lifted(weight.alias(), state.held, _copy)
            else:
                return _in_place(weight.alias(), state.held, support, compute)
        finally:
            state.busy = False
    return compute(_written(copy, support))


def _in_place(
    weight: Tensor, held: _Held | None, support: Support | None, compute: Callable[[Tensor], Tensor]
) -> Tensor:
    if support is None:
        return _lifted(weight, held, compute)
    if held is None:
        return _swapped(weight, support, compute)
    if held.support.stamp == support.stamp:
        return compute(weight)
    return _lifted(weight, held, lambda lifted: _swapped(lifted, support, compute))


def _swapped(weight: Tensor, support: Support, compute: Callable[[Tensor], Tensor]) -> Tensor:
    storage = flat(weight)
    where, originals, values = entries(weight, support)
    try:
        storage.index_put_((where,), values)
        return compute(weight)
    finally:
        storage.index_put_((where,), originals)


def _lifted(weight: Tensor, held: _Held | None, compute: Callable[[Tensor], Tensor]) -> Tensor:
    if held is None:
        return compute(weight)
    storage = flat(weight)
    values = storage.take(held.where)
    try:
        storage.index_put_((held.where,), held.originals)
        return compute(weight)
    finally:
        storage.index_put_((held.where,), values)


def write(weight: Tensor, support: Support) -> tuple[Tensor, Tensor]:
    """Put a support into a weight [O, I] for good; returns (positions, originals), both [N, K]."""
    where, originals, values = entries(weight, support)
    flat(weight).index_put_((where,), values)
    return where, originals


def _written(weight: Tensor, support: Support | None) -> Tensor:
    if support is not None:
        write(weight, support)
    return weight


def _copy(weight: Tensor) -> Tensor:
    """A copy in the same layout where it can be had, so that the same GEMM is called with it."""
    if overlaps(weight):
        return weight.contiguous()
    return flat(weight).clone().as_strided(weight.shape, weight.stride())


def hold(weight: FrozenWeight, support: Support) -> None:
    """Put a support into a parameter and leave it there until `release`.

    Deltas that change meanwhile without a new version (fused optimisers, `.data`) are not noticed here;
    `neuroada.held` takes care of optimisers.

    Raises:
        WeightError: another support is held in this parameter, or the weight has none.
    """
    if weight.parameter is None:
        raise WeightError(
            "Holding a support in a weight", "it is made afresh for each use", "Hold weights that are stored dense"
        )
    state = _state_of(weight.parameter)
    with state.lock:
        if state.held is not None:
            raise WeightError(
                "Holding a support in a weight",
                "one is held there already",
                "Leave the outer neuroada.held(...) first",
            )
        storage = flat(weight.alias())
        where, originals, values = entries(weight.alias(), support)
        state.held = _Held(support, where, originals, version_of(weight.parameter))
        storage.index_put_((where,), values)


def release(weight: FrozenWeight) -> None:
    """Take the held support, if there is one, out again, bit for bit.

    Raises:
        WeightError: the weight was written to in the meantime, so that the originals no longer belong to it; it stays
            as it is.
    """
    parameter = weight.parameter
    state = None if parameter is None else _STATES.get(parameter)
    if parameter is None or state is None:
        return
    with state.lock:
        held = state.held
        if held is None:
            return
        storage, unchanged = flat(weight.alias()), version_of(parameter) == held.version
        state.held = None
        if unchanged:
            storage.index_put_((held.where,), held.originals)
        else:
            raise WeightError(
                "Taking a held support out of a weight",
                "the weight was written to while the support was held",
                "Load the base weights again, outside neuroada.held(...)",
            )
