"""The model as its method trains it: with an adapter around it, or with base weights of its own made trainable."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import peft
from peft import TaskType, get_peft_model
from torch import nn

from neuroada.baselines import unwrap_compact_mask
from neuroada.baselines.mask_selection import Mask
from neuroada.errors import ConfigError, NeuroAdaError
from neuroada.recipe.methods import METHODS, OWN, build_config, known_settings
from neuroada.tasks.classification import head_modules
from neuroada.tuners.names import check_names
from neuroada.tuners.new_weights import find_new

PEFT_SAVES = ("classifier", "score")
"""What PEFT itself saves whole where texts are classified."""


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


def apply_method(name: str, settings: Mapping[str, Any], model: nn.Module, task_type: TaskType | None) -> Trainee:
    """The model as the method trains it; the base model itself is changed. task_type: none to classify images.

    Raises:
        ConfigError: the method cannot train this model, or not with these settings.
    """
    method = METHODS[name]
    if method.virtual_tokens and task_type is None:
        raise ConfigError(f"method {name!r}", f"{method.label} is for text, and the task is images", "Choose another")
    if name in _TRAIN_BASE_WEIGHTS:
        return _TRAIN_BASE_WEIGHTS[name](model, settings, task_type)
    config = build_config(name, _with_head(name, model, settings, task_type), task_type)
    if name not in OWN:  # ours look at their names themselves
        check_names(config, model)
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


def _full(model: nn.Module, settings: Mapping[str, Any], task_type: TaskType | None) -> Trainee:
    model.requires_grad_(True)
    return Trainee(model, sum(parameter.numel() for parameter in model.parameters()))


def _bitfit(model: nn.Module, settings: Mapping[str, Any], task_type: TaskType | None) -> Trainee:
    model.requires_grad_(False)
    biases = [parameter for name, parameter in model.named_parameters() if name.split(".")[-1] == "bias"]
    if not biases:
        raise ConfigError("method 'bitfit'", f"{type(model).__name__} has no biases", "Choose another method")
    chosen = {id(parameter): parameter for parameter in [*biases, *_head(model, task_type)]}.values()
    for parameter in chosen:
        parameter.requires_grad_(True)
    return Trainee(model, sum(parameter.numel() for parameter in chosen))


def _probe(model: nn.Module, settings: Mapping[str, Any], task_type: TaskType | None) -> Trainee:
    head = _head(model, task_type)
    if not head:
        found = f"{type(model).__name__} has no classification head in this task"
        raise ConfigError("method 'probe'", found, "Choose another method")
    model.requires_grad_(False)
    for parameter in head:
        parameter.requires_grad_(True)
    return Trainee(model, sum(parameter.numel() for parameter in head))


def _mask(model: nn.Module, settings: Mapping[str, Any], task_type: TaskType | None) -> Trainee:
    """The entries that NeuroAda would choose with these settings, found by it, unless `scope` widens the choice."""
    config: Any = build_config("mask", _with_head("mask", model, settings, task_type), task_type)
    mask = Mask(model, config, partial(_head, task_type=task_type))
    if not mask.waits:
        mask.settle()
    finish = partial(unwrap_compact_mask, model)
    return Trainee(model, mask.trained, mask.settle if mask.waits else None, finish=finish)


def _head(model: nn.Module, task_type: TaskType | None) -> list[nn.Parameter]:
    """What is trained beside an adapter: the parameters of a new classification head, and all others that are new."""
    names = [*_saved_whole(model, task_type), *(PEFT_SAVES if task_type is TaskType.SEQ_CLS else ())]
    return [parameter for name, parameter in model.named_parameters() if any(_within(name, each) for each in names)]


def _within(name: str, module: str) -> bool:
    return f".{module}." in f".{name}."


def _with_head(name: str, model: nn.Module, settings: Mapping[str, Any], task_type: TaskType | None) -> dict[str, Any]:
    """Settings by which what is new is trained whole too, beside what PEFT saves by itself for its own tasks."""
    whole = _saved_whole(model, task_type)
    if not whole or "modules_to_save" not in known_settings(name):
        return dict(settings)
    return {**settings, "modules_to_save": [*(settings.get("modules_to_save") or ()), *whole]}


def _saved_whole(model: nn.Module, task_type: TaskType | None) -> list[str]:
    """Names of the modules that are new, and of an image classifier's head."""
    heads = head_modules(model) if task_type is None else []
    covered = [*heads, *(PEFT_SAVES if task_type is TaskType.SEQ_CLS else ())]
    return [*heads, *(name for name in find_new(model).modules if name.split(".")[0] not in covered)]


_TRAIN_BASE_WEIGHTS: dict[str, Callable[[nn.Module, Mapping[str, Any], TaskType | None], Trainee]] = {
    "bitfit": _bitfit,
    "probe": _probe,
    "mask": _mask,
    "full": _full,
}
"""The methods of `METHODS` without a PEFT configuration."""
