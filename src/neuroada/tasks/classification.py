"""What all classification and regression tasks share: the head, what its logits say, how they are scored."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import EvalPrediction
from transformers.trainer_pt_utils import get_parameter_names

from neuroada.errors import ConfigError
from neuroada.tasks.scores import Score, score

NOT_DECAYED = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
"""Patterns of the names that `transformers.Trainer` exempts from weight decay."""

WORST = -1.0
"""No metric falls below it."""


@dataclass(frozen=True)
class Classification:
    """A task with one label a record.

    labels: their names, label 0 first; empty for a regression.
    metric: one of `tasks.scores`; Trainer logs it under this name.
    """

    name: str
    labels: tuple[str, ...]
    metric: str

    @property
    def outputs(self) -> int:
        """Width of the head: one logit a label, or a regression's value."""
        return len(self.labels) or 1


def head_settings(task: Classification) -> dict[str, Any]:
    """Arguments of an Auto class's `from_pretrained` that give the model a head for this task."""
    names = task.labels or (task.name,)
    return {
        "num_labels": task.outputs,
        "problem_type": "single_label_classification" if task.labels else "regression",
        "id2label": dict(enumerate(names)),
        "label2id": {name: label for label, name in enumerate(names)},
    }


def predictions_of(task: Classification, logits: Any) -> np.ndarray:
    """The label of the largest logit, int64 [n], or a regression's values, float32 [n].

    logits: [n, labels], of a regression [n, 1] or [n]; an array, a tensor, or a tuple that begins with one, as
    Trainer's predictions may be.

    Raises:
        ConfigError: the logits are not of this task's head.
    """
    columns = _columns(task, logits)
    return columns.argmax(axis=1) if task.labels else columns[:, 0]


def compute_metric(task: Classification) -> Callable[[EvalPrediction], dict[str, float]]:
    """`compute_metrics` for Trainer: {task.metric: value}; choose checkpoints by `metric_for_best_model=task.metric`.

    Logits that are not finite, of a training that has diverged, count as -1, so that no such epoch is chosen.
    """

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        columns = _columns(task, prediction.predictions)
        finite = np.isfinite(columns).all()
        return {task.metric: evaluate(task, columns, prediction.label_ids).value if finite else WORST}

    return compute


def evaluate(task: Classification, logits: Any, labels: Any, seed: int = 0) -> Score:
    """The score of logits against labels [n], with its interval; shapes of logits as for `predictions_of`.

    Raises:
        ConfigError: the logits are not of this task's head, not finite, or not as many as the labels.
    """
    columns = _columns(task, logits)
    broken = np.count_nonzero(~np.isfinite(columns).all(axis=1))
    if broken:
        found = f"logits of {broken} of {len(columns)} records are not finite"
        raise ConfigError(f"score of {task.name}", found, "The training has diverged; lower its learning rate")
    predictions = predictions_of(task, columns).tolist()
    return score(task.name, task.metric, predictions, np.asarray(labels).tolist(), seed)


def stratified(labels: Sequence[Any], count: int, seed: int) -> list[int]:
    """`count` places at random, ascending, with the whole's share of each label, to within one record.

    It is a systematic sample: every (n / count)-th place of a shuffled list that is then sorted by label.
    """
    order = random.Random(seed).sample(range(len(labels)), len(labels))
    order.sort(key=lambda place: labels[place])
    return sorted(order[number * len(order) // count] for number in range(count))


def head_modules(model: nn.Module) -> list[str]:
    """Names of the modules of a classifier that have parameters and are outside its body.

    Raises:
        ConfigError: the model does not say where its body ends.
    """
    body = getattr(model, "base_model_prefix", "")
    children = dict(model.named_children())
    if body not in children:
        raise ConfigError(
            "parameters of the classification head",
            f"{type(model).__name__} does not say which part is its body (base_model_prefix)",
            "Use a model of AutoModelForSequenceClassification or AutoModelForImageClassification",
        )
    heads = [name for name, child in children.items() if name != body and any(True for _ in child.parameters())]
    if not heads:
        raise ConfigError(
            "parameters of the classification head",
            f"{type(model).__name__} has none outside its body ({body})",
            "Use a model whose head is a module of its own",
        )
    return heads


def head_parameters(model: nn.Module) -> list[str]:
    """Names of the trainable parameters outside the body of a classifier, those of adapter layers left out.

    PEFT trains a copy of the modules called "classifier" or "score" beside an adapter with task_type="SEQ_CLS", and of
    those in modules_to_save.

    Raises:
        ConfigError: the model does not say where its body ends.
    """
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    heads = _parameter_ids(inner.get_submodule(name) for name in head_modules(inner))
    heads -= _parameter_ids(module for module in model.modules() if isinstance(module, BaseTunerLayer))
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad and id(parameter) in heads]


def parameter_groups(
    model: nn.Module, learning_rate: float, head_learning_rate: float | None = None, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Trainable parameters for an optimiser, the head's with a learning rate of their own; by default it is the same.

    Biases and norms do not decay, as with Trainer, which takes the groups as
    `optimizer_cls_and_kwargs=(torch.optim.AdamW, {"params": groups})` and schedules each group's rate.

    Raises:
        ConfigError: a learning rate for the head is given and no head is trained.
    """
    head = set() if head_learning_rate is None else set(head_parameters(model))
    if head_learning_rate is not None and not head:
        raise ConfigError(
            f"head_learning_rate={head_learning_rate:g}",
            "the model trains no classification head",
            'Give the adapter task_type="SEQ_CLS", name the head in modules_to_save, or leave the rate out',
        )
    decayed = set(get_parameter_names(model, [nn.LayerNorm], NOT_DECAYED))
    members: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members.setdefault((name in head, name in decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": head_learning_rate if in_head else learning_rate,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (in_head, decays), parameters in members.items()
    ]


def _columns(task: Classification, logits: Any) -> np.ndarray:
    """float32 [n, task.outputs]."""
    first = logits[0] if isinstance(logits, tuple) else logits
    values = torch.as_tensor(first).detach().float().cpu().numpy()
    columns = values[:, None] if values.ndim == 1 else values
    if columns.ndim != 2 or columns.shape[1] != task.outputs:
        asked, found = f"logits of {task.name}, [n, {task.outputs}]", f"logits of shape {list(values.shape)}"
        raise ConfigError(asked, found, "Load the model with head_settings of this task")
    return columns


def _parameter_ids(modules: Iterable[nn.Module]) -> set[int]:
    return {id(parameter) for module in modules for parameter in module.parameters()}
