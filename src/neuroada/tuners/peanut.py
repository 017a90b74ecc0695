"""From PEFT's PEANuT to NEAT: the same network under another name, and what it computes costs less here."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, load_peft_weights
from safetensors.torch import save_file
from torch import Tensor

from neuroada.config import NeatConfig, require_sound_weights
from neuroada.errors import AdapterFileError
from neuroada.tuners import fingerprint
from neuroada.tuners.neat_file import NeatFile

_MARK = ".peanut_"


def convert_peanut(source: str | Path, output: str | Path) -> NeatConfig:
    """Write a saved PEANuT adapter as a NEAT adapter, which PEFT loads as any other.

    PEANuT reads a weight along its outputs (side "output"), and its depth counts pairs of hidden layers: 0, 1, 2 are
    depth 2, 4, 6 here. Heads and other modules in the file are taken over as they are. A PEANuT file does not say which
    base weights it was trained on, so that loading the converted one cannot tell.

    Args:
        source: folder of the PEANuT adapter.
        output: folder for the NEAT adapter, without an adapter in it.

    Raises:
        AdapterFileError: `source` holds another kind of adapter, an incomplete one, a damaged file or a pickle; or
            `output` holds an adapter already.
    """
    target = Path(output) / SAFETENSORS_WEIGHTS_NAME
    if target.exists():
        raise AdapterFileError(
            f"Converting to {output}", f"{target.name} exists there already", "Choose another folder"
        )
    if not (Path(source) / SAFETENSORS_WEIGHTS_NAME).exists() and not (Path(source) / WEIGHTS_NAME).exists():
        raise AdapterFileError(f"Converting the adapter in {source}", "no adapter is there", "Give its folder")
    require_sound_weights(Path(source))
    config = _converted(PeftConfig.from_pretrained(str(source)), source)
    state = load_peft_weights(str(source), device="cpu")
    layers: dict[str, dict[str, Tensor]] = {}
    converted = {}
    for key, tensor in state.items():
        name, mark, part = key.rpartition(_MARK)
        if mark:
            layers.setdefault(name, {})[part.removesuffix(".weight")] = tensor.float()
        else:
            converted[key] = tensor
    if not layers:
        raise AdapterFileError(f"Converting the adapter in {source}", "it adapts no weight", "Save the adapter again")
    for name, parts in layers.items():
        converted |= {f"{name}.{kind}": tensor for kind, tensor in _entry(name, parts, config, source).items()}
    converted[NeatFile.fingerprints] = torch.zeros(len(layers), fingerprint.LENGTH, dtype=torch.uint8)
    config.save_pretrained(str(output))
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    save_file(converted, beside, metadata={"format": "pt"})
    os.replace(beside, target)
    return config


def _converted(config: PeftConfig, source: str | Path) -> NeatConfig:
    if config.peft_type != "PEANUT":
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise AdapterFileError(
            f"Converting the adapter in {source}",
            f"it is a {kind} adapter, not one of PEANuT",
            "Give the folder of a PEANuT adapter",
        )
    found = config.to_dict()
    taken: dict[str, Any] = {field.name: found[field.name] for field in fields(NeatConfig) if field.name in found}
    taken |= {"depth": 2 + 2 * found["depth"], "activation": found["act_fn"], "side": "output"}
    del taken["peft_type"]
    return NeatConfig(**taken)


def _entry(name: str, parts: dict[str, Tensor], config: NeatConfig, source: str | Path) -> dict[str, Tensor]:
    pairs = range((config.depth - 2) // 2)
    hidden = [f"{kind}.{pair}" for kind in ("encoders", "decoders") for pair in pairs]
    expected = {"A", "B", *hidden}
    different = expected ^ set(parts)
    if different:
        has = "has no" if min(different) in expected else "has a"
        raise AdapterFileError(
            f"Converting the PEANuT adapter in {source}",
            f"it {has} peanut_{min(different)} for {name.removeprefix('base_model.model.')}",
            "Save the adapter again: the file is damaged, or of another depth than adapter_config.json says",
        )
    entry = {"neat_in": parts["A"], "neat_out": parts["B"]}
    return entry | {"neat_hidden": torch.stack([parts[part] for part in hidden])} if hidden else entry
