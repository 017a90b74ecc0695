"""Short trainings that one process and several do alike, and what is compared afterwards."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from neuroada import NeatConfig, NeuroAdaConfig, RegrowCallback
from neuroada.recipe.loading import check_recipe
from neuroada.recipe.schema import Recipe

ROWS, LENGTH = 4, 8
"""Of the global batch of a step."""
WEIGHTS = "adapter_model.safetensors"
CONFIGS = {"neuroada": NeuroAdaConfig, "neat": NeatConfig}
TRAINED = ("neuroada_deltas", "neat_in", "neat_hidden", "neat_out")


@dataclass(frozen=True)
class Course:
    """A training: model is a directory, of which the first `blocks` are used; config has the fields of the method's.

    Deltas that SGD trains are linear in the gradients, so that two orders of the same sums leave them as far apart as
    the sums are. AdamW divides by the size of a gradient: where it is next to nothing, its rounding becomes a step.
    """

    name: str
    model: str
    config: dict
    steps: int
    blocks: int
    optimiser: str = "sgd"
    method: str = "neuroada"

    @property
    def learning_rate(self) -> float:
        return 0.1 if self.optimiser == "sgd" else 1e-3


def dataset(vocabulary: int, steps: int) -> Dataset:
    """Rows of random tokens, whose prompts differ in length and have no loss."""
    ids = torch.randint(5, vocabulary, (ROWS * steps, LENGTH), generator=torch.Generator().manual_seed(2))
    labels = ids.clone()
    for number, row in enumerate(labels):
        row[: number % 5] = -100
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


def arguments(course: Course, folder: Path, **given) -> TrainingArguments:
    """Trainer's arguments; to be made before the model, since they say how it is loaded."""
    fields = {
        "output_dir": str(folder / "checkpoints"),
        "max_steps": course.steps,
        "per_device_train_batch_size": ROWS,
        "optim": course.optimiser,
        "learning_rate": course.learning_rate,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "ddp_timeout": 120,
        "seed": 11,
        "use_cpu": True,
    }
    return TrainingArguments(**(fields | given))


def pretrained(course: Course) -> PreTrainedModel:
    """In float32."""
    return AutoModelForCausalLM.from_pretrained(course.model, dtype=torch.float32, num_hidden_layers=course.blocks)


def adapted(course: Course, empty: bool = False) -> PeftModel:
    """The model of a course, or one with nothing sensible in its weights, with its adapter."""
    base = pretrained(course)
    base.config.use_cache = False
    if empty:
        for parameter in base.parameters():
            parameter.data.fill_(math.nan)
    torch.manual_seed(7)  # NEAT's first layers are random
    return get_peft_model(base, CONFIGS[course.method](task_type="CAUSAL_LM", **course.config))


def trainer(course: Course, model: PeftModel, given: TrainingArguments, *callbacks: TrainerCallback) -> Trainer:
    """As a user writes it."""
    data = dataset(model.config.vocab_size, course.steps)
    return Trainer(model, given, train_dataset=data, data_collator=default_data_collator, callbacks=list(callbacks))


def train(course: Course, folder: Path, *callbacks: TrainerCallback, resume: str | None = None, **given) -> Trainer:
    """Train, and save the adapter into `folder`."""
    options = arguments(course, folder, **given)
    made = trainer(course, adapted(course), options, *callbacks)
    made.train(resume_from_checkpoint=resume)
    made.save_model(str(folder / "adapter"))
    return made


def regrowing(course: Course, rank: int = 0, world: int = 1) -> RegrowCallback:
    """Drops half of the deltas half-way, by the gradients of four rows."""
    rows: Any = dataset(100, 1).with_format("torch")
    batches = [{name: column[row : row + 1] for name, column in rows[:].items()} for row in range(rank, ROWS, world)]
    return RegrowCallback(every=course.steps // 2, drop_fraction=0.5, batches=lambda step: batches)


def deltas(folder: Path) -> dict[str, Tensor]:
    """What was trained of the adapter that `train` saved."""
    entries = load_file(folder / "adapter" / WEIGHTS)
    return {name: tensor for name, tensor in entries.items() if name.endswith(TRAINED)}


def distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Euclidean, over all deltas."""
    assert left.keys() == right.keys()
    return sum((left[name].double() - right[name].double()).square().sum().item() for name in left) ** 0.5


def recipe_of(course: Course, folder: Path, rows: int) -> Recipe:
    """A recipe with the model and adapter of a course, for so many rows a process; its text is written to `folder`."""
    text = folder / "text.txt"
    text.write_text("".join(f"line {number} has {number * number} in it\n" for number in range(200)))
    training = {"max_steps": course.steps, "learning_rate": 1e-3, "per_device_train_batch_size": rows}
    content = {
        "model": {"name": course.model, "dtype": "float32"},
        "data": {"task": "text", "text": str(text), "block_length": 16, "held_out_blocks": 2},
        "method": "neuroada",
        "neuroada": course.config,
        "training": training | {"save_steps": 2, "logging_steps": 1, "per_device_eval_batch_size": 1},
    }
    return check_recipe(content, "a recipe")


def courses(file: Path) -> list[Course]:
    """What a test wrote down for the worker."""
    return [Course(**fields) for fields in json.loads(file.read_text())]


def loop(
    model: PeftModel, course: Course, replica: nn.Module | None = None, rank: int = 0, world: int = 1, parts: int = 1
) -> None:
    """A training loop of one's own.

    replica: what to call instead of the model, one of `world` that share the rows of each step, and whose gradients are
    averaged. parts: into how many the own rows are divided.
    """
    data: Any = dataset(model.config.vocab_size, course.steps).with_format("torch")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=course.learning_rate)
    for step in range(course.steps):
        rows = data[step * ROWS : (step + 1) * ROWS]
        tokens = (rows["labels"][:, 1:] != -100).sum()
        for part in range(parts):
            own = {name: rows[name][rank + part * world :: world * parts] for name in ("input_ids", "labels")}
            loss = (replica or model)(**own, num_items_in_batch=tokens).loss
            (loss * world).backward()
        optimiser.step()
        optimiser.zero_grad()
