"""Weights that no checkpoint brought, such as a new head: they are trained and saved whole, never adapted.

Transformers marks each parameter that a checkpoint brought (`_is_hf_initialized`); of a model in which some are marked,
the others are new. Where none is marked, as in a model made from a configuration or copied, the head is known by the
model's class alone.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from neuroada.config import AdapterConfig

MARK = "_is_hf_initialized"

TASK_CLASS = re.compile(
    r"For((Sequence|Token|Image|Video|Audio|AudioFrame|Object)Classification"
    r"|QuestionAnswering|MultipleChoice|NextSentencePrediction|XVector)"
)
"""In the name of a class of Transformers that puts the head of a task on a pretrained body."""

SHOWN = 5
"""Names that a message lists; a choice."""

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential, nn.ParameterList, nn.ParameterDict)
"""Their members are named one by one: PEFT does not save a list or a dictionary whole."""


@dataclass(frozen=True)
class NewWeights:
    """modules: names of those in which every parameter is new, the outermost. loose: names of other new parameters."""

    modules: list[str]
    loose: list[str]


def find_new(model: nn.Module) -> NewWeights:
    """What is new in a model, adapted or not; embeddings are among the loose ones, since they may only be larger."""
    found = NewWeights([], [])
    if any(getattr(parameter, MARK, False) for parameter in model.parameters()):
        embeddings = embedding_layers(model)
        moved = any("_hf_hook" in module.__dict__ for module in model.modules())
        body = _body(model) if moved else None  # what accelerate moved has lost its mark
        found.loose.extend(
            name for name, each in model._parameters.items() if each is not None and not getattr(each, MARK, False)
        )
        for name, child in model.named_children():
            if name != body:
                _look(child, name, embeddings, found)
    elif TASK_CLASS.search(type(model).__name__):
        body = _body(model)
        if body is not None:
            for name, child in model.named_children():
                if name != body and any(True for _ in child.parameters()):
                    _members(child, name, found)
    return found


def save_new_whole(config: AdapterConfig, model: nn.Module) -> None:
    """Add what is new to a configuration's `modules_to_save`, with a warning that names it, and name what cannot be."""
    found, kind = find_new(model), type(model).__name__
    named = list(config.modules_to_save or ())
    missing = [name for name in found.modules if not _is_among(name, named)]
    if missing:
        config.modules_to_save = [*named, *missing]
        warnings.warn(
            f"{', '.join(missing)} of {kind} is new, or the head of its task: it is trained and saved whole beside the "
            "adapter (modules_to_save)",
            stacklevel=6,
        )
    loose = [name for name in found.loose if not _is_among(name, named)]
    if loose:
        more = f" and {len(loose) - SHOWN} more" if len(loose) > SHOWN else ""
        warnings.warn(
            f"{', '.join(loose[:SHOWN])}{more} of {kind} looks new or resized: no checkpoint brought it as it is. It "
            "stays frozen and is not saved; if it should be trained, name its module in modules_to_save",
            stacklevel=6,
        )


def _look(module: nn.Module, name: str, embeddings: list[nn.Module], found: NewWeights) -> None:
    if isinstance(module, AuxiliaryTrainingWrapper):
        module = module.original_module  # type: ignore[assignment]
    if isinstance(module, BaseTunerLayer):
        return
    parameters = [parameter for parameter in module.parameters() if _is_plain(parameter)]
    new = [parameter for parameter in parameters if not getattr(parameter, MARK, False)]
    if not new:
        return
    if any(module is each for each in embeddings):
        found.loose.append(f"{name}.weight")
    elif len(new) == len(parameters) and not any(each in module.modules() for each in embeddings):
        _members(module, name, found)
    else:
        found.loose.extend(
            f"{name}.{key}" for key, parameter in module._parameters.items() if any(parameter is each for each in new)
        )
        for key, child in module.named_children():
            _look(child, f"{name}.{key}", embeddings, found)


def _members(module: nn.Module, name: str, found: NewWeights) -> None:
    """The module itself, or what is in it where it is a container."""
    if not isinstance(module, _CONTAINERS):
        found.modules.append(name)
        return
    found.loose.extend(f"{name}.{key}" for key, parameter in module._parameters.items() if parameter is not None)
    for key, child in module.named_children():
        if any(True for _ in child.parameters()):
            _members(child, f"{name}.{key}", found)


def _is_plain(parameter: nn.Parameter) -> bool:
    """Whether it could carry the mark: quantised ones are made anew after loading."""
    return type(parameter) is nn.Parameter and parameter.is_floating_point()


def embedding_layers(model: nn.Module) -> list[nn.Module]:
    """The input and output embeddings of a model of Transformers, as far as it names them."""
    find: Any = model
    if not hasattr(model, "get_input_embeddings"):
        return []
    try:
        found = find.get_input_embeddings(), find.get_output_embeddings()
    except NotImplementedError:
        return []
    return [module for module in found if isinstance(module, nn.Module)]


def _body(model: nn.Module) -> str | None:
    prefix = getattr(model, "base_model_prefix", "")
    return prefix if prefix in dict(model.named_children()) else None


def _is_among(name: str, given: list[str]) -> bool:
    """Whether PEFT would save the module, or one that it is in, by one of these names."""
    return any(re.match(rf"(^|.*\.){re.escape(each)}($|\..*)", name) for each in given)
