"""Adapter files: what PEFT's save_pretrained writes for a method of this library, and the checks on what it reads.

Per adapted weight the method's own entries, under PEFT's usual names. Once a file: fingerprints, uint8 [weights, 16],
by which a base model is recognised, and a digest, uint8 [16], by which damage is. Modules that are trained whole are
beside them. Nothing else may be in a file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from neuroada.config import AdapterConfig
from neuroada.errors import AdapterFileError
from neuroada.layers import AdapterLayer
from neuroada.ops.sparse_delta import Support
from neuroada.tuners.files import extras, fingerprint
from neuroada.tuners.nested import require_unmerged_wrappers
from neuroada.tuners.processes import has_weights

PEFT_PREFIX = "base_model.model."
INSIDE = ".base_layer"
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Dtypes that values of an adapter may have in a file."""
Entry = dict[str, Tensor]


def plain(name: str) -> str:
    """The name in a file of a layer that another adapter's may be around, as in PEFT's mixed models."""
    while name.endswith(INSIDE):
        name = name.removesuffix(INSIDE)
    return name


def _without_prefix(entries: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in entries.items()}


class AdapterFile(ABC):
    """The file format of one method.

    method: as people know it. layer_class: of its adapted layers. kinds: names of its entries, the first of which
    every adapted weight has. fingerprints, digest: names of those.
    """

    method: ClassVar[str]
    layer_class: ClassVar[type[Any]]
    kinds: ClassVar[tuple[str, ...]]
    fingerprints: ClassVar[str]
    digest: ClassVar[str]

    @abstractmethod
    def entry(self, layer: Any, adapter_name: str, state: Entry) -> Entry:
        """What is saved of a layer, by kind. state: what a state dict holds of it, if anything."""

    @abstractmethod
    def support(self, layer: Any, entry: Entry) -> Support:
        """Where the base weight is looked at for its fingerprint."""

    @abstractmethod
    def complaint(self, layer: Any, adapter_name: str, entry: Entry) -> str | None:
        """Why a layer cannot take an entry of a file, or None."""

    def as_stored(self, kind: str, tensor: Tensor) -> Tensor:
        """A tensor of a file as the layer has it."""
        return tensor

    @abstractmethod
    def make_room(self, layer: Any, adapter_name: str, entry: Entry) -> None:
        """Let a layer take an entry of another shape than its own."""

    def layers(self, model: nn.Module, adapter_name: str) -> dict[str, AdapterLayer]:
        """Those that have the adapter, by name."""
        return {
            name.removeprefix("_fsdp_wrapped_module."): cast(AdapterLayer, module)
            for name, module in model.named_modules()
            if isinstance(module, self.layer_class) and adapter_name in getattr(module, self.kinds[0])
        }

    def pack(self, model: nn.Module, adapter_name: str, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """The entries of a model's state dict that make up the adapter's file, adapter name still in the keys.

        Raises:
            MergeError: LoRA is merged into a weight that a fingerprint is to be made of.
        """
        packed, prints, named = {}, {}, {}
        layers = self.layers(model, adapter_name)
        require_unmerged_wrappers(model, layers.values(), f"Saving adapter {adapter_name!r}")
        for name, layer in layers.items():
            keys = {kind: f"{name}.{kind}.{adapter_name}" for kind in self.kinds}
            state = {kind: state_dict[key] for kind, key in keys.items() if key in state_dict}
            entry = self.entry(layer, adapter_name, state)
            packed |= {f"{plain(name)}.{kind}.{adapter_name}": tensor for kind, tensor in entry.items()}
            named |= {f"{plain(name)}.{kind}": tensor for kind, tensor in entry.items()}
            stored = state_dict.get(f"{name}.base_layer.weight", layer.stored_weight)
            prints[name] = fingerprint.make(layer.originals(self.support(layer, entry), stored))
        if prints:
            packed[self.fingerprints] = torch.stack([prints[name] for name in sorted(prints)])
            whole = extras.wrapped_entries(model, adapter_name)
            named |= {name: state_dict[key] for name, key in whole.items() if key in state_dict}
            found = extras.digest(_without_prefix(named | {self.fingerprints: packed[self.fingerprints]}))
            packed |= {} if found is None else {self.digest: found}
        return packed

    def unpack(
        self, model: nn.Module, config: AdapterConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Check the entries of a file against the model, all of them before anything is changed, and make room.

        Returns:
            The entries as the model stores them, adapter name not yet in the keys.

        Raises:
            AdapterFileError: entries are missing, unknown, of another shape, out of range, repeated or not finite; the
                base model is not the one that was trained on (unless `config.verify_base` is False); or the values are
                not those that were saved.
        """
        named = self.layers(model, adapter_name)
        layers = {plain(name).removeprefix(PEFT_PREFIX): layer for name, layer in named.items()}
        nested = {plain(name).removeprefix(PEFT_PREFIX) for name in named if plain(name) != name}
        entries: dict[str, Entry] = {}
        unpacked, own, beside = {}, {}, {}
        for key, tensor in state_dict.items():
            name, _, kind = key.rpartition(".")
            if kind in self.kinds:
                weight = name.removeprefix(PEFT_PREFIX)
                entries.setdefault(weight, {})[kind] = tensor
                own[key] = tensor
                unpacked[f"{name}{INSIDE if weight in nested else ''}.{kind}"] = tensor
            elif key not in (self.fingerprints, self.digest):
                beside[key] = tensor
        self._require_same_layers(set(entries), set(layers))
        for name, entry in entries.items():
            found = self.complaint(layers[name], adapter_name, entry)
            if found is not None:
                raise self._refuse(name, layers[name], found)
        loaded = extras.check_extras(model, adapter_name, beside, self.method)
        if config.verify_base and has_weights():
            self._verify_base(entries, layers, state_dict.get(self.fingerprints, torch.empty(0)))
        whole = {key: name for name, key in extras.wrapped_entries(model, adapter_name).items()}
        own |= {whole[key]: tensor for key, tensor in loaded.items() if key in whole}
        own |= {key: state_dict[key] for key in (self.fingerprints,) if key in state_dict}
        self._verify_digest(own, state_dict)
        for name, entry in entries.items():
            self.make_room(layers[name], adapter_name, entry)
        return {key: self.as_stored(key.rpartition(".")[2], tensor) for key, tensor in unpacked.items()} | loaded

    def _verify_digest(self, entries: dict[str, Tensor], state_dict: dict[str, Tensor]) -> None:
        """Files of before it was saved have none."""
        expected, found = state_dict.get(self.digest), extras.digest(_without_prefix(entries))
        if expected is None or found is None or torch.equal(expected.cpu(), found):
            return
        raise AdapterFileError(
            f"Loading a {self.method} adapter",
            f"its values are not those that were saved: they do not match {self.digest}",
            "Copy or save the adapter again; if you changed values on purpose, leave that entry out of the file",
        )

    def _require_same_layers(self, found: set[str], expected: set[str]) -> None:
        if found == expected:
            return
        extra, missing = sorted(found - expected), sorted(expected - found)
        parts = []
        if extra:
            parts.append(f"the file has {len(extra)} weights that the model does not adapt, such as {extra[0]}")
        if missing:
            parts.append(f"the file lacks {len(missing)} adapted weights, such as {missing[0]}")
        raise AdapterFileError(
            f"Loading a {self.method} adapter",
            "; ".join(parts),
            "Load it onto the architecture it was trained on, with the adapter_config.json saved beside it",
        )

    def _refuse(self, name: str, layer: AdapterLayer, found: str) -> AdapterFileError:
        return AdapterFileError(
            f"Loading the {self.method} adapter of {name}, a weight of {layer.out_features} neurons with "
            f"{layer.in_features} inputs",
            found,
            "Load it onto the base model it was trained on, or save the adapter again if the file is damaged",
        )

    def _verify_base(self, entries: dict[str, Entry], layers: dict[str, AdapterLayer], prints: Tensor) -> None:
        if prints.shape != (len(entries), fingerprint.LENGTH) or prints.dtype != torch.uint8:
            raise AdapterFileError(
                f"Loading a {self.method} adapter",
                f"{self.fingerprints} (by which the base model is recognised) has shape {list(prints.shape)} for "
                f"{len(entries)} weights",
                "Save the adapter again: the file is damaged",
            )
        for name, expected in zip(sorted(entries), prints, strict=True):
            entry, layer = entries[name], layers[name]
            originals = layer.originals(self.support(layer, entry), layer.stored_weight)
            difference = fingerprint.difference(expected, originals, exact=layer.quantization_backend is None)
            if difference is not None:
                raise AdapterFileError(
                    f"Loading the {self.method} adapter of {name}",
                    f"the base weights it was trained on are not those of this model ({difference})",
                    "Load the base model that base_model_name_or_path names in adapter_config.json, without another "
                    "adapter merged into it; to load onto this one all the same, pass verify_base=False",
                )
