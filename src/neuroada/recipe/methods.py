"""The methods that a recipe can name, and their settings: adapters, each a PEFT configuration, and those that train the
base weights."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import peft
from peft import PeftConfig, TaskType

from neuroada.baselines.mask_selection import MaskConfig
from neuroada.config import NeatConfig, NeuroAdaConfig
from neuroada.config.criteria import NEEDS
from neuroada.config.criteria import OWN as OWN_SELECTION
from neuroada.errors import ConfigError, NeuroAdaError, near
from neuroada.recipe.plain import shortened
from neuroada.recipe.settings import require_values


@dataclass(frozen=True)
class Method:
    """A fine-tuning method.

    config: name of its PEFT configuration; None where base weights themselves are trained.
    fixed: settings that make it this method. defaults: those that a recipe may change.
    merges: into the base weights. exact_merge: it promises equal outputs then, bit for bit.
    virtual_tokens: it puts some before every text, so that it is not for images and takes no positions.
    """

    label: str
    config: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=lambda: {"target_modules": "all-linear"})
    merges: bool = True
    exact_merge: bool = False
    virtual_tokens: bool = False


METHODS = {
    "neuroada": Method("NeuroAda", "NeuroAdaConfig", exact_merge=True),
    "neat": Method("NEAT", "NeatConfig"),
    "lora": Method("LoRA", "LoraConfig"),
    "dora": Method("DoRA", "LoraConfig", {"use_dora": True}),
    "shira": Method("SHiRA", "ShiraConfig"),
    "supertuning": Method("Super-Tuning", "SupertuningConfig"),
    "peanut": Method("PEANuT", "PeanutConfig"),
    "ia3": Method("(IA)³", "IA3Config", defaults={}),
    "prefix": Method(
        "prefix tuning", "PrefixTuningConfig", defaults={"num_virtual_tokens": 20}, merges=False, virtual_tokens=True
    ),
    "bitfit": Method("BitFit", merges=False),
    "probe": Method("linear probe", merges=False),
    "mask": Method("mask-based sparse tuning", merges=False),
    "full": Method("full fine-tuning", merges=False),
}

_PEFT_REFUSES = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError, ImportError)
"""What PEFT's configurations raise for values that they cannot take, or whose package is not there."""

OWN: dict[str, type[PeftConfig]] = {"neuroada": NeuroAdaConfig, "neat": NeatConfig}

ADAPTERS = tuple(name for name, method in METHODS.items() if method.config is not None)
"""Those that leave the base weights alone and save a PEFT adapter; the others save a whole model."""


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Fail where `training.wrapping.apply_method` would, as far as that can be told without a model.

    Raises:
        ConfigError: a setting that the method does not have, or a value that it refuses.
    """
    if settings.get("selection") == OWN_SELECTION:
        found = "a recipe cannot hold a function that chooses"
        raise ConfigError(f"{name}.selection={OWN_SELECTION!r}", found, near("", NEEDS))
    if name in ADAPTERS or name == "mask":
        build_config(name, settings, TaskType.CAUSAL_LM if name in ADAPTERS else None)
    elif settings:
        first = shortened(str(next(iter(settings))))
        raise ConfigError(f"{name}.{first}", f"{name} has no settings", "Leave the block out")


def build_config(name: str, settings: Mapping[str, Any], task_type: TaskType | None) -> PeftConfig:
    """The configuration of an adapter method or of the mask, with the `settings` of its block in the recipe.

    Raises:
        ConfigError: a setting that the method does not have, a value that it refuses, or a PEFT without the method.
    """
    config, known = _config_class(name), known_settings(name)
    for key in settings:
        if key not in known:
            shown_key = shortened(str(key))
            raise ConfigError(f"{name}.{shown_key}", f"{name} has no setting {shown_key!r}", near(str(key), known))
    method = METHODS[name]
    require_values(name, config, settings, method.defaults)
    try:
        fields: dict[str, Any] = {**method.defaults, **settings, **method.fixed, "task_type": task_type}
        return config(**fields)
    except NeuroAdaError as error:
        raise type(error)(shortened(error.asked, 300), shortened(error.found, 300), error.do) from None
    except _PEFT_REFUSES as error:
        found = shortened(str(error), 500) or type(error).__name__
        raise ConfigError(f"block {name!r}", found, "Correct the value") from error


def known_settings(name: str) -> list[str]:
    """The settings that a recipe may give an adapter method or the mask.

    Raises:
        ConfigError: a PEFT without the method.
    """
    own = {field.name for field in dataclasses.fields(_config_class(name))}
    return sorted(own - {field.name for field in dataclasses.fields(PeftConfig)} - set(METHODS[name].fixed))


def _config_class(name: str) -> type[PeftConfig]:
    wanted = METHODS[name].config or ""
    config = MaskConfig if name == "mask" else OWN.get(name) or getattr(peft, wanted, None)
    if config is None:
        raise ConfigError(f"method {name!r}", f"PEFT {peft.__version__} has no {wanted}", "Install a newer PEFT")
    return config
