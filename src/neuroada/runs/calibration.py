"""Choosing what is trained by some of the training data, where a recipe's criterion needs it."""

import random
from collections.abc import Iterator
from typing import Any, cast

import torch
from peft import PeftModel
from rich.console import Console

from neuroada.layers import NeuroAdaLinear
from neuroada.runs.data import Data
from neuroada.runs.methods import Trainee
from neuroada.runs.schema import Recipe
from neuroada.tuners import reselect


def choose_by_data(recipe: Recipe, trainee: Trainee, data: Data, console: Console) -> None:
    """Choose what an adapter or a mask that waits for data trains, by `calibration_records` of the training part.

    Which ones the seed decides, so that every process of a training chooses alike.
    """
    model, settle = trainee.model, trainee.settle
    if settle is None and not any(layer.awaiting for layer in model.modules() if isinstance(layer, NeuroAdaLinear)):
        return
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    batches, progress = list(_batches(recipe, data)), not console.quiet
    if settle is not None:
        settle(batches, progress)
    else:
        reselect(cast(PeftModel, model), batches, recipe.settings["selection"], progress=progress)


def _batches(recipe: Recipe, data: Data) -> Iterator[Any]:
    count, size = min(recipe.calibration_records, len(data.train)), recipe.training.per_device_train_batch_size
    rows = random.Random(recipe.seed).sample(range(len(data.train)), count)
    for start in range(0, count, size):
        yield data.collator([data.train[row] for row in rows[start : start + size]])
