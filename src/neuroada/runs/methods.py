"""The methods that a recipe can name: adapters, each a PEFT configuration, and those that train the base weights."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import peft
import torch
from peft import PeftConfig, TaskType, get_peft_model
from torch import nn

from neuroada.baselines import unwrap_compact_mask
from neuroada.config import NeatConfig, NeuroAdaConfig
from neuroada.errors import ConfigError, NeuroAdaError, near
from neuroada.layers import NeuroAdaLinear
from neuroada.ops.sparse_delta.torch import shifted
from neuroada.runs.masks import Mask, MaskConfig
from neuroada.selection import CRITERIA
from neuroada.selection import OWN as OWN_SELECTION
from neuroada.tasks.classification import head_modules


@dataclass(frozen=True)
class Trainee:
    """A model about to train. trained: how many of its values training can change.

    settle: where what is trained is still to be chosen by data, does so, by batches and whether to show progress, and
    returns a digest of it. chosen: that digest, where no checkpoint says what was chosen.
    finish: to be called after training, before the model is saved.
    """

    model: nn.Module
    trained: int
    settle: Callable[[Sequence[Mapping[str, Any]], bool], str] | None = None
    chosen: str | None = None
    finish: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Method:
    """A fine-tuning method.

    config: name of its PEFT configuration; None where base weights themselves are trained, by `apply`.
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
    apply: Callable[[nn.Module, dict[str, Any], TaskType | None], Trainee] | None = None


def _full(model: nn.Module, settings: dict[str, Any], task_type: TaskType | None) -> Trainee:
    model.requires_grad_(True)
    return Trainee(model, sum(parameter.numel() for parameter in model.parameters()))


def _bitfit(model: nn.Module, settings: dict[str, Any], task_type: TaskType | None) -> Trainee:
    model.requires_grad_(False)
    biases = [parameter for name, parameter in model.named_parameters() if name.split(".")[-1] == "bias"]
    if not biases:
        raise ConfigError("method 'bitfit'", f"{type(model).__name__} has no biases", "Choose another method")
    chosen = {id(parameter): parameter for parameter in [*biases, *_head(model, task_type)]}.values()
    for parameter in chosen:
        parameter.requires_grad_(True)
    return Trainee(model, sum(parameter.numel() for parameter in chosen))


def _probe(model: nn.Module, settings: dict[str, Any], task_type: TaskType | None) -> Trainee:
    head = _head(model, task_type)
    if not head:
        found = f"{type(model).__name__} has no classification head in this task"
        raise ConfigError("method 'probe'", found, "Choose another method")
    model.requires_grad_(False)
    for parameter in head:
        parameter.requires_grad_(True)
    return Trainee(model, sum(parameter.numel() for parameter in head))


def _mask(model: nn.Module, settings: dict[str, Any], task_type: TaskType | None) -> Trainee:
    """The entries that NeuroAda would choose with these settings, found by it, unless `scope` widens the choice."""
    config: Any = _build("mask", MaskConfig, _with_head(model, settings, task_type), task_type)
    mask = Mask(model, config, partial(_head, task_type=task_type))
    if not mask.waits:
        mask.settle()
    finish = partial(unwrap_compact_mask, model)
    return Trainee(model, mask.trained, mask.settle if mask.waits else None, finish=finish)


def _head(model: nn.Module, task_type: TaskType | None) -> list[nn.Parameter]:
    """What is trained beside an adapter: the parameters of a new classification head."""
    if task_type is None:
        return [p for name in head_modules(model) for p in model.get_submodule(name).parameters()]
    if task_type is not TaskType.SEQ_CLS:
        return []
    heads = ("classifier", "score")
    return [parameter for name, parameter in model.named_parameters() if set(name.split(".")) & set(heads)]


def _with_head(model: nn.Module, settings: Mapping[str, Any], task_type: TaskType | None) -> dict[str, Any]:
    """Settings by which the head of an image classifier is trained too, as PEFT does by itself for its own tasks."""
    if task_type is not None:
        return dict(settings)
    return {**settings, "modules_to_save": [*(settings.get("modules_to_save") or ()), *head_modules(model)]}


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
    "bitfit": Method("BitFit", apply=_bitfit, merges=False),
    "probe": Method("linear probe", apply=_probe, merges=False),
    "mask": Method("mask-based sparse tuning", apply=_mask, merges=False),
    "full": Method("full fine-tuning", apply=_full, merges=False),
}

OWN: dict[str, type[PeftConfig]] = {"neuroada": NeuroAdaConfig, "neat": NeatConfig}

ADAPTERS = tuple(name for name, method in METHODS.items() if method.config is not None)
"""Those that leave the base weights alone and save a PEFT adapter; the others save a whole model."""


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Fail where `apply_method` would, as far as that can be told without a model.

    Raises:
        ConfigError: a setting that the method does not have, or a value that it refuses.
    """
    if settings.get("selection") == OWN_SELECTION:
        found = "a recipe cannot hold a function that chooses"
        raise ConfigError(f"{name}.selection={OWN_SELECTION!r}", found, near("", CRITERIA))
    if name in ADAPTERS:
        build_config(name, settings, TaskType.CAUSAL_LM)
    elif name == "mask":
        _build(name, MaskConfig, settings, None)
    elif settings:
        raise ConfigError(f"{name}.{next(iter(settings))}", f"{name} has no settings", "Leave the block out")


def apply_method(name: str, settings: Mapping[str, Any], model: nn.Module, task_type: TaskType | None) -> Trainee:
    """The model as the method trains it; the base model itself is changed. task_type: none to classify images.

    Raises:
        ConfigError: the method cannot train this model, or not with these settings.
    """
    method = METHODS[name]
    if method.virtual_tokens and task_type is None:
        raise ConfigError(f"method {name!r}", f"{method.label} is for text, and the task is images", "Choose another")
    if method.apply is not None:
        return method.apply(model, dict(settings), task_type)
    config = build_config(name, _with_head(model, settings, task_type), task_type)
    try:
        wrapped = get_peft_model(model, config)
    except NeuroAdaError:
        raise
    except ValueError as error:
        found = f"PEFT cannot apply it to {type(model).__name__}: {error}"
        raise ConfigError(f"method {name!r}", found, f"Set {name}.target_modules, or choose another method") from error
    return of_adapter(wrapped)


def of_adapter(model: peft.PeftModel | peft.PeftMixedModel) -> Trainee:
    """A model with an adapter, and how many of its values are trained as it is now."""
    return Trainee(model, model.get_nb_trainable_parameters()[0])


def build_config(name: str, settings: Mapping[str, Any], task_type: TaskType | None) -> PeftConfig:
    """The PEFT configuration of an adapter method `name` with the `settings` of its block in the recipe.

    Raises:
        ConfigError: a setting that the method does not have, a value that it refuses, or a PEFT without the method.
    """
    wanted = METHODS[name].config or ""
    config = OWN.get(name) or getattr(peft, wanted, None)
    if config is None:
        raise ConfigError(f"method {name!r}", f"PEFT {peft.__version__} has no {wanted}", "Install a newer PEFT")
    return _build(name, config, settings, task_type)


def _build(name: str, config: type[PeftConfig], settings: Mapping[str, Any], task_type: TaskType | None) -> PeftConfig:
    method = METHODS[name]
    own = {field.name for field in dataclasses.fields(config)}
    known = sorted(own - {field.name for field in dataclasses.fields(PeftConfig)} - set(method.fixed))
    for key in settings:
        if key not in known:
            raise ConfigError(f"{name}.{key}", f"{name} has no setting {key!r}", near(key, known))
    try:
        fields: dict[str, Any] = {**method.defaults, **settings, **method.fixed, "task_type": task_type}
        return config(**fields)
    except NeuroAdaError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"block {name!r}", str(error), "Correct the value") from error


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
