"""What a run says before it begins: what will train, on what, how, and what was chosen for it."""

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import TrainingArguments

from neuroada.ops.sparse_delta.backends.choice import backend_for
from neuroada.recipe.methods import ADAPTERS, METHODS
from neuroada.recipe.schema import Recipe, TrainingSection
from neuroada.run_folder.environment import describe_device
from neuroada.run_folder.folder import RunFolder
from neuroada.run_folder.summary import share_text
from neuroada.training.calibration import waits_for_data
from neuroada.training.prepared import Prepared
from neuroada.training.regrowth import regrowth_text
from neuroada.training.trackers import tracker_text
from neuroada.training.wrapping import Trainee
from neuroada.tuners.inspection import most_deltas, placement
from neuroada.tuners.processes import is_sharded

LATER = "none while the model is sharded; afterwards: neuroada eval RUN"
"""What is said of tests: one process alone cannot answer them."""


def header(
    recipe: Recipe, prepared: Prepared, arguments: TrainingArguments, folder: RunFolder
) -> list[tuple[str, str | None]]:
    """Names and values; None where a line does not apply."""
    model, data = prepared.model, prepared.data
    backend = _gradient_text(model, recipe.model.dtype, arguments.device)
    whole = sum(parameter.numel() for parameter in model.parameters())
    return [
        ("model", f"{recipe.model.name}, {recipe.model.dtype}, from {prepared.model_source}"),
        ("data", f"{prepared.source.name}; {data.sizes}"),
        ("tests", _tests_text(recipe.data.task, recipe.evaluation.before, data.tests)),
        ("method", _method_text(METHODS[recipe.method].label, recipe.settings, model)),
        ("mode", placement(model) if recipe.method in ADAPTERS else None),
        ("gradient", backend if recipe.method == "neuroada" else None),
        ("trainable", share_text(prepared.trainee.trained, whole) + _until_data(recipe.settings, prepared.trainee)),
        ("device", describe_device(arguments.device)),
        ("steps", _steps_text(recipe.training, arguments, data.tokens)),
        ("regrowth", regrowth_text(recipe.regrowth, arguments.max_steps)),
        ("reports", tracker_text(recipe.training.report_to, folder)),
        ("run folder", str(folder.path)),
    ]


def _until_data(settings: Mapping[str, Any], trainee: Trainee) -> str:
    """What a dry run has to say of a number that calibration will change."""
    if settings.get("budget_scope") != "model" or not waits_for_data(trainee):
        return ""
    return "; about, until data have spread the budget"


def _method_text(label: str, settings: Mapping[str, Any], model: Any) -> str:
    layers = sum(isinstance(module, BaseTunerLayer) for module in model.modules())
    values = ", ".join(f"{key}={value}" for key, value in settings.items())
    text = label + (f" ({values})" if values else "")
    return f"{text} on {layers} layers" if layers else text


def _gradient_text(model: Any, dtype: str, device: torch.device) -> str:
    backend, reason = backend_for(device.type, getattr(torch, dtype), most_deltas(model))
    return f"{backend}: {reason}"


def _tests_text(task: str, before: bool, tests: Any) -> str | None:
    if is_sharded() and task != "text":
        return LATER
    if tests is None:
        return None
    when = "before and after training" if before else "after training"
    return f"{tests.records:,} records, {when}"


def _steps_text(training: TrainingSection, arguments: TrainingArguments, tokens: int | None) -> str:
    samples = arguments.train_batch_size * training.gradient_accumulation_steps * arguments.world_size
    rate = f"{training.learning_rate:g}"
    if training.head_learning_rate is not None:
        rate += f" (head {training.head_learning_rate:g})"
    epochs = "" if training.num_train_epochs is None else f" ({training.num_train_epochs:g} epochs)"
    about = "" if tokens is None else f" and about {samples * tokens:,} tokens"
    return (
        f"{arguments.max_steps:,}{epochs}, of {samples:,} sample{'s' if samples > 1 else ''}{about} each; "
        f"learning rate {rate}, {training.lr_scheduler_type.value}"
    )
