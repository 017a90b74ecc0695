"""The training itself: Trainer with the run's callbacks, and the evaluations before and after it."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from neuroada.evaluation.progress import progress_bars
from neuroada.recipe.schema import Recipe
from neuroada.run_folder.folder import RunFolder
from neuroada.tasks.classification import parameter_groups
from neuroada.tasks.images.pixels import ImageRows
from neuroada.training.callbacks import Bars, Epochs, HoldSupports, Records
from neuroada.training.divergence import StopIfDiverged
from neuroada.training.evaluations import Evaluations
from neuroada.training.interrupt import SaveOnInterrupt
from neuroada.training.prepared import Prepared
from neuroada.training.regrowth import regrowth
from neuroada.training.trackers import trackers
from neuroada.training.trainer import ResumableTrainer
from neuroada.tuners.inspection import delta_count, surviving_deltas
from neuroada.tuners.processes import is_sharded


def fit(
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
    regrown = regrowth(recipe.regrowth, recipe.calibration_records, recipe.calibration_batch_size, folder)
    interrupt = SaveOnInterrupt(console)
    epochs = [Epochs(data.train)] if isinstance(data.train, ImageRows) else []
    with progress_bars(console) as progress, ExitStack() as context:
        reporting = context.enter_context(trackers(training.report_to, recipe.resolved(), folder, done))
        trainer = ResumableTrainer(
            prepared.model,
            arguments,
            data_collator=data.collator,
            train_dataset=data.train,
            eval_dataset=data.held_out,
            compute_metrics=data.metric,
            optimizer_cls_and_kwargs=(torch.optim.AdamW, {"params": groups, "fused": True}),
            callbacks=[
                *(StopIfDiverged(folder, training.learning_rate), Bars(progress), records, HoldSupports(context)),
                *(*regrown, *epochs, *reporting, *callbacks, interrupt),
            ],
        )
        trainer.remove_callback(PrinterCallback)
        evaluations = Evaluations(prepared, trainer, folder, progress)
        folder.rewind(done)
        if recipe.evaluation.before and not arguments.eval_on_start:
            evaluations.held_out("before")
        scores_before = evaluations.tests("before") if recipe.evaluation.before else []
        if done < arguments.max_steps:
            transformers.set_seed(recipe.seed)  # whether or not this process has looked at the base model
            with interrupt:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        elif checkpoint is not None:  # Trainer would train one step more
            _restore(prepared.model, folder.best_checkpoint(checkpoint))
        before = evaluations.held_out("before") if recipe.evaluation.before else {}
        after = evaluations.held_out("after")
        scores_after = evaluations.tests("after")
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


def gathered(trainer: Trainer) -> dict[str, torch.Tensor] | None:
    """All tensors of a sharded model, in the first process; None where it is not sharded. Every process calls this."""
    return trainer.accelerator.get_state_dict(trainer.model) if is_sharded() else None
