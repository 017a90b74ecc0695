"""Trainer's arguments, from a recipe's training section."""

import math

import torch
from accelerate import PartialState
from transformers import TrainingArguments

from neuroada.errors import ConfigError
from neuroada.inputs.data import Data
from neuroada.recipe.schema import TrainingSection
from neuroada.run_folder.folder import RunFolder

LOGGED = 5
"""Steps of a run that are logged at the least, however short it is; a choice."""


def trainer_arguments(
    training: TrainingSection, evaluates_before: bool, seed: int, folder: RunFolder, data: Data
) -> TrainingArguments:
    """Trainer's arguments: those of the recipe's section, and what every run has in common.

    evaluates_before: the held-out part is evaluated before training too.

    Raises:
        ConfigError: Trainer would replicate the model inside one process.
    """
    fields = training.model_dump(exclude={"head_learning_rate", "max_steps", "num_train_epochs", "report_to"})
    if fields["train_sampling_strategy"] == "random":
        del fields["train_sampling_strategy"]  # Transformers 5.0 and 5.1 know no other
    by = "epoch" if training.load_best_model_at_end else "steps"
    arguments = TrainingArguments(
        output_dir=str(folder.checkpoints),
        seed=seed,
        data_seed=seed,
        save_strategy=by,
        eval_strategy=by if training.load_best_model_at_end else "no",
        metric_for_best_model=data.metric_name or "loss",
        save_total_limit=1,
        label_names=["labels"],
        prediction_loss_only=data.metric is None,
        # Before the training, and not by itself: after an evaluation Trainer replicates and shards no more.
        eval_on_start=evaluates_before and PartialState().num_processes > 1,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to="none",  # trackers are callbacks of the run's
        use_cpu=not torch.accelerator.is_available(),  # or else each of several processes would train alone
        **fields,
    )
    _require_one_device(arguments)
    arguments.max_steps = _steps(training, len(data.train), arguments.world_size)
    arguments.logging_steps = min(arguments.logging_steps, max(1, arguments.max_steps // LOGGED))
    return arguments


def _steps(training: TrainingSection, samples: int, processes: int) -> int:
    """Optimiser steps: the last of an epoch takes what is left."""
    if training.max_steps is not None:
        return training.max_steps
    batches = math.ceil(samples / (training.per_device_train_batch_size * processes))
    steps = math.ceil(batches / training.gradient_accumulation_steps)
    return math.ceil((training.num_train_epochs or 0) * steps)


def _require_one_device(arguments: TrainingArguments) -> None:
    """Raise ConfigError where Trainer would replicate the model inside one process."""
    if arguments.n_gpu > 1:
        found = f"one process sees {arguments.n_gpu} GPUs, and Trainer would give each a part of every batch"
        do = f"accelerate launch --num_processes {arguments.n_gpu} -m neuroada_cli train ..., or CUDA_VISIBLE_DEVICES=0"
        raise ConfigError("training on several GPUs", found, do)
