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


_THREAD = threading.local()


class InputGroup:
    """Adapted layers that are given the same input: they keep it once, and only the columns that one of them reads."""

    def __init__(self, members: Sequence[Member]):
        self.members = list(members)
        self._read: dict[int, tuple[Tensor, int]] = {}
        self._columns: Tensor | None = None
        self._places: dict[int, Tensor] = {}

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
        columns = self._columns_for(member, source, support)
        recent: _Recent | None = getattr(_THREAD, "recent", None)
        kept = None
        if recent is not None and recent.source() is source and recent.version == version_of(source):
            kept = recent.kept() if recent.columns is columns else None
        if kept is None or kept.dtype != x.dtype:
            rows = x.detach().reshape(-1, x.shape[-1])
            kept = rows if columns is None else rows.index_select(1, columns)
            _THREAD.recent = _Recent(weakref.ref(source), version_of(source), weakref.ref(kept), columns)
        return kept, support.indices if columns is None else self._places[id(member)]

    def _columns_for(self, member: Member, source: Tensor, support: Support) -> Tensor | None:
        if member.saved_input == "whole" or (member.saved_input == "auto" and _is_kept_anyway(source)):
            return None
        indices = support.indices
        known, version = self._read.get(id(member), (None, -1))
        if known is not indices or version != version_of(indices):
            if member.indices_read() is not indices:
                return None
            self._unite(source.shape[-1])
        return self._columns

    def _unite(self, in_features: int) -> None:
        """Find the columns that members read; each of them asks for it when its own indices have changed."""
        found = {id(member): member.indices_read() for member in self.members if member.saved_input != "whole"}
        read = {key: indices for key, indices in found.items() if indices is not None}
        self._read = {key: (indices, version_of(indices)) for key, indices in read.items()}
        self._columns, self._places = None, {}
        if any(type(indices) is not Tensor or indices.is_meta for indices in read.values()):
            return  # fake tensors have no values
        columns = torch.cat([indices.flatten() for indices in read.values()]).unique()
        if len(columns) <= PAYS_BELOW * in_features:
            self._columns = columns.long()
            self._places = {key: torch.searchsorted(columns, indices).int() for key, indices in read.items()}


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
            members: list[Any] = [child for name in names if isinstance(child := getattr(parent, name, None), kind)]
            if len(members) > 1:
                group = InputGroup(members)
                for member in members:
                    member.input_group = group
