"""What a run says before it begins: what will train, on what, how, and what was chosen for it."""

from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import TrainingArguments

from neuroada.ops.backend import backend_for
from neuroada.runs.calibration import waits_for_data
from neuroada.runs.environment import describe_device
from neuroada.runs.folder import RunFolder
from neuroada.runs.methods import ADAPTERS, METHODS, Trainee, most_deltas, placement
from neuroada.runs.regrowth import regrowth_text
from neuroada.runs.report import share_text
from neuroada.runs.schema import Recipe
from neuroada.runs.sharding import LATER, is_sharded
from neuroada.runs.trackers import tracker_text

if TYPE_CHECKING:
    from neuroada.runs.train import Prepared


def header(
    recipe: Recipe, prepared: "Prepared", arguments: TrainingArguments, folder: RunFolder
) -> list[tuple[str, str | None]]:
    """Names and values; None where a line does not apply."""
    model, data = prepared.model, prepared.data
    whole = sum(parameter.numel() for parameter in model.parameters())
    return [
        ("model", f"{recipe.model.name}, {recipe.model.dtype}, from {prepared.model_source}"),
        ("data", f"{prepared.source.name}; {data.sizes}"),
        ("tests", _tests_text(recipe, data.tests)),
        ("method", _method_text(recipe, model)),
        ("mode", placement(model) if recipe.method in ADAPTERS else None),
        ("gradient", _gradient_text(recipe, model, arguments.device)),
        ("trainable", share_text(prepared.trainee.trained, whole) + _until_data(recipe, prepared.trainee)),
        ("device", describe_device(arguments.device)),
        ("steps", _steps_text(recipe, arguments, data.tokens)),
        ("regrowth", regrowth_text(recipe, arguments.max_steps)),
        ("reports", tracker_text(recipe.training.report_to, folder)),
        ("run folder", str(folder.path)),
    ]


def _until_data(recipe: Recipe, trainee: Trainee) -> str:
    """What a dry run has to say of a number that calibration will change."""
    if recipe.settings.get("budget_scope") != "model" or not waits_for_data(trainee):
        return ""
    return "; about, until data have spread the budget"


def _method_text(recipe: Recipe, model: Any) -> str:
    layers = sum(isinstance(module, BaseTunerLayer) for module in model.modules())
    settings = ", ".join(f"{key}={value}" for key, value in recipe.settings.items())
    text = METHODS[recipe.method].label + (f" ({settings})" if settings else "")
    return f"{text} on {layers} layers" if layers else text


def _gradient_text(recipe: Recipe, model: Any, device: torch.device) -> str | None:
    if recipe.method != "neuroada":
        return None
    dtype = getattr(torch, recipe.model.dtype)
    backend, reason = backend_for(device.type, dtype, most_deltas(model))
    return f"{backend}: {reason}"


def _tests_text(recipe: Recipe, tests: Any) -> str | None:
    if is_sharded() and recipe.data.task != "text":
        return LATER
    if tests is None:
        return None
    when = "before and after training" if recipe.evaluation.before else "after training"
    return f"{tests.records:,} records, {when}"


def _steps_text(recipe: Recipe, arguments: TrainingArguments, tokens: int | None) -> str:
    training = recipe.training
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
