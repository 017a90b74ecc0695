"""Recipe -> model, data and Trainer -> run folder."""

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from neuroada.errors import ConfigError
from neuroada.runs import report
from neuroada.runs.calibration import choose_by_data
from neuroada.runs.callbacks import Bars, HoldSupports, Records, progress_bars
from neuroada.runs.card import write_card
from neuroada.runs.data import Data, Source, open_data
from neuroada.runs.environment import environment, peak_memory
from neuroada.runs.folder import RunFolder, whole_folder
from neuroada.runs.header import header
from neuroada.runs.looks import Looks
from neuroada.runs.merging import compare_merged, require_exact
from neuroada.runs.methods import ADAPTERS, METHODS, OWN, Trainee, apply_method, delta_count, surviving_deltas
from neuroada.runs.models import load_model
from neuroada.runs.recipe import to_yaml
from neuroada.runs.regrowth import check_regrowth, regrowth
from neuroada.runs.schema import Recipe
from neuroada.runs.sharding import gathered, is_sharded
from neuroada.runs.trackers import check_trackers, trackers
from neuroada.runs.trainer import ResumableTrainer
from neuroada.tasks.classification import parameter_groups

PATIENCE = timedelta(days=7)
"""How long processes wait for the first one, which alone answers the tests; PyTorch's own is ten minutes."""

LOGGED = 5
"""Steps of a run that are logged at the least, however short it is; a choice."""


@dataclass(frozen=True)
class Prepared:
    """A model as its method trains it, and its data, ready for Trainer. processor: as of a `LoadedModel`."""

    trainee: Trainee
    processor: Any
    model_source: str
    source: Source
    data: Data

    @property
    def model(self) -> Any:
        """A PeftModel, or the base model where its own weights are trained."""
        return self.trainee.model


def train(
    recipe: Recipe,
    output: Path,
    console: Console,
    *,
    resume: bool = False,
    dry_run: bool = False,
    score_tests: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any] | None:
    """Train as `recipe` says into the run folder `output`; returns the summary that is also written there.

    With `resume`, an interrupted run goes on from its last checkpoint. With `dry_run`, everything is
    loaded and the header printed, but nothing is trained or written. Without `score_tests` the task's tests are left
    alone, as a search for settings must. `callbacks` are Trainer's, beside the run's own.

    Raises:
        NeuroAdaError: an input is missing or cannot be meant; the run folder is then untouched.
        MergeError: merging changed outputs although the method promises that it does not; the run is complete then.
    """
    began = time.perf_counter()
    processes = PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)
    leads = processes.is_main_process
    console = console if leads else Console(quiet=True)
    folder, resolved = RunFolder(output, writes=leads), to_yaml(recipe)
    if resume:
        folder.check_resumable(resolved)
    elif leads:
        folder.check_fresh()
    check_trackers(recipe.training.report_to, folder)
    check_regrowth(recipe)
    prepared = prepare(recipe, console)
    if not score_tests or is_sharded():
        prepared = replace(prepared, data=replace(prepared.data, tests=None))
    arguments = trainer_arguments(recipe, folder, prepared.data)
    _require_one_device(arguments)
    if not dry_run:
        trainee = choose_by_data(recipe, prepared.trainee, prepared.data, console, folder.last_checkpoint())
        prepared = replace(prepared, trainee=trainee)
    report.print_pairs(console, "Run", header(recipe, prepared, arguments, folder))
    if dry_run:
        console.print("\nDry run: nothing was trained or written.")
        return None
    course = _course(prepared, arguments)
    if resume:
        folder.check_same_course(course)
    else:
        folder.create(resolved, environment(arguments.device, recipe.seed) | course)
        for each in prepared.data.left_out:
            folder.record("left out", place=each.place, reason=each.reason)
    trained, state = _fit(recipe, prepared, arguments, folder, console, callbacks)
    prepared.trainee.finish()
    if leads:
        _save(recipe, prepared, folder, state)
    merges = METHODS[recipe.method].merges and not is_sharded()
    merge = compare_merged(prepared, recipe.training.per_device_eval_batch_size) if merges else None
    memory, memory_of = peak_memory(arguments.device)
    processes.wait_for_everyone()
    saved = folder.trained(recipe.method)
    summary = {
        **trained,
        "peak_memory_bytes": max(memory, trained["peak_memory_bytes"]),
        "peak_memory_of": memory_of,
        "adapter_bytes": sum(file.stat().st_size for file in saved.glob("*.safetensors")),
        "merge": merge,
        "run_folder": str(output),
        "seconds": time.perf_counter() - began,
    }
    folder.finish(summary)
    report.print_pairs(console, "Result", report.closing_pairs(summary))
    require_exact(recipe, summary, folder)
    return summary


def _course(prepared: Prepared, arguments: TrainingArguments) -> dict[str, Any]:
    """What a run's course depends on beside its recipe."""
    course = {"processes": arguments.world_size, "samples": len(prepared.data.train)}
    if prepared.source.labels:
        course["labels"] = list(prepared.source.labels)
    return course if prepared.trainee.chosen is None else {**course, "chosen": prepared.trainee.chosen}


def _require_one_device(arguments: TrainingArguments) -> None:
    """Raise ConfigError where Trainer would replicate the model inside one process."""
    if arguments.n_gpu > 1:
        found = f"one process sees {arguments.n_gpu} GPUs, and Trainer would give each a part of every batch"
        do = f"accelerate launch --num_processes {arguments.n_gpu} -m neuroada_cli train ..., or CUDA_VISIBLE_DEVICES=0"
        raise ConfigError("training on several GPUs", found, do)


def _save(recipe: Recipe, prepared: Prepared, folder: RunFolder, state: dict[str, torch.Tensor] | None) -> None:
    """The adapter, or the whole model with what prepares its input where base weights were trained.

    state: of a sharded model.
    """
    with whole_folder(folder.trained(recipe.method)) as beside:
        prepared.model.save_pretrained(str(beside), state_dict=state)
        if recipe.method in OWN:
            write_card(beside, recipe)
        if recipe.method not in ADAPTERS:
            prepared.processor.save_pretrained(str(beside))


def prepare(recipe: Recipe, console: Console) -> Prepared:
    """Read the data, then load the model, encode the data for it, and wrap the model with the method."""
    source = open_data(recipe)
    transformers.set_seed(recipe.seed)  # a new head is random
    loaded = load_model(recipe.model.name, recipe.model.dtype, console, source.head)
    data = source.encode(loaded.processor, loaded.model)
    transformers.set_seed(recipe.seed)
    with console.status("Choosing what to train"):
        trainee = apply_method(recipe.method, recipe.seeded_settings, loaded.model, source.task_type)
    return Prepared(trainee, loaded.processor, loaded.source, source, data)


def trainer_arguments(recipe: Recipe, folder: RunFolder, data: Data) -> TrainingArguments:
    """Trainer's arguments: those of the recipe, and what every run has in common."""
    fields = recipe.training.model_dump(exclude={"head_learning_rate", "max_steps", "num_train_epochs", "report_to"})
    if fields["train_sampling_strategy"] == "random":
        del fields["train_sampling_strategy"]  # Transformers 5.0 and 5.1 know no other
    by = "epoch" if recipe.training.load_best_model_at_end else "steps"
    arguments = TrainingArguments(
        output_dir=str(folder.checkpoints),
        seed=recipe.seed,
        data_seed=recipe.seed,
        save_strategy=by,
        eval_strategy=by if recipe.training.load_best_model_at_end else "no",
        metric_for_best_model=data.metric_name or "loss",
        save_total_limit=1,
        label_names=["labels"],
        prediction_loss_only=data.metric is None,
        # Before the training, and not by itself: after an evaluation Trainer replicates and shards no more.
        eval_on_start=recipe.evaluation.before and PartialState().num_processes > 1,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to="none",  # trackers are callbacks of the run's
        use_cpu=not torch.accelerator.is_available(),  # or else each of several processes would train alone
        **fields,
    )
    arguments.max_steps = _steps(recipe, len(data.train), arguments.world_size)
    arguments.logging_steps = min(arguments.logging_steps, max(1, arguments.max_steps // LOGGED))
    return arguments


def _steps(recipe: Recipe, samples: int, processes: int) -> int:
    """Optimiser steps: the last of an epoch takes what is left."""
    training = recipe.training
    if training.max_steps is not None:
        return training.max_steps
    batches = math.ceil(samples / (training.per_device_train_batch_size * processes))
    steps = math.ceil(batches / training.gradient_accumulation_steps)
    return math.ceil((training.num_train_epochs or 0) * steps)


def _fit(
    recipe: Recipe,
    prepared: Prepared,
    arguments: TrainingArguments,
    folder: RunFolder,
    console: Console,
    callbacks: Sequence[TrainerCallback],
) -> tuple[dict[str, Any], dict[str, torch.Tensor] | None]:
    """What the summary says of the training, and the state of a sharded model."""
    data, training, checkpoint = prepared.data, recipe.training, folder.last_checkpoint()
    done = int(checkpoint.name.split("-")[1]) if checkpoint else 0
    records = Records(folder, done)
    groups = parameter_groups(
        prepared.model, training.learning_rate, training.head_learning_rate, training.weight_decay
    )
    with progress_bars(console) as progress, ExitStack() as context:
        reporting = context.enter_context(trackers(training.report_to, recipe, folder, done))
        trainer = ResumableTrainer(
            prepared.model,
            arguments,
            data_collator=data.collator,
            train_dataset=data.train,
            eval_dataset=data.held_out,
            compute_metrics=data.metric,
            optimizer_cls_and_kwargs=(torch.optim.AdamW, {"params": groups, "fused": True}),
            callbacks=[
                *(Bars(progress), records, HoldSupports(context), *regrowth(recipe, folder)),
                *(*data.callbacks, *reporting, *callbacks),
            ],
        )
        trainer.remove_callback(PrinterCallback)
        looks = Looks(prepared, trainer, folder, progress)
        folder.rewind(done)
        if recipe.evaluation.before and not arguments.eval_on_start:
            looks.held_out("before")
        scores_before = looks.tests("before") if recipe.evaluation.before else []
        if done < arguments.max_steps:
            transformers.set_seed(recipe.seed)  # whether or not this process has looked at the base model
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        elif checkpoint is not None:  # Trainer would train one step more
            _restore(prepared.model, folder.best_checkpoint(checkpoint))
        before = looks.held_out("before") if recipe.evaluation.before else {}
        after = looks.held_out("after")
        scores_after = looks.tests("after")
        state = gathered(trainer)
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps * arguments.world_size
    speed = records.steps * batch / records.seconds if records.steps and records.seconds else None
    summary = {
        "method": recipe.method,
        "trainable_parameters": prepared.trainee.trained,
        "deltas": delta_count(prepared.model),
        "surviving_deltas": surviving_deltas(prepared.model),
        "parameters": sum(parameter.numel() for parameter in prepared.model.parameters()),
        "steps": max(done, trainer.state.global_step),
        "training_seconds": records.seconds,
        "peak_memory_bytes": records.peak_memory,
        "samples_per_second": speed,
        "tokens_per_second": speed and data.tokens and speed * data.tokens,
        **{f"held_out_{name}_before": value for name, value in before.items()},
        **{f"held_out_{name}_after": value for name, value in after.items()},
        "scores_before": scores_before,
        "scores_after": scores_after,
    }
    return summary, state


def _restore(model: nn.Module, checkpoint: Path) -> None:
    if isinstance(model, PeftModel):
        model.load_adapter(str(checkpoint), str(model.active_adapter), is_trainable=True)
    else:
        model.load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)
