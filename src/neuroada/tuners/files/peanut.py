"""From PEFT's PEANuT to NEAT: the same network under another name, and what it computes costs less here."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, load_peft_weights
from safetensors.torch import save_file
from torch import Tensor

from neuroada.config import NeatConfig, require_sound_weights
from neuroada.errors import AdapterFileError
from neuroada.tuners.files import fingerprint
from neuroada.tuners.files.neat import NeatFile

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
    source, output = Path(source), Path(output)
    asked = f"Converting the adapter in {source}"
    there = [name for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME) if (output / name).exists()]
    if there:
        raise AdapterFileError(f"Converting to {output}", f"{there[0]} exists there already", "Choose another folder")
    if output.exists() and not output.is_dir():
        raise AdapterFileError(f"Converting to {output}", "it is not a folder", "Choose another")
    if not any((source / name).exists() for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)):
        raise AdapterFileError(asked, "no adapter is there", "Give its folder")
    require_sound_weights(source)
    config = _converted(source, asked)
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
        raise AdapterFileError(asked, "it adapts no weight", "Save the adapter again")
    for name, parts in layers.items():
        converted |= {f"{name}.{kind}": tensor for kind, tensor in _entry(name, parts, config, asked).items()}
    converted[NeatFile.fingerprints] = torch.zeros(len(layers), fingerprint.LENGTH, dtype=torch.uint8)
    config.save_pretrained(str(output))
    target = output / SAFETENSORS_WEIGHTS_NAME
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    save_file(converted, beside, metadata={"format": "pt"})
    os.replace(beside, target)
    return config


def _converted(source: Path, asked: str) -> NeatConfig:
    do = "Give the folder of a PEANuT adapter"
    try:
        content = json.loads((source / CONFIG_NAME).read_text(encoding="utf-8"))
        kind = content["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterFileError(asked, f"{CONFIG_NAME} cannot be read ({error!r})", do) from error
    if kind != "PEANUT":
        raise AdapterFileError(asked, f"it is a {kind} adapter, not one of PEANuT", do)
    try:
        found = PeftConfig.from_pretrained(str(source)).to_dict()
        depth = 2 + 2 * int(found["depth"])
    except (ValueError, TypeError) as error:
        raise AdapterFileError(asked, f"{CONFIG_NAME} says what PEANuT does not know ({error})", do) from error
    taken: dict[str, Any] = {field.name: found[field.name] for field in fields(NeatConfig) if field.name in found}
    taken |= {"depth": depth, "activation": found["act_fn"], "side": "output"}
    del taken["peft_type"]
    return NeatConfig(**taken)


def _entry(name: str, parts: dict[str, Tensor], config: NeatConfig, asked: str) -> dict[str, Tensor]:
    pairs = range((config.depth - 2) // 2)
    hidden = [f"{kind}.{pair}" for kind in ("encoders", "decoders") for pair in pairs]
    expected = {"A", "B", *hidden}
    layer = name.removeprefix("base_model.model.")
    different = expected ^ set(parts)
    if different:
        has = "has no" if min(different) in expected else "has a"
        do = "Save the adapter again: the file is damaged, or of another depth than adapter_config.json says"
        raise AdapterFileError(asked, f"it {has} peanut_{min(different)} for {layer}", do)
    rows = parts["B"].shape[:1]
    shapes = {"A": (config.r, *rows), "B": (*rows, config.r)} | dict.fromkeys(hidden, (config.r, config.r))
    for part, shape in shapes.items():
        if parts[part].shape != shape:
            found = (
                f"peanut_{part} of {layer} has shape {list(parts[part].shape)}, and r={config.r} gives {list(shape)}"
            )
            raise AdapterFileError(asked, found, "Save the adapter again")
        if not parts[part].isfinite().all():
            found = f"some entries of peanut_{part} of {layer} are not finite numbers"
            raise AdapterFileError(asked, found, "Save the adapter again, before it diverged")
    entry = {"neat_in": parts["A"], "neat_out": parts["B"]}
    return entry | {"neat_hidden": torch.stack([parts[part] for part in hidden])} if hidden else entry
