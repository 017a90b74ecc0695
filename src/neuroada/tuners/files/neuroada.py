"""NeuroAda's adapter file.

Per adapted weight: `neuroada_deltas` [N, K] in the deltas' dtype, `neuroada_indices` [N, K] in the smallest unsigned
type that holds I, `neuroada_neurons` [N] likewise for O where coverage < 1. N and K may differ by weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neuroada.layers import NeuroAdaLinear
from neuroada.ops.sparse_delta import Support
from neuroada.tuners.files.base import FLOATS, AdapterFile, Entry

DELTAS, INDICES, NEURONS = "neuroada_deltas", "neuroada_indices", "neuroada_neurons"


def smallest_unsigned(bound: int) -> torch.dtype:
    """The smallest unsigned type that holds every integer in [0, bound)."""
    return next(dtype for dtype in (torch.uint8, torch.uint16, torch.uint32) if bound <= torch.iinfo(dtype).max + 1)


class NeuroAdaFile(AdapterFile):
    """Deltas, indices and covered neurons."""

    method = "NeuroAda"
    layer_class = NeuroAdaLinear
    kinds = (DELTAS, INDICES, NEURONS)
    fingerprints = "neuroada_fingerprints"
    digest = "neuroada_digest"

    def entry(self, layer: NeuroAdaLinear, adapter_name: str, state: Entry) -> Entry:
        """Indices in the smallest type that holds them; ConfigError where they are not chosen yet, since a file could
        not say so."""
        layer.require_chosen(adapter_name, "Saving an adapter")
        own = {DELTAS: layer.neuroada_deltas[adapter_name].detach(), INDICES: layer.neuroada_indices[adapter_name]}
        neurons = layer.neurons_of(adapter_name)
        entry = own | ({} if neurons is None else {NEURONS: neurons}) | state
        entry[INDICES] = entry[INDICES].to(smallest_unsigned(layer.in_features))
        if NEURONS in entry:
            entry[NEURONS] = entry[NEURONS].to(smallest_unsigned(layer.out_features))
        return entry

    def support(self, layer: NeuroAdaLinear, entry: Entry) -> Support:
        """That of the deltas."""
        return Support(entry[INDICES], entry[DELTAS], entry.get(NEURONS))

    def as_stored(self, kind: str, tensor: Tensor) -> Tensor:
        """Indices and neurons are int32 in a layer."""
        return tensor if kind == DELTAS else tensor.to(torch.int32)

    def make_room(self, layer: NeuroAdaLinear, adapter_name: str, entry: Entry) -> None:
        """N and K may be others than the configuration gives."""
        layer.resize(adapter_name, entry[DELTAS].shape, covers_all=NEURONS not in entry)
        layer.awaiting.pop(adapter_name, None)
        for kind in {INDICES, NEURONS} & entry.keys():
            container = getattr(layer, kind)
            if not container.persistent:  # what state dicts leave out, `load_state_dict` leaves out too
                own = container[adapter_name]
                container[adapter_name] = entry[kind].to("cpu" if own.is_meta else own.device, torch.int32)

    def complaint(self, layer: NeuroAdaLinear, adapter_name: str, entry: Entry) -> str | None:
        """Anything that the operation could not compute with."""
        if DELTAS not in entry or INDICES not in entry:
            return f"the file has no {DELTAS if DELTAS not in entry else INDICES} for it"
        for kind in {INDICES, NEURONS} & entry.keys():
            if entry[kind].is_floating_point() or entry[kind].is_complex() or entry[kind].dtype == torch.bool:
                return f"{kind} are {entry[kind].dtype}, not whole numbers"
        deltas, indices, neurons = entry[DELTAS], entry[INDICES].long(), entry.get(NEURONS)
        if neurons is not None and neurons.ndim != 1:
            return f"covered neurons have shape {list(neurons.shape)}"
        if deltas.dtype not in FLOATS:
            return f"deltas are {deltas.dtype}, not one of {', '.join(map(str, FLOATS))}"
        if deltas.shape != indices.shape or deltas.ndim != 2:
            return f"deltas have shape {list(deltas.shape)} and indices {list(indices.shape)}"
        covered = layer.out_features if neurons is None else len(neurons)
        if (
            len(deltas) != covered
            or not 1 <= covered <= layer.out_features
            or not 1 <= deltas.shape[1] <= layer.in_features
        ):
            return f"deltas have shape {list(deltas.shape)} for {covered} covered neurons"
        if not deltas.to(layer.neuroada_deltas[adapter_name].dtype).isfinite().all():
            return "some deltas are not finite numbers"
        if indices.min() < 0 or indices.max() >= layer.in_features:
            return f"indices reach from {int(indices.min())} to {int(indices.max())}"
        if (indices.diff(dim=1) <= 0).any():
            return "indices are repeated or out of order within a neuron"
        if neurons is not None:
            neurons = neurons.long()
            if neurons.min() < 0 or neurons.max() >= layer.out_features or (neurons.diff() <= 0).any():
                return "covered neurons are out of range, repeated or out of order"
        return None
