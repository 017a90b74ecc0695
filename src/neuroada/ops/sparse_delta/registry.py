"""What is known of the memory of base weights: who computes with it, and what is held in it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from neuroada.ops.sparse_delta.support import FrozenWeight, Support
from neuroada.ops.sparse_delta.torch import positions


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

    originals: [N, K] in the weight's dtype. version: the weight's when they were read. together: the support was put in
    with others in one launch.
    """

    weight: FrozenWeight
    support: Support
    originals: Tensor
    version: int
    memory: Memory
    together: bool = False
    _where: tuple[object, Tensor] | None = None

    def where(self) -> Tensor:
        """int64 [N, K]: positions of the support in `flat` of the weight as it lies now."""
        alias = self.weight.alias()
        place = alias.device, alias.stride()
        if self._where is None or self._where[0] != place:
            support = self.support.to(alias.device)
            self._where = place, positions(alias, support.indices, support.neurons)
        return self._where[1]


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
