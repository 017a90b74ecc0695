"""A base weight and the deltas on it: what the operation is asked to compute with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


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
        return not overlaps(self.parameter)

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
            object.__setattr__(self, "stamp", tuple((id(source), version_of(source)) for source in self.sources))

    def to(self, device: torch.device) -> Support:
        """The same support on another device."""
        neurons = None if self.neurons is None else self.neurons.to(device)
        return replace(self, indices=self.indices.to(device), deltas=self.deltas.to(device), neurons=neurons)


def overlaps(weight: Tensor) -> bool:
    """Whether entries of an expanded weight share memory."""
    return any(stride == 0 and size > 1 for size, stride in zip(weight.shape, weight.stride(), strict=True))


def version_of(tensor: Tensor) -> int:
    """Autograd's version counter; -1 for inference tensors, which have none."""
    return -1 if tensor.is_inference() else tensor._version


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
    wide = torch.float32
    for support in supports:
        wide = torch.promote_types(wide, support.deltas.dtype)
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
