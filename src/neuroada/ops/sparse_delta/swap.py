"""Put supports into a frozen weight and take them out again, whatever happens in between (invariants I1 to I3, I8)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def _locked(state: _WeightState) -> Iterator[None]:
    if not state.lock.acquire(blocking=False):
        state.contended = True
        state.lock.acquire()
    try:
        yield
    finally:
        state.lock.release()


@torch.no_grad()
def _entries(weight: Tensor, support: Support) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(storage, positions, originals, originals + deltas) of a support in a weight [O, I]."""
    storage, where = flat(weight), positions(weight, support.indices, support.neurons)
    originals = storage.take(where)
    return storage, where, originals, shifted(originals, support.deltas)


def write(weight: Tensor, support: Support) -> tuple[Tensor, Tensor]:
    """Put a support into a weight [O, I] for good.

    Returns:
        (positions int64 [N, K], originals [N, K] in the weight's dtype): what `restore` needs.
    """
    storage, where, originals, values = _entries(weight, support)
    storage.index_put_((where,), values)
    return where, originals


def take(weight: Tensor, where: Tensor) -> Tensor:
    """The entries of a weight [O, I] at positions that `write` returned: [N, K] in its dtype."""
    return flat(weight).take(where)


def restore(weight: Tensor, where: Tensor, originals: Tensor) -> None:
    """Undo `write`, bit for bit."""
    flat(weight).index_put_((where,), originals)


def read(weight: Tensor, support: Support) -> Tensor:
    """The entries of a weight [O, I] at a support: [N, K] in the weight's dtype."""
    return flat(weight).take(positions(weight, support.indices, support.neurons))


@contextmanager
def _swapped_in(weight: Tensor, support: Support) -> Iterator[None]:
    storage, where, originals, values = _entries(weight, support)
    try:
        storage.index_put_((where,), values)
        yield
    finally:
        storage.index_put_((where,), originals)


@contextmanager
def _lifted(weight: Tensor, held: _Held | None) -> Iterator[None]:
    """Take a held support out for a while."""
    if held is None:
        yield
        return
    storage = flat(weight)
    values = storage.take(held.where)
    try:
        storage.index_put_((held.where,), held.originals)
        yield
    finally:
        storage.index_put_((held.where,), values)


@contextmanager
def resident(weight: FrozenWeight, support: Support | None) -> Iterator[Tensor]:
    """Inside, the yielded [O, I] tensor is the base weight with exactly this support, or none, in it.

    A parameter holds its pretrained values again, or what `hold` put there, as soon as the context is left, by
    exception too. One weight's context is not to be entered again by the same thread before it is left.
    """
    if weight.parameter is None:
        yield _with_support(weight.alias(), support)
        return
    state = _state_of(weight.parameter)
    if weight.mode == "transient":
        with _locked(state):
            alias = weight.alias()
            with _lifted(alias, state.held):
                copy = _copy(alias)
        yield _with_support(copy, support)
        return
    with _locked(state):
        alias, held = weight.alias(), state.held
        if support is None:
            with _lifted(alias, held):
                yield alias
        elif held is not None and held.support.stamp == support.stamp:
            yield alias
        else:
            with _lifted(alias, held), _swapped_in(alias, support):
                yield alias


def _with_support(weight: Tensor, support: Support | None) -> Tensor:
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

    Raises:
        WeightError: another support is held in this parameter, or the weight has none.
    """
    if weight.parameter is None:
        raise WeightError(
            "Holding a support in a weight", "it is made afresh for each use", "Hold weights that are stored dense"
        )
    state = _state_of(weight.parameter)
    with _locked(state):
        if state.held is not None:
            raise WeightError(
                "Holding a support in a weight",
                "one is held there already",
                "Leave the outer neuroada.held(...) first",
            )
        storage, where, originals, values = _entries(weight.alias(), support)
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
    with _locked(state):
        held, state.held = state.held, None
        if held is None:
            return
        if version_of(parameter) != held.version:
            raise WeightError(
                "Taking a held support out of a weight",
                "the weight was written to while the support was held",
                "Load the base weights again, outside neuroada.held(...)",
            )
        restore(weight.alias(), held.where, held.originals)
