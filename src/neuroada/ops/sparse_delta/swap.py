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
class _Storage:
    """What is known of the memory of a weight, which several parameters may share."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    held: _Held | None = None
    busy: bool = False
    contended: bool = False


@dataclass(eq=False)
class _Held:
    weight: FrozenWeight
    support: Support
    where: Tensor
    originals: Tensor
    version: int
    storage: _Storage


_STORAGES: WeakIdKeyDictionary = WeakIdKeyDictionary()
_HELD: WeakIdKeyDictionary = WeakIdKeyDictionary()  # by parameter
_STORAGES_LOCK = threading.Lock()


def _storage_of(parameter: Tensor) -> _Storage:
    memory = parameter.untyped_storage()
    state = _STORAGES.get(memory)
    if state is None:
        with _STORAGES_LOCK:
            state = _STORAGES.setdefault(memory, _Storage())
    return state


def is_held(parameter: Tensor) -> bool:
    """Whether a support stands in the memory of this parameter at the moment, put there by `hold`."""
    return parameter in _HELD or _storage_of(parameter).held is not None


def is_contended(parameter: Tensor) -> bool:
    """Whether two threads were ever seen inside the operation on this parameter's memory at once."""
    return _storage_of(parameter).contended


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
    state = _storage_of(parameter)
    if state.held is None and parameter in _HELD:
        release(weight)  # the parameter was moved or cast while a support was held in it
    state.contended = state.contended or state.busy
    with state.lock:
        state.busy = True
        try:
            if weight.mode != "transient":
                return _in_place(weight, state.held, support, compute)
            copy = _lifted(weight.alias(), state.held, _copy)
        finally:
            state.busy = False
    return compute(_written(copy, support))


def _in_place(
    weight: FrozenWeight, held: _Held | None, support: Support | None, compute: Callable[[Tensor], Tensor]
) -> Tensor:
    alias = weight.alias()
    if support is None:
        return _lifted(alias, held, compute)
    if held is None:
        return _swapped(alias, support, compute)
    if held.weight.parameter is weight.parameter and held.support.stamp == support.stamp:
        return compute(alias)
    return _lifted(alias, held, lambda lifted: _swapped(lifted, support, compute))


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
    storage = flat(held.weight.alias())
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
    state = _storage_of(weight.parameter)
    with state.lock:
        if state.held is not None:
            raise WeightError(
                "Holding a support in a weight",
                "one is held there already",
                "Leave the outer neuroada.held(...) first",
            )
        storage = flat(weight.alias())
        where, originals, values = entries(weight.alias(), support)
        held = _Held(weight, support, where, originals, version_of(weight.parameter), state)
        _HELD[weight.parameter] = held
        state.held = held
        storage.index_put_((where,), values)


def refresh(weight: FrozenWeight, support: Support) -> None:
    """Put the present deltas of a held support in place of earlier ones; hold it if none is held, or another is."""
    parameter = weight.parameter
    held = None if parameter is None else _HELD.get(parameter)
    if parameter is None or held is None or not _is_for(held, parameter, support):
        release(weight)
        hold(weight, support)
        return
    with held.storage.lock:
        flat(weight.alias()).index_put_((held.where,), shifted(held.originals, support.deltas))
        held.support = support  # only now: deltas that are not in yet must not be taken for held ones


def _is_for(held: _Held, parameter: Tensor, support: Support) -> bool:
    unchanged = held.storage is _storage_of(parameter) and held.version == version_of(parameter)
    return unchanged and held.support.indices is support.indices and held.support.neurons is support.neurons


def release(weight: FrozenWeight) -> None:
    """Take the held support, if there is one, out again, bit for bit.

    Raises:
        WeightError: the weight was written to in the meantime, so that the originals no longer belong to it; it stays
            as it is.
    """
    parameter = weight.parameter
    held = None if parameter is None else _HELD.get(parameter)
    if parameter is None or held is None:
        return
    with held.storage.lock:
        alias, unchanged = weight.alias(), version_of(parameter) == held.version
        support, storage = held.support.to(alias.device), flat(alias)
        where = positions(alias, support.indices, support.neurons)
        originals = held.originals.to(alias)  # cast as the weight was, if it was
        held.storage.held = None
        if unchanged:
            storage.index_put_((where,), originals)
        _HELD.pop(parameter, None)
    if not unchanged:
        raise WeightError(
            "Taking a held support out of a weight",
            "the weight was written to while the support was held",
            "Load the base weights again, outside neuroada.held(...)",
        )
