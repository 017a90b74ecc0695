"""The adapter file: what PEFT's save_pretrained writes for NeuroAda, and the checks on what it reads.

Per adapted weight, under PEFT's usual names: `neuroada_deltas` [N, K] in the deltas' dtype, `neuroada_indices` [N, K]
in the smallest unsigned type that holds I, `neuroada_neurons` [N] likewise for O where coverage < 1. Once a file:
`neuroada_fingerprints` uint8 [weights, 16], by which a base model is recognised. N and K may differ by weight.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neuroada.config import NeuroAdaConfig
from neuroada.errors import AdapterFileError
from neuroada.layers import NeuroAdaLinear
from neuroada.ops.sparse_delta import Support
from neuroada.tuners import fingerprint
from neuroada.tuners.processes import has_weights

DELTAS, INDICES, NEURONS, FINGERPRINTS = (
    "neuroada_deltas",
    "neuroada_indices",
    "neuroada_neurons",
    "neuroada_fingerprints",
)
PEFT_PREFIX = "base_model.model."


def smallest_unsigned(bound: int) -> torch.dtype:
    """The smallest unsigned type that holds every integer in [0, bound)."""
    return next(dtype for dtype in (torch.uint8, torch.uint16, torch.uint32) if bound <= torch.iinfo(dtype).max + 1)


def _layers(model: nn.Module, adapter_name: str) -> dict[str, NeuroAdaLinear]:
    return {
        name.removeprefix("_fsdp_wrapped_module."): module
        for name, module in model.named_modules()
        if isinstance(module, NeuroAdaLinear) and adapter_name in module.neuroada_deltas
    }


def pack(model: nn.Module, adapter_name: str, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a model's state dict that make up the adapter's file, adapter name still in the keys."""
    packed, prints = {}, {}
    for name, layer in _layers(model, adapter_name).items():
        own = {DELTAS: layer.neuroada_deltas[adapter_name].detach(), INDICES: layer.neuroada_indices[adapter_name]}
        deltas, indices = (state_dict.get(f"{name}.{kind}.{adapter_name}", own[kind]) for kind in (DELTAS, INDICES))
        neurons = state_dict.get(f"{name}.{NEURONS}.{adapter_name}", layer.neurons_of(adapter_name))
        packed[f"{name}.{DELTAS}.{adapter_name}"] = deltas
        packed[f"{name}.{INDICES}.{adapter_name}"] = indices.to(smallest_unsigned(layer.in_features))
        if neurons is not None:
            packed[f"{name}.{NEURONS}.{adapter_name}"] = neurons.to(smallest_unsigned(layer.out_features))
        stored = state_dict.get(f"{name}.base_layer.weight", layer.stored_weight)
        prints[name] = fingerprint.make(layer.originals(Support(indices, deltas, neurons), stored))
    if prints:
        packed[FINGERPRINTS] = torch.stack([prints[name] for name in sorted(prints)])
    return packed


def unpack(
    model: nn.Module, config: NeuroAdaConfig, adapter_name: str, state_dict: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Check the entries of a file against the model, all of them before anything is changed, and make room for them.

    Returns:
        The entries as the model stores them (indices and neurons int32), adapter name not yet in the keys.

    Raises:
        AdapterFileError: entries are missing, of another shape, out of range, repeated or not finite; or the base
            model is not the one that was trained on (unless `config.verify_base` is False).
    """
    layers = {name.removeprefix(PEFT_PREFIX): layer for name, layer in _layers(model, adapter_name).items()}
    entries: dict[str, dict[str, Tensor]] = {}
    unpacked = {}
    for key, tensor in state_dict.items():
        name, _, kind = key.rpartition(".")
        if kind in (DELTAS, INDICES, NEURONS):
            entries.setdefault(name.removeprefix(PEFT_PREFIX), {})[kind] = tensor
            unpacked[key] = tensor if kind == DELTAS else tensor.to(torch.int32)
        elif key != FINGERPRINTS:
            unpacked[key] = tensor
    _require_same_layers(set(entries), set(layers))
    for name, entry in entries.items():
        _require_sound(name, entry, layers[name])
    if config.verify_base and has_weights():
        _verify_base(entries, layers, state_dict.get(FINGERPRINTS, torch.empty(0)))
    for name, entry in entries.items():
        layer = layers[name]
        layer.resize(adapter_name, entry[DELTAS].shape, covers_all=NEURONS not in entry)
        for kind in {INDICES, NEURONS} & entry.keys():
            container = getattr(layer, kind)
            if not container.persistent:  # what state dicts leave out, `load_state_dict` leaves out too
                own = container[adapter_name]
                container[adapter_name] = entry[kind].to("cpu" if own.is_meta else own.device, torch.int32)
    return unpacked


def _require_same_layers(found: set[str], expected: set[str]) -> None:
    if found == expected:
        return
    extra, missing = sorted(found - expected), sorted(expected - found)
    parts = []
    if extra:
        parts.append(f"the file has {len(extra)} weights that the model does not adapt, such as {extra[0]}")
    if missing:
        parts.append(f"the file lacks {len(missing)} adapted weights, such as {missing[0]}")
    raise AdapterFileError(
        "Loading a NeuroAda adapter",
        "; ".join(parts),
        "Load it onto the architecture it was trained on, with the adapter_config.json saved beside it",
    )


def _require_sound(name: str, entry: dict[str, Tensor], layer: NeuroAdaLinear) -> None:
    def refuse(found: str) -> AdapterFileError:
        return AdapterFileError(
            f"Loading the NeuroAda adapter of {name}, a weight of {layer.out_features} neurons with "
            f"{layer.in_features} inputs",
            found,
            "Load it onto the base model it was trained on, or save the adapter again if the file is damaged",
        )

    if DELTAS not in entry or INDICES not in entry:
        raise refuse(f"the file has no {DELTAS if DELTAS not in entry else INDICES} for it")
    for kind in {INDICES, NEURONS} & entry.keys():
        if entry[kind].is_floating_point() or entry[kind].dtype == torch.bool:
            raise refuse(f"{kind} are {entry[kind].dtype}, not whole numbers")
    deltas, indices, neurons = entry[DELTAS], entry[INDICES].long(), entry.get(NEURONS)
    if neurons is not None and neurons.ndim != 1:
        raise refuse(f"covered neurons have shape {list(neurons.shape)}")
    if deltas.shape != indices.shape or deltas.ndim != 2:
        raise refuse(f"deltas have shape {list(deltas.shape)} and indices {list(indices.shape)}")
    covered = layer.out_features if neurons is None else len(neurons)
    if len(deltas) != covered or covered > layer.out_features or not 1 <= deltas.shape[1] <= layer.in_features:
        raise refuse(f"deltas have shape {list(deltas.shape)} for {covered} covered neurons")
    if not deltas.is_floating_point() or not deltas.isfinite().all():
        raise refuse("some deltas are not finite numbers")
    if indices.min() < 0 or indices.max() >= layer.in_features:
        raise refuse(f"indices reach from {int(indices.min())} to {int(indices.max())}")
    if (indices.diff(dim=1) <= 0).any():
        raise refuse("indices are repeated or out of order within a neuron")
    if neurons is not None:
        neurons = neurons.long()
        if neurons.min() < 0 or neurons.max() >= layer.out_features or (neurons.diff() <= 0).any():
            raise refuse("covered neurons are out of range, repeated or out of order")


def _verify_base(entries: dict[str, dict[str, Tensor]], layers: dict[str, NeuroAdaLinear], prints: Tensor) -> None:
    if prints.shape != (len(entries), fingerprint.LENGTH) or prints.dtype != torch.uint8:
        raise AdapterFileError(
            "Loading a NeuroAda adapter",
            f"{FINGERPRINTS} (by which the base model is recognised) has shape {list(prints.shape)} for "
            f"{len(entries)} weights",
            "Save the adapter again: the file is damaged",
        )
    for name, expected in zip(sorted(entries), prints, strict=True):
        entry, layer = entries[name], layers[name]
        support = Support(entry[INDICES], entry[DELTAS], entry.get(NEURONS))
        originals = layer.originals(support, layer.stored_weight)
        difference = fingerprint.difference(expected, originals, exact=layer.quantization_backend is None)
        if difference is not None:
            raise AdapterFileError(
                f"Loading the NeuroAda adapter of {name}",
                f"the base weights it was trained on are not those of this model ({difference})",
                "Load the base model that base_model_name_or_path names in adapter_config.json, without another "
                "adapter merged into it; to load onto this one all the same, pass verify_base=False",
            )
