"""What a recipe may say: its sections, their defaults, and the rules between them."""

from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator
from transformers import SchedulerType

from neuroada.errors import near
from neuroada.runs.methods import METHODS
from neuroada.runs.regrowth import RegrowthSection

Fraction = Annotated[float, Field(gt=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]
Settings = dict[str, Any]

PLACES = ("data_dir", "text", "file", "folder")
"""Keys of a recipe's data that say where a machine keeps it: one run or search may find it elsewhere later."""


class Section(BaseModel):
    """A part of a recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(Section):
    """The base model: a directory, a hub id, or a name that `runs.models` knows."""

    name: str
    dtype: Literal["float32", "bfloat16"] = "bfloat16"


class TextData(Section):
    """Text for causal language modelling; with neither `text` nor `data_dir`, Python's own manual."""

    task: Literal["text"] = "text"
    text: Path | None = None
    data_dir: Path | None = None
    block_length: Annotated[int, Field(ge=2)] = 256
    held_out: Fraction = 0.1
    held_out_blocks: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_source(self):
        if self.text is not None and self.data_dir is not None:
            raise ValueError("text and data_dir are both given; give one of them")
        return self


class _Samples(Section):
    """One training sample a record. `data_dir`: laid out as docs/recipes.md says; without it sets come from the hub."""

    data_dir: Path | None = None
    train_records: PositiveInt | None = None


class _Completions(_Samples):
    """A prompt and what is to follow it; the loss is on what follows, unless `train_on_prompt`.

    too_long: whether a sample of more than `max_length` tokens loses the beginning of its prompt, or is left out.
    """

    max_length: PositiveInt = 512
    too_long: Literal["cut", "drop"] = "cut"
    train_on_prompt: bool = False
    held_out_records: PositiveInt = 200


class CommonsenseData(_Completions):
    """Questions with a fixed list of answers: eight tests."""

    task: Literal["commonsense"]
    train_set: str = "commonsense_15k"


class ArithmeticData(_Completions):
    """Word problems with worked solutions; "gsm8k" and "metamath" have prompts and train sets of their own."""

    task: Literal["arithmetic", "gsm8k", "metamath"]
    train_set: str | None = None


class InstructData(_Completions):
    """Your own pairs or conversations: a JSON lines file, or a dataset of the hub.

    chat: prompts by the tokeniser's chat template; none for where it has one.
    """

    task: Literal["instruct"]
    file: Path | None = None
    dataset: str | None = None
    chat: bool | None = None

    @model_validator(mode="after")
    def _one_source(self):
        if (self.file is None) == (self.dataset is None):
            raise ValueError("give either file or dataset")
        return self


class GlueData(_Samples):
    """One GLUE set, by a classification head."""

    task: Literal["glue"]
    name: str
    max_length: PositiveInt = 128


class ImagesData(_Samples):
    """Pictures in folders named after their classes, by a classification head.

    name: of a set in `data_dir` or on the hub. folder: of your own set, in their place. label: the hub set's column of
    class names, where it has several. size: height and width that the model gets, none for its processor's own.
    held_out_records: at most, of each set's pictures for model selection. strict: refuse pictures that cannot be
    decoded, instead of leaving them out. augment: crop and mirror at random while training.
    """

    task: Literal["images"]
    name: str | None = None
    folder: Path | None = None
    label: str | None = None
    size: PositiveInt | None = None
    held_out_records: PositiveInt = 500
    strict: bool = False
    augment: bool = True

    @model_validator(mode="after")
    def _one_source(self):
        if (self.name is None) == (self.folder is None):
            raise ValueError("give either name or folder")
        if self.folder is not None and self.data_dir is not None:
            raise ValueError("folder and data_dir are both given; give one of them")
        return self


DATA = {
    "text": TextData,
    "instruct": InstructData,
    "commonsense": CommonsenseData,
    "arithmetic": ArithmeticData,
    "gsm8k": ArithmeticData,
    "metamath": ArithmeticData,
    "glue": GlueData,
    "images": ImagesData,
}
"""By task. A recipe's `data` section is one of them."""

CHOOSING = ("neuroada", "mask")
"""Methods whose settings have a seed, by which inputs and neurons are drawn."""

AnyData = TextData | InstructData | CommonsenseData | ArithmeticData | GlueData | ImagesData


class EvaluationSection(Section):
    """How the tests of a task are scored, before training and after it.

    tests: names of tests, or of averages for the tests in them; none for all of the task's main average.
    records: of each test, chosen by the seed; none for all. before: score the base model as well, and take its loss.
    """

    tests: list[str] = []
    records: PositiveInt | None = None
    batch_size: PositiveInt = 16
    max_new_tokens: PositiveInt | None = None
    sampling: Literal["greedy", "published"] = "greedy"
    before: bool = True


class TrainingSection(Section):
    """Fields of `transformers.TrainingArguments`, under their own names; `head_learning_rate` is ours.

    `load_best_model_at_end` evaluates and saves after each epoch, and keeps the best by the held-out part.
    """

    max_steps: PositiveInt | None = None
    num_train_epochs: PositiveFloat | None = None
    learning_rate: PositiveFloat
    head_learning_rate: PositiveFloat | None = None
    per_device_train_batch_size: PositiveInt = 1
    per_device_eval_batch_size: PositiveInt = 1
    gradient_accumulation_steps: PositiveInt = 1
    gradient_checkpointing: bool = False
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"] = "random"
    lr_scheduler_type: SchedulerType = SchedulerType.LINEAR
    warmup_steps: NotNegative = 0
    weight_decay: NotNegative = 0.0
    max_grad_norm: NotNegative = 1.0
    logging_steps: PositiveInt = 10
    save_steps: PositiveInt = 100
    load_best_model_at_end: bool = False
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = []

    @model_validator(mode="after")
    def _one_length(self):
        if (self.max_steps is None) == (self.num_train_epochs is None):
            raise ValueError("give either max_steps or num_train_epochs")
        return self


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
    neuroada: Settings = {}
    neat: Settings = {}
    lora: Settings = {}
    dora: Settings = {}
    shira: Settings = {}
    supertuning: Settings = {}
    peanut: Settings = {}
    ia3: Settings = {}
    prefix: Settings = {}
    bitfit: Settings = {}
    probe: Settings = {}
    mask: Settings = {}
    full: Settings = {}
    training: TrainingSection
    regrowth: RegrowthSection = RegrowthSection()
    calibration_records: PositiveInt = 128
    calibration_batch_size: PositiveInt | None = None
    seed: int = 0

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
