"""What NeuroAda's layers in a model do: where their deltas stand, how many there are, and how many survive rounding."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn

from neuroada.layers import NeuroAdaLinear
from neuroada.ops.sparse_delta.entries import shifted


def placement(model: nn.Module) -> str | None:
    """Where NeuroAda's layers put weight + deltas while they compute, and why; None without such layers."""
    chosen = Counter(layer.resolved_mode() for layer in _neuroada_layers(model))
    return "; ".join(f"{mode} on {count} layers: {reason}" for (mode, reason), count in chosen.items()) or None


def most_deltas(model: nn.Module) -> int | None:
    """The largest K of NeuroAda's layers; None without such layers."""
    supports = [layer.support(layer.present(layer.active_adapters)) for layer in _neuroada_layers(model)]
    return max((support.indices.shape[1] for support in supports), default=None)


def delta_count(model: nn.Module) -> int:
    """Deltas of NeuroAda's active adapters, of which `surviving_deltas` are those that count."""
    return sum(layer.support(names).deltas.numel() for layer, names in _active(model))


@torch.no_grad()
def surviving_deltas(model: nn.Module) -> int | None:
    """How many deltas change their weight after rounding to its dtype.

    None without NeuroAda's layers, and where the pretrained values are not at hand (sharded or off-loaded).
    """
    counts = [_surviving(layer, names) for layer, names in _active(model)]
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def _neuroada_layers(model: nn.Module) -> list[NeuroAdaLinear]:
    return [module for module in model.modules() if isinstance(module, NeuroAdaLinear)]


def _active(model: nn.Module) -> list[tuple[NeuroAdaLinear, list[str]]]:
    found = [(layer, layer.present(layer.active_adapters)) for layer in _neuroada_layers(model)]
    return [(layer, names) for layer, names in found if names]


def _surviving(layer: NeuroAdaLinear, names: list[str]) -> int | None:
    support = layer.support(names)
    originals = layer.originals(support, layer.stored_weight)
    return None if originals is None else int((shifted(originals, support.deltas) != originals).sum())
