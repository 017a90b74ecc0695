"""Choosing what is trained by some of the training data, where a recipe's criterion needs it."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from rich.console import Console

from neuroada.errors import ConfigError, WeightError
from neuroada.inputs.data import Data
from neuroada.layers import NeuroAdaLinear
from neuroada.recipe.schema import Calibration
from neuroada.training.wrapping import Trainee, of_adapter
from neuroada.tuners import reselect
from neuroada.tuners.processes import is_sharded


def waits_for_data(trainee: Trainee) -> bool:
    """Whether the criterion of an adapter or of a mask needs data that it has not got yet."""
    layers = (layer for layer in trainee.model.modules() if isinstance(layer, NeuroAdaLinear))
    return trainee.settle is not None or any(layer.awaiting for layer in layers)


def choose_by_data(
    trainee: Trainee,
    selection: str | None,
    calibration: Calibration,
    seed: int,
    data: Data,
    console: Console,
    checkpoint: Path | None = None,
) -> Trainee:
    """What is trained once records of the training part have chosen it, where an adapter or a mask waits.

    Which ones the seed decides, so that every process of a training chooses alike. A checkpoint's adapter has been
    through that: it is loaded instead, before there is an optimiser, since its deltas may have other shapes.

    Raises:
        ConfigError: the model is sharded. WeightError: processes chose differently.
    """
    if not waits_for_data(trainee):
        return trainee
    if is_sharded():
        found = "data choose by gradients of whole weights, and they are sharded over processes"
        do = "Choose with a criterion that needs no data, or train with DistributedDataParallel"
        raise ConfigError(f"selection={selection} under FSDP", found, do)
    model = cast(PeftModel, trainee.model)
    if trainee.settle is None and checkpoint is not None and (checkpoint / SAFETENSORS_WEIGHTS_NAME).exists():
        model.load_adapter(str(checkpoint), str(model.active_adapter), is_trainable=True)
        return of_adapter(model)
    if torch.accelerator.is_available():
        cast(Any, model).to(torch.accelerator.current_accelerator())
    batches, progress = list(_batches(calibration, seed, data)), not console.quiet
    if trainee.settle is not None:
        chosen = trainee.settle(batches, progress)
        if len(set(gather_object([chosen]))) > 1:
            do = "Use the same kind of device, and as many threads, in each"
            raise WeightError("Training in several processes", "their data chose different entries", do)
        return replace(trainee, settle=None, chosen=chosen)
    reselect(model, batches, selection, progress=progress)
    return of_adapter(model)


def _batches(calibration: Calibration, seed: int, data: Data) -> Iterator[Any]:
    count, size = min(calibration.records, len(data.train)), calibration.batch_size
    rows = random.Random(seed).sample(range(len(data.train)), count)
    for start in range(0, count, size):
        yield data.collator([data.train[row] for row in rows[start : start + size]])
