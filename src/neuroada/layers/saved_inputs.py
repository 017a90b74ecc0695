"""What adapted layers keep of their input for backward: all of it, or only the columns that their deltas read."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from neuroada.ops.sparse_delta import Support
from neuroada.ops.sparse_delta.support import version_of

PAYS_BELOW = 0.75
"""Largest share of the columns that is worth a copy of its own. A choice: the copy takes time as well."""

SIBLINGS = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
    ("wi_0", "wi_1"),
    ("w1", "w3"),
)
"""Names of layers of one parent that models usually give the same input. A wrong guess costs memory, never results."""

_VIEWS = ("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "TransposeBackward0", "PermuteBackward0")
_KEEP_THEIR_OUTPUT = ("ScaledDotProduct", "ReluBackward", "TanhBackward", "SigmoidBackward", "SoftmaxBackward")


class Member(Protocol):
    """An adapted layer, as far as its group needs to know it."""

    saved_input: str

    def indices_read(self) -> Tensor | None:
        """[N, K] of the one active adapter, or None where there is none, or more than one."""


@dataclass
class _Recent:
    """The last input that this thread saw, and what was kept of it."""

    source: weakref.ref[Tensor]
    version: int
    kept: weakref.ref[Tensor]
    columns: Tensor | None

    def is_of(self, source: Tensor) -> bool:
        """Whether it is this input, unchanged since; of inference tensors that cannot be told."""
        return self.source() is source and not source.is_inference() and self.version == version_of(source)


_THREAD = threading.local()


@dataclass(frozen=True)
class _Union:
    """The columns [U] that members read, or None where all are kept; by member its indices, their version, and its
    indices into the columns. Replaced as a whole: other threads see the old one or the new one."""

    read: dict[int, tuple[Tensor, int]]
    columns: Tensor | None
    places: dict[int, Tensor]

    def is_for(self, member: Member, indices: Tensor) -> bool:
        known, version = self.read.get(id(member), (None, -1))
        return known is indices and version == version_of(indices)


class InputGroup:
    """Adapted layers that are given the same input: they keep it once, and only the columns that one of them reads."""

    def __init__(self, members: Sequence[Member]):
        self.members = list(members)
        self._union = _Union({}, None, {})

    @torch.no_grad()
    def keep(self, member: Member, source: Tensor, x: Tensor, support: Support) -> tuple[Tensor, Tensor]:
        """What backward needs of an input.

        Args:
            member: the layer that asks.
            source: the input as the layer was given it, by which other layers are seen to share it.
            x: [..., I], the same, perhaps cast by autocast.
            support: of this layer.

        Returns:
            (kept [B, C], indices [N, K] into its columns); C = I and the support's own indices where all is kept.
        """
        union = self._union_for(member, source, support.indices)
        columns = None if union is None else union.columns
        recent: _Recent | None = getattr(_THREAD, "recent", None)
        kept = None
        if recent is not None and recent.is_of(source):
            kept = recent.kept() if recent.columns is columns else None
        if kept is None or kept.dtype != x.dtype:
            rows = x.detach().reshape(-1, x.shape[-1])
            kept = rows if columns is None else rows.index_select(1, columns)
            _THREAD.recent = _Recent(weakref.ref(source), version_of(source), weakref.ref(kept), columns)
        return kept, support.indices if union is None or columns is None else union.places[id(member)]

    def _union_for(self, member: Member, source: Tensor, indices: Tensor) -> _Union | None:
        if member.saved_input == "whole" or (member.saved_input == "auto" and _is_kept_anyway(source)):
            return None
        union = self._union
        if not union.is_for(member, indices):
            if member.indices_read() is not indices:
                return None
            union = self._union = self._unite(source.shape[-1])
        return union if union.is_for(member, indices) else None

    def _unite(self, in_features: int) -> _Union:
        """Find the columns that members read; each of them asks for it when its own indices have changed."""
        found = {id(member): member.indices_read() for member in self.members if member.saved_input != "whole"}
        indices = {key: read for key, read in found.items() if read is not None}
        read = {key: (each, version_of(each)) for key, each in indices.items()}
        if not all(type(each) is Tensor and not each.is_meta for each in indices.values()):
            return _Union(read, None, {})  # fake tensors have no values
        columns = torch.cat([each.flatten() for each in indices.values()]).unique()
        if len(columns) > PAYS_BELOW * in_features:
            return _Union(read, None, {})
        places = {key: torch.searchsorted(columns, each).int() for key, each in indices.items()}
        return _Union(read, columns.long(), places)


def _is_kept_anyway(x: Tensor) -> bool:
    """Whether the operation that made x keeps its output for its own backward, so that saving x costs nothing."""
    node = x.grad_fn
    while node is not None and node.name() in _VIEWS:
        node = node.next_functions[0][0]
    return node is not None and node.name().startswith(_KEEP_THEIR_OUTPUT)


def group_siblings(model: nn.Module, kind: type[nn.Module]) -> None:
    """Put the layers of this kind that usually share an input into one group each."""
    for parent in model.modules():
        for names in SIBLINGS:
            children = [_inside(getattr(parent, name, None), kind) for name in names]
            members: list[Any] = [child for child in children if isinstance(child, kind)]
            if len(members) > 1:
                group = InputGroup(members)
                for member in members:
                    member.input_group = group


def _inside(module: nn.Module | None, kind: type[nn.Module]) -> nn.Module | None:
    """The layer of this kind that layers of other adapters are around, if there is one."""
    while module is not None and not isinstance(module, kind):
        module = getattr(module, "base_layer", None)
    return module
