"""The head that a checkpoint brings: kept where its classes are those of the task, by name, or else made anew."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from neuroada.tuners.new_weights import MARK

UNNAMED = re.compile(r"label_\d+")


def order_of(config: PretrainedConfig, settings: Mapping[str, Any]) -> list[int] | str | None:
    """How the classes of a checkpoint's head become those of a task.

    config: as the checkpoint has it. settings: as `head_settings` gives them.

    Returns:
        None: it has no head, or one whose classes are in the task's order, or without names. A list: the place of each
        of the task's classes among the checkpoint's. A text: why the head cannot be kept.
    """
    kinds = getattr(config, "architectures", None) or []
    if not any(re.search(r"For(Sequence|Image)Classification$", kind) for kind in kinds):
        return None
    ours = _names(settings["id2label"])
    theirs = _names(config.id2label or {})
    if len(theirs) != len(ours):
        return f"it tells {len(theirs)} classes apart, and the task has {len(ours)}"
    if theirs == ours or all(UNNAMED.fullmatch(name) for name in theirs):
        return None
    if sorted(theirs) == sorted(ours):
        return [theirs.index(name) for name in ours]
    return f"its classes are {', '.join(theirs)}, and those of the task {', '.join(ours)}"


def _names(id2label: Mapping[Any, str]) -> list[str]:
    """In the order of their numbers, alike whatever their case and their separators."""
    pairs = sorted((int(number), str(name)) for number, name in id2label.items())
    return [re.sub(r"[\s-]+", "_", name.strip().casefold()) for _, name in pairs]


@torch.no_grad()
def reorder(model: nn.Module, order: Sequence[int]) -> None:
    """Put the outputs of a model's head into another order."""
    for module in _last_layers(model, len(order)):
        places = torch.tensor(order, device=module.weight.device)
        module.weight.copy_(module.weight[places].clone())
        if module.bias is not None:
            module.bias.copy_(module.bias[places].clone())


def make_anew(model: Any, outputs: int) -> None:
    """Draw a model's head again, and mark it as new."""
    for module in _last_layers(model, outputs):
        for parameter in module.parameters():
            parameter.__dict__.pop(MARK, None)
        module.__dict__.pop(MARK, None)
        model._init_weights(module)


def _last_layers(model: Any, outputs: int) -> list[nn.Linear]:
    """The linear layers outside a model's body that give one output a class."""
    body = f"{model.base_model_prefix}."
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == outputs and not name.startswith(body)
    ]
