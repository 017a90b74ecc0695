"""The methods that a recipe can name, each a PEFT configuration."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType

from neuroada.config import NeuroAdaConfig
from neuroada.errors import ConfigError, NeuroAdaError
from neuroada.layers import NeuroAdaLinear
from neuroada.ops.sparse_delta.torch import shifted
from neuroada.runs.near import near


@dataclass(frozen=True)
class Method:
    """A fine-tuning method; `exact_merge` says that merging promises equal outputs, bit for bit."""

    label: str
    config: type[PeftConfig]
    exact_merge: bool


METHODS = {
    "neuroada": Method("NeuroAda", NeuroAdaConfig, exact_merge=True),
    "lora": Method("LoRA", LoraConfig, exact_merge=False),
}

DEFAULT_TARGETS = "all-linear"


def build_config(name: str, settings: Mapping[str, Any], task_type: TaskType) -> PeftConfig:
    """The PEFT configuration of method `name` with the `settings` of its block in the recipe.

    Raises:
        ConfigError: a setting that the method does not have, or a value that it refuses.
    """
    config = METHODS[name].config
    own = {field.name for field in dataclasses.fields(config)}
    known = sorted(own - {field.name for field in dataclasses.fields(PeftConfig)})
    for key in settings:
        if key not in known:
            raise ConfigError(f"{name}.{key}", f"{name} has no setting {key!r}", near(key, known))
    fields: dict[str, Any] = {"target_modules": DEFAULT_TARGETS, **settings, "task_type": task_type}
    try:
        return config(**fields)
    except NeuroAdaError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"block {name!r}", str(error), "Correct the value") from error


def placement(model: PeftModel) -> str | None:
    """Where NeuroAda's layers put weight + deltas while they compute, and why; None without such layers."""
    chosen = Counter(layer.resolved_mode() for layer in _neuroada_layers(model))
    return "; ".join(f"{mode} on {count} layers: {reason}" for (mode, reason), count in chosen.items()) or None


@torch.no_grad()
def surviving_deltas(model: PeftModel) -> int | None:
    """How many deltas change their weight after rounding to its dtype.

    None without NeuroAda's layers, and where the pretrained values are not at hand (sharded or off-loaded).
    """
    active = [(layer, layer.present(layer.active_adapters)) for layer in _neuroada_layers(model)]
    counts = [_surviving(layer, names) for layer, names in active if names]
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def _neuroada_layers(model: PeftModel) -> list[NeuroAdaLinear]:
    return [module for module in model.modules() if isinstance(module, NeuroAdaLinear)]


def _surviving(layer: NeuroAdaLinear, names: list[str]) -> int | None:
    support = layer.support(names)
    originals = layer.originals(support, layer.stored_weight)
    return None if originals is None else int((shifted(originals, support.deltas) != originals).sum())
