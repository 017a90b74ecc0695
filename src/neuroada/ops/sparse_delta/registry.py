"""What is known of the memory of base weights: who computes with it, and what is held in it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from neuroada.ops.sparse_delta.entries import positions
from neuroada.ops.sparse_delta.support import FrozenWeight, Support, version_of


@dataclass(eq=False)
class Memory:
    """The storage of a weight, which several parameters may share."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    held: Held | None = None
    busy: bool = False
    contended: bool = False


@dataclass(eq=False)
class Held:
    """A support that stands in a weight.

    originals: [N, K] in the weight's dtype. placed: the support with indices and neurons of its own, since a file may
    be loaded into those of the layer meanwhile.
    """

    weight: FrozenWeight
    support: Support
    originals: Tensor
    placed: Support
    memory: Memory = field(init=False)
    version: int = field(init=False)
    _index_versions: tuple[int, ...] = field(init=False)
    _where: tuple[object, Tensor] | None = None

    def __post_init__(self) -> None:
        parameter = self.weight.parameter
        assert parameter is not None
        self.memory, self.version = memory_of(parameter), version_of(parameter)
        self._index_versions = _index_versions(self.support)

    def where(self) -> Tensor:
        """int64 [N, K]: positions of the support in `flat` of the weight as it lies now."""
        alias = self.weight.alias()
        place = alias.device, alias.stride()
        if self._where is None or self._where[0] != place:
            placed = self.placed.to(alias.device)
            self._where = place, positions(alias, placed.indices, placed.neurons)
        return self._where[1]

    def is_at(self, support: Support) -> bool:
        """Whether a support belongs at the positions of this one, and the weight is still the same."""
        parameter = self.weight.parameter
        same = support.indices is self.support.indices and support.neurons is self.support.neurons
        if parameter is None or not same or _index_versions(support) != self._index_versions:
            return False
        return self.memory is memory_of(parameter) and self.version == version_of(parameter)

    def is_current(self, weight: FrozenWeight, support: Support) -> bool:
        """Whether just these deltas stand in just this weight."""
        if self.weight.parameter is not weight.parameter or self.support.stamp != support.stamp:
            return False
        return support.indices is not self.support.indices or _index_versions(support) == self._index_versions


def _index_versions(support: Support) -> tuple[int, ...]:
    return tuple(version_of(part) for part in (support.indices, support.neurons) if part is not None)


HELD: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""By parameter."""
_MEMORIES: WeakIdKeyDictionary = WeakIdKeyDictionary()
_LOCK = threading.Lock()


def memory_of(parameter: Tensor) -> Memory:
    """What is known of the memory of a parameter."""
    storage = parameter.untyped_storage()
    memory = _MEMORIES.get(storage)
    if memory is None:
        with _LOCK:
            memory = _MEMORIES.setdefault(storage, Memory())
    return memory


def is_held(parameter: Tensor) -> bool:
    """Whether a support stands in the memory of this parameter at the moment, put there by `hold`."""
    return parameter in HELD or memory_of(parameter).held is not None


def is_contended(parameter: Tensor) -> bool:
    """Whether two threads were ever seen inside the operation on this parameter's memory at once."""
    return memory_of(parameter).contended
