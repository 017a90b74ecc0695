"""Counts the memory that PyTorch operations return, without noise and without a profiler."""

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Storages that come into being in this context; those that its operations only look at do not count.

    largest: bytes of the largest one. peak: the most bytes alive at once. alive(): bytes of each one alive now.
    """

    def __init__(self):
        super().__init__()
        self.largest = self.peak = 0
        self._made: list[tuple[StorageWeakRef, int]] = []
        self._known: list[StorageWeakRef] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self._note((args, kwargs), ours=False)
        result = func(*args, **(kwargs or {}))
        self._note(result, ours=True)
        self.peak = max(self.peak, sum(self.alive()))
        return result

    def _note(self, values, ours: bool) -> None:
        for tensor in tree_leaves(values):
            if not isinstance(tensor, torch.Tensor) or not tensor.numel():
                continue
            reference = StorageWeakRef(tensor.untyped_storage())
            if any(reference == known and not known.expired() for known in self._known):
                continue
            self._known.append(reference)
            if ours:
                self._made.append((reference, tensor.untyped_storage().nbytes()))
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())

    def alive(self) -> list[int]:
        self._known = [reference for reference in self._known if not reference.expired()]
        self._made = [(reference, size) for reference, size in self._made if not reference.expired()]
        return [size for _, size in self._made]
