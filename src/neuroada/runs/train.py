"""Recipe -> model, data and Trainer -> run folder."""

import random
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from rich.console import Console
from transformers import PrinterCallback, Trainer, TrainingArguments, default_data_collator

from neuroada.errors import MergeError
from neuroada.ops.backend import backend_for
from neuroada.runs import report
from neuroada.runs.callbacks import Bars, HoldSupports, Records, progress_bars
from neuroada.runs.environment import describe_device, environment, peak_memory
from neuroada.runs.folder import RunFolder, whole_folder
from neuroada.runs.methods import METHODS, placement, surviving_deltas
from neuroada.runs.models import load_model
from neuroada.runs.recipe import Recipe, to_yaml
from neuroada.tasks.text import pack, read_text


@dataclass(frozen=True)
class Prepared:
    """A wrapped model and its packed data, ready for Trainer."""

    model: PeftModel
    model_source: str
    data_source: str
    train: Dataset
    held_out: Dataset


def train(
    recipe: Recipe, output: Path, console: Console, *, resume: bool = False, dry_run: bool = False
) -> dict[str, Any] | None:
    """Train as `recipe` says into the run folder `output`; returns the summary that is also written there.

    With `resume`, an interrupted run goes on from its last checkpoint. With `dry_run`, everything is
    loaded and the header printed, but nothing is trained or written.

    Raises:
        NeuroAdaError: an input is missing or cannot be meant; the run folder is then untouched.
        MergeError: merging changed outputs although the method promises that it does not.
    """
    began = time.perf_counter()
    folder, resolved = RunFolder(output), to_yaml(recipe)
    if resume:
        folder.check_resumable(resolved)
    else:
        folder.check_fresh()
    prepared = prepare(recipe, console)
    arguments = _arguments(recipe, folder)
    report.print_pairs(console, "Run", _header(recipe, prepared, arguments.device, folder))
    if dry_run:
        return None
    if not resume:
        folder.create(resolved, environment(arguments.device, recipe.seed))
    trained = _fit(recipe, prepared, arguments, folder, console)
    with whole_folder(folder.adapter) as beside:
        prepared.model.save_pretrained(str(beside))
    merge = _compare_merged(prepared.model, prepared.held_out, recipe.training.per_device_eval_batch_size)
    memory, memory_of = peak_memory(arguments.device)
    summary = {
        **trained,
        "peak_memory_bytes": memory,
        "peak_memory_of": memory_of,
        "adapter_bytes": sum(file.stat().st_size for file in folder.adapter.glob("*.safetensors")),
        "merge": merge,
        "run_folder": str(output),
        "seconds": time.perf_counter() - began,
    }
    folder.finish(summary)
    report.print_pairs(console, "Result", report.closing_pairs(summary))
    _require_exact(recipe, merge, folder)
    return summary


def prepare(recipe: Recipe, console: Console) -> Prepared:
    """Load the text, then the model, pack the text into blocks, and wrap the model with the method."""
    data = recipe.data
    split = read_text(data.text, data.data_dir, data.held_out, recipe.seed)
    loaded = load_model(recipe.model.name, recipe.model.dtype, console)
    train_blocks: Any = pack(split.train, loaded.tokenizer, data.block_length, split.source)
    held_out: Any = pack(split.held_out, loaded.tokenizer, data.block_length, split.source)
    if data.held_out_blocks is not None and data.held_out_blocks < len(held_out):
        chosen = random.Random(recipe.seed).sample(range(len(held_out)), data.held_out_blocks)
        held_out = held_out.select(chosen)
    transformers.set_seed(recipe.seed)
    with console.status("Choosing what to train"):
        model = get_peft_model(loaded.model, recipe.peft_config())
    return Prepared(model, loaded.source, split.source, train_blocks, held_out)


def _arguments(recipe: Recipe, folder: RunFolder) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder.checkpoints),
        seed=recipe.seed,
        data_seed=recipe.seed,
        save_strategy="steps",
        save_total_limit=1,
        label_names=["labels"],
        prediction_loss_only=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to="none",
        **recipe.training.model_dump(),
    )


def _fit(
    recipe: Recipe, prepared: Prepared, arguments: TrainingArguments, folder: RunFolder, console: Console
) -> dict[str, Any]:
    records = Records(folder)
    checkpoint = folder.last_checkpoint()
    done = int(checkpoint.name.split("-")[1]) if checkpoint else 0
    trainable, total = prepared.model.get_nb_trainable_parameters()
    with progress_bars(console) as progress, ExitStack() as context:
        trainer = Trainer(
            prepared.model,
            arguments,
            data_collator=default_data_collator,
            train_dataset=prepared.train,
            eval_dataset=prepared.held_out,
            callbacks=[Bars(progress), records, HoldSupports(context)],
        )
        trainer.remove_callback(PrinterCallback)
        before = _loss_before(trainer, folder)
        folder.rewind(done)
        if done < arguments.max_steps:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        else:  # Trainer would train one step more
            prepared.model.load_adapter(str(checkpoint), prepared.model.active_adapter, is_trainable=True)
        after = trainer.evaluate()["eval_loss"]
    folder.record("evaluate", when="after", loss=after)
    return {
        "method": recipe.method,
        "trainable_parameters": trainable,
        "surviving_deltas": surviving_deltas(prepared.model),
        "parameters": total,
        "steps": max(done, trainer.state.global_step),
        "tokens_per_second": records.steps * _tokens_per_step(recipe) / records.seconds if records.steps else None,
        "held_out_loss_before": before,
        "held_out_loss_after": after,
    }


def _loss_before(trainer: Trainer, folder: RunFolder) -> float:
    earlier = [record["loss"] for record in folder.records("evaluate") if record["when"] == "before"]
    if earlier:
        return earlier[0]
    loss = trainer.evaluate()["eval_loss"]
    folder.record("evaluate", when="before", loss=loss)
    return loss


@torch.no_grad()
def _compare_merged(model: PeftModel, held_out: Dataset, rows: int) -> dict[str, Any]:
    """Logits of one held-out batch, adapted and then merged, compared bit for bit; merges the model."""
    batch = torch.tensor(held_out[:rows]["input_ids"], device=model.device)
    model.eval()
    adapted = model(input_ids=batch).logits
    merged = model.merge_and_unload()(input_ids=batch).logits
    bits = torch.int16 if adapted.element_size() == 2 else torch.int32
    differing = int((adapted.view(bits) != merged.view(bits)).sum())
    return {
        "equal": differing == 0,
        "logits": adapted.numel(),
        "differing": differing,
        "largest": float((adapted.float() - merged.float()).abs().max()),
    }


def _require_exact(recipe: Recipe, merge: dict[str, Any], folder: RunFolder) -> None:
    if merge["equal"] or not METHODS[recipe.method].exact_merge:
        return
    raise MergeError(
        "merging the trained adapter",
        report.difference_text(merge),
        f"Use {folder.adapter} unmerged, and report this as a defect of neuroada",
    )


def _gradient_text(recipe: Recipe, device: torch.device) -> str | None:
    if recipe.method != "neuroada":
        return None
    backend, reason = backend_for(device.type, getattr(torch, recipe.model.dtype), recipe.neuroada.get("k"))
    return f"{backend}: {reason}"


def _tokens_per_step(recipe: Recipe) -> int:
    training = recipe.training
    blocks = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return blocks * recipe.data.block_length


def _header(
    recipe: Recipe, prepared: Prepared, device: torch.device, folder: RunFolder
) -> list[tuple[str, str | None]]:
    training, method = recipe.training, METHODS[recipe.method]
    trainable, total = prepared.model.get_nb_trainable_parameters()
    layers = sum(isinstance(module, BaseTunerLayer) for module in prepared.model.modules())
    settings = ", ".join(f"{key}={value}" for key, value in getattr(recipe, recipe.method).items())
    blocks = f"{len(prepared.train):,} blocks to train, {len(prepared.held_out):,} held out"
    return [
        ("model", f"{recipe.model.name}, {recipe.model.dtype}, from {prepared.model_source}"),
        ("data", f"{prepared.data_source}; {blocks}, {recipe.data.block_length} tokens each"),
        ("method", f"{method.label} ({settings}) on {layers} layers"),
        ("mode", placement(prepared.model)),
        ("gradient", _gradient_text(recipe, device)),
        ("trainable", report.share_text(trainable, total)),
        ("device", describe_device(device)),
        (
            "steps",
            f"{training.max_steps:,} of {_tokens_per_step(recipe):,} tokens, learning rate "
            f"{training.learning_rate:g}, {training.lr_scheduler_type.value}",
        ),
        ("run folder", str(folder.path)),
    ]
