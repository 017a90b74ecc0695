"""What an adapter's file may hold beside the adapter's own entries, and a digest of all the values in it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping

import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from neuroada.errors import AdapterFileError
from neuroada.tuners.new_weights import embedding_layers

DIGEST_LENGTH = 16
SHOWN = 5
"""Names that a message lists; a choice."""


def wrapped_entries(model: nn.Module, adapter_name: str) -> dict[str, str]:
    """Entries of modules that are saved whole: by its name in the file, the name of each in the model."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            name = name.removeprefix("_fsdp_wrapped_module.")
            loads: Mapping[str, str] = module.adapter_state_dict_load_map(adapter_name)
            found |= {f"{name}.{key}": f"{name}.{stored}" for key, stored in loads.items()}
    return found


def digest(entries: Mapping[str, Tensor]) -> Tensor | None:
    """uint8 [16] of the names, dtypes, shapes and values of a file; None where a process has not got all of them."""
    found = hashlib.blake2b(digest_size=DIGEST_LENGTH)
    for name, tensor in sorted(entries.items()):
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta:
            return None
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().tobytes())
    return torch.frombuffer(bytearray(found.digest()), dtype=torch.uint8)


def check_extras(model: nn.Module, adapter_name: str, extras: Mapping[str, Tensor], method: str) -> dict[str, Tensor]:
    """What is to be loaded of entries that are not the adapter's own.

    Modules that are saved whole are, if they are sound. Embeddings, which PEFT saves where they were resized, are if
    only rows at their end differ from the model's; a warning says so. Base weights that equal the model's are left out.

    Raises:
        AdapterFileError: an entry of another name, or one that would change a base weight.
    """
    asked = f"Loading a {method} adapter"
    whole = set(wrapped_entries(model, adapter_name).values())
    own, embeddings = model.state_dict(), _embedding_names(model)
    loaded, unknown = {}, []
    for key, tensor in extras.items():
        mine = own.get(key)
        if mine is None or (key not in whole and not key.startswith(embeddings)):
            unknown.append(key)
        elif key in whole:
            _require_sound(asked, key, tensor, mine)
            loaded[key] = tensor
        elif _is_appended(asked, key, tensor, mine):
            loaded[key] = tensor
    if unknown:
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        raise AdapterFileError(
            asked,
            f"the file has entries that this configuration does not own: {', '.join(sorted(unknown)[:SHOWN])}{more}",
            "Load a file that save_pretrained wrote; if modules were trained whole, name them in modules_to_save",
        )
    return loaded


def _embedding_names(model: nn.Module) -> tuple[str, ...]:
    """How the names of the entries of a model's input and output embeddings begin."""
    layers = embedding_layers(model)
    return tuple(f"{name}." for name, module in model.named_modules() if any(module is layer for layer in layers))


def _require_sound(asked: str, key: str, tensor: Tensor, mine: Tensor) -> None:
    found = None
    if tensor.shape != mine.shape:
        found = f"{key} has shape {list(tensor.shape)}, and the model's {list(mine.shape)}"
    elif tensor.is_floating_point() != mine.is_floating_point():
        found = f"{key} is {tensor.dtype}, and the model's {mine.dtype}"
    elif mine.is_floating_point() and not tensor.to(mine.dtype).isfinite().all():
        found = f"{key} has entries that are not finite numbers"
    if found is not None:
        raise AdapterFileError(asked, found, "Save the adapter again, or load it onto the model it was trained on")


def _is_appended(asked: str, key: str, tensor: Tensor, mine: Tensor) -> bool:
    """Whether an embedding brings rows that this model has not got: all of its last ones, and at most half of them.

    AdapterFileError if it would change others.
    """
    _require_sound(asked, key, tensor, mine)
    if type(mine) not in (Tensor, nn.Parameter) or mine.is_meta:
        return True
    same = (tensor.to(mine.device, mine.dtype) == mine).reshape(len(mine), -1).all(1)
    changed = (~same).nonzero().flatten()
    if not len(changed):
        return False
    first = int(changed[0])
    if first < len(mine) // 2 or len(changed) != len(mine) - first:
        raise AdapterFileError(
            asked,
            f"{key} would change {len(changed):,} of {len(mine):,} rows of a base weight, from row {first:,} on",
            "Load it onto the base model that it was trained on; an embedding to be trained belongs in modules_to_save",
        )
    warnings.warn(
        f"The adapter's file brings {len(changed):,} rows at the end of {key} that this model does not have; they stay "
        "when the adapter is unloaded",
        stacklevel=2,
    )
    return True
