"""Put supports into a frozen weight and take them out again, whatever happens in between (invariants I1 to I3, I8)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from neuroada.errors import WeightError
from neuroada.ops.sparse_delta.torch import flat, positions, shifted


@dataclass(frozen=True, eq=False)
class FrozenWeight:
    """A base weight as its layer stores it.

    source: the parameter, or a function that makes a fresh tensor each time (a quantised weight, dequantised).
    transposed: stored as [I, O] (Transformers' Conv1D) instead of [O, I].
    mode: "inplace" writes supports to the parameter itself, "transient" to a copy that is freed at once.
    """

    source: Tensor | Callable[[], Tensor]
    transposed: bool = False
    mode: str = "inplace"

    @property
    def parameter(self) -> Tensor | None:
        """The stored parameter, or None where the weight is made afresh each time."""
        return self.source if isinstance(self.source, Tensor) else None

    def writable(self) -> bool:
        """Whether the parameter may be written in place: no two entries share memory, no inference tensor outside
        inference mode."""
        if self.parameter is None:
            return False
        if self.parameter.is_inference() and not torch.is_inference_mode_enabled():
            return False
        return not _overlaps(self.parameter)

    def alias(self) -> Tensor:
        """[O, I], sharing the parameter's storage but not its version counter; a fresh tensor if it has none."""
        stored = self.source.data if isinstance(self.source, Tensor) else self.source()
        return stored.T if self.transposed else stored


@dataclass(frozen=True, eq=False)
class Support:
    """Deltas at positions of a weight [O, I]; (neuron, index) pairs are distinct, neurons may repeat.

    indices: [N, K], any integer dtype, in [0, I). deltas: [N, K], any float dtype.
    neurons: [N], any integer dtype, in [0, O), or None for N = O.
    sources: the parameters that the deltas come from; the deltas themselves if empty.
    stamp: identities and versions of the sources when the deltas were read: equal stamps mean equal deltas.
    """

    indices: Tensor
    deltas: Tensor
    neurons: Tensor | None = None
    sources: tuple[Tensor, ...] = ()
    stamp: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.sources:
            object.__setattr__(self, "sources", (self.deltas,))
        if not self.stamp:
            object.__setattr__(self, "stamp", tuple((id(source), _version(source)) for source in self.sources))

    def to(self, device: torch.device) -> Support:
        """The same support on another device."""
        neurons = None if self.neurons is None else self.neurons.to(device)
        return replace(self, indices=self.indices.to(device), deltas=self.deltas.to(device), neurons=neurons)


@dataclass(eq=False)
class _Held:
    support: Support
    where: Tensor
    originals: Tensor


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


def _overlaps(weight: Tensor) -> bool:
    return any(stride == 0 and size > 1 for size, stride in zip(weight.shape, weight.stride(), strict=True))


def _copy(weight: Tensor) -> Tensor:
    """A copy in the same layout where it can be had, so that the same GEMM is called with it."""
    if _overlaps(weight):
        return weight.contiguous()
    return flat(weight).clone().as_strided(weight.shape, weight.stride())


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


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
        state.held = _Held(support, where, originals)
        storage.index_put_((where,), values)


def release(weight: FrozenWeight) -> None:
    """Take the held support, if there is one, out again, bit for bit."""
    state = None if weight.parameter is None else _STATES.get(weight.parameter)
    if state is None:
        return
    with _locked(state):
        if state.held is not None:
            restore(weight.alias(), state.held.where, state.held.originals)
            state.held = None


def combine(supports: list[Support], in_features: int) -> Support:
    """One support for the sum of several on the same weight, overlapping ones included.

    Differentiable in the deltas of each. Sums are made in at least float32 and in the given order, so that the result
    is the same each time.

    Args:
        supports: at least one, on a weight [O, I].
        in_features: I.
    """
    if len(supports) == 1:
        return supports[0]
    wide = torch.promote_types(torch.float32, supports[0].deltas.dtype)
    places = []
    for support in supports:
        device = support.indices.device
        rows = torch.arange(len(support.indices), device=device) if support.neurons is None else support.neurons
        places.append((rows.long()[:, None] * in_features + support.indices.long()).flatten())
    joint, which = torch.unique(torch.cat(places), return_inverse=True)
    total = torch.zeros(joint.shape, dtype=wide, device=joint.device)
    for support, target in zip(supports, which.split([len(place) for place in places]), strict=True):
        total = total.index_add(0, target, support.deltas.flatten().to(wide))
    return Support(
        indices=(joint % in_features)[:, None],
        deltas=total[:, None],
        neurons=joint // in_features,
        sources=tuple(source for support in supports for source in support.sources),
    )
