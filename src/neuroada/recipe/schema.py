"""What a recipe may say: its sections, their defaults, and the rules between them."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from pydantic import Field, field_validator, model_validator
from transformers import SchedulerType

from neuroada.config.criteria import NEEDS
from neuroada.errors import near
from neuroada.recipe.data import DATA, AnyData, ImagesData, Section, TextData
from neuroada.recipe.kinds import Batch, Bytes, Count, Epochs, Length, Name, NotNegative, Positive, Seed, Share
from neuroada.recipe.methods import METHODS
from neuroada.recipe.schedules import POLYNOMIAL_END, require_schedule
from neuroada.tuners.regrow import DROP_FRACTION
from neuroada.tuners.regrow_callback import STOP_AFTER
from neuroada.tuners.statistics import MAX_MEMORY

Settings = Annotated[dict[str, Any], Field(default_factory=dict)]


class ModelSection(Section):
    """The base model: a directory, a hub id, or a name that `inputs.models` knows."""

    name: Name
    dtype: Literal["float32", "bfloat16"] = "bfloat16"


CHOOSING = ("neuroada", "mask")
"""Methods whose settings have a seed, by which inputs and neurons are drawn."""


class EvaluationSection(Section):
    """How the tests of a task are scored, before training and after it.

    tests: names of tests, or of averages for the tests in them; none for all of the task's main average.
    records: of each test, chosen by the seed; none for all. before: score the base model as well, and take its loss.
    """

    tests: list[Name] = Field(default_factory=list)
    records: Count | None = None
    batch_size: Batch = 16
    max_new_tokens: Length | None = None
    sampling: Literal["greedy", "published"] = "greedy"
    before: bool = True


class TrainingSection(Section):
    """Fields of `transformers.TrainingArguments`, under their own names; `head_learning_rate` is ours.

    `load_best_model_at_end` evaluates and saves after each epoch, and keeps the best by the held-out part.
    """

    max_steps: Count | None = None
    num_train_epochs: Epochs | None = None
    learning_rate: Positive
    head_learning_rate: Positive | None = None
    per_device_train_batch_size: Batch = 1
    per_device_eval_batch_size: Batch = 1
    gradient_accumulation_steps: Batch = 1
    gradient_checkpointing: bool = False
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"] = "random"
    lr_scheduler_type: SchedulerType = SchedulerType.LINEAR
    warmup_steps: NotNegative = 0
    weight_decay: NotNegative = 0.0
    max_grad_norm: NotNegative = 1.0
    logging_steps: Count = 10
    save_steps: Count = 100
    load_best_model_at_end: bool = False
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)

    @field_validator("lr_scheduler_type", mode="before")
    @classmethod
    def _schedule_that_can_be_built(cls, name: Any) -> Any:
        require_schedule(name)
        return name

    @model_validator(mode="after")
    def _polynomial_falls(self):
        if self.lr_scheduler_type == SchedulerType.POLYNOMIAL and self.learning_rate <= POLYNOMIAL_END:
            raise ValueError(f"a polynomial schedule ends at {POLYNOMIAL_END}, and learning_rate is not above it")
        return self

    @model_validator(mode="after")
    def _one_length(self):
        if (self.max_steps is None) == (self.num_train_epochs is None):
            raise ValueError("give either max_steps or num_train_epochs")
        return self


class RegrowthSection(Section):
    """Drop and grow while NeuroAda trains (`neuroada.regrow`); off without `every`, a number of optimiser steps.

    drop_fraction: of the deltas, each time. stop_after: a share of the training's steps. max_memory: bytes of gradients
    held at a time.
    """

    every: Count | None = None
    drop_fraction: Share = DROP_FRACTION
    criterion: str = "gradient"
    stop_after: Share = STOP_AFTER
    max_memory: Bytes = MAX_MEMORY

    @model_validator(mode="after")
    def _nothing_in_vain(self):
        if self.model_fields_set and "every" not in self.model_fields_set:
            raise ValueError(
                "it is off without every; give every, a number of optimiser steps, or leave the section out"
            )
        return self

    @field_validator("criterion")
    @classmethod
    def _known_criterion(cls, name: str) -> str:
        if name not in NEEDS:
            raise ValueError(f"no such criterion. {near(name, NEEDS)}")
        return name


@dataclass(frozen=True)
class Calibration:
    """Training records by which inputs are chosen: how many, and how many at a time."""

    records: int
    batch_size: int


class Recipe(Section):
    """What a run trains, on what, how and with which seed. Each method's settings are under its own name.

    calibration_records: of the training part, by which the inputs of NeuroAda, or of a mask, are chosen where their
    `selection` or that of `regrowth` needs data. calibration_batch_size: of them at a time; None for as many as the
    training takes.
    """

    model: ModelSection
    data: Annotated[AnyData, Field(discriminator="task")] = TextData()
    evaluation: EvaluationSection = EvaluationSection()
    method: str
    neuroada: Settings
    neat: Settings
    lora: Settings
    dora: Settings
    shira: Settings
    supertuning: Settings
    peanut: Settings
    ia3: Settings
    prefix: Settings
    bitfit: Settings
    probe: Settings
    mask: Settings
    full: Settings
    training: TrainingSection
    regrowth: RegrowthSection = RegrowthSection()
    calibration_records: Count = 128
    calibration_batch_size: Batch | None = None
    seed: Seed = 0

    @field_validator("data", mode="before")
    @classmethod
    def _text_by_default(cls, data: Any) -> Any:
        return {"task": "text", **data} if isinstance(data, dict) else data

    @field_validator("method")
    @classmethod
    def _known_method(cls, name: str) -> str:
        if name not in METHODS:
            raise ValueError(f"no such method. {near(name, METHODS)}")
        return name

    @model_validator(mode="after")
    def _mask_without_decay(self):
        if self.method == "mask" and self.training.weight_decay and self.mask.get("state") != "support":
            raise ValueError("weight decay changes entries outside the mask; set training.weight_decay to 0")
        return self

    @model_validator(mode="after")
    def _regrowth_of_neuroada(self):
        if self.regrowth.every is not None and self.method != "neuroada":
            raise ValueError("regrowth.every is for method neuroada; leave it out, or choose that method")
        return self

    @model_validator(mode="after")
    def _images_have_no_length(self):
        if isinstance(self.data, ImagesData) and self.training.train_sampling_strategy == "group_by_length":
            raise ValueError("images have no length; leave training.train_sampling_strategy out")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the chosen method."""
        return getattr(self, self.method)

    @property
    def seeded_settings(self) -> dict[str, Any]:
        """The same; what is drawn at random is drawn by the recipe's seed, unless they have their own."""
        return {"seed": self.seed, **self.settings} if self.method in CHOOSING else self.settings

    @property
    def calibration(self) -> Calibration:
        """The records that choose inputs where a criterion needs data; at a time, as many as the training takes."""
        return Calibration(
            self.calibration_records, self.calibration_batch_size or self.training.per_device_train_batch_size
        )

    def resolved(self) -> dict[str, Any]:
        """Every value, defaults included, as plain types; what is off is left out: other methods' blocks, regrowth."""
        off = set(METHODS) - {self.method} | ({"regrowth"} if self.regrowth.every is None else set())
        return self.model_dump(mode="json", exclude=off)

    def differing(self) -> dict[str, Any]:
        """As `resolved`, without the values that are defaults: keys that the schema gains later change nothing."""
        return self.model_dump(mode="json", exclude=set(METHODS) - {self.method}, exclude_defaults=True)


def section_of(location: tuple[int | str, ...]) -> type[Section]:
    """The class that the keys of a part of a recipe belong to; `location` as pydantic tells it."""
    section: type[Section] = Recipe
    for name in map(str, location):
        section = DATA[name] if name in DATA else cast(type[Section], section.model_fields[name].annotation)
    return section
