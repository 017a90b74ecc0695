"""Choosing NeuroAda's inputs by some of the training data, where a recipe's criterion needs it."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from rich.console import Console

from neuroada.layers import NeuroAdaLinear
from neuroada.runs.data import Data
from neuroada.runs.schema import Recipe
from neuroada.tuners import reselect


def waits_for_data(model: Any) -> bool:
    """Whether the criterion of an adapter needs data that it has not got yet."""
    return any(layer.awaiting for layer in model.modules() if isinstance(layer, NeuroAdaLinear))


def choose_by_data(recipe: Recipe, model: Any, data: Data, console: Console, checkpoint: Path | None = None) -> None:
    """Choose the inputs of an adapter that waits for data, by `calibration_records` of the training part.

    Which ones the seed decides, so that every process of a training chooses alike. A checkpoint's adapter has been
    through that: it is loaded instead, before there is an optimiser, since its deltas may have other shapes.
    """
    if not waits_for_data(model):
        return
    if checkpoint is not None and (checkpoint / SAFETENSORS_WEIGHTS_NAME).exists():
        model.load_adapter(str(checkpoint), str(model.active_adapter), is_trainable=True)
        return
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    batches = list(_batches(recipe, data))
    reselect(model, batches, recipe.settings["selection"], progress=not console.quiet)


def _batches(recipe: Recipe, data: Data) -> Iterator[Any]:
    count, size = min(recipe.calibration_records, len(data.train)), recipe.training.per_device_train_batch_size
    rows = random.Random(recipe.seed).sample(range(len(data.train)), count)
    for start in range(0, count, size):
        yield data.collator([data.train[row] for row in rows[start : start + size]])
