"""Recipes: what they may say, where they are found, how `--set` changes them."""

import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from peft import PeftConfig, TaskType
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from transformers import SchedulerType

from neuroada.errors import ConfigError, NeuroAdaError
from neuroada.runs.methods import METHODS, build_config
from neuroada.runs.near import near

Fraction = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A part of a recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(Section):
    """The base model: a directory, a hub id, or a name that `runs.models` knows."""

    name: str
    dtype: Literal["float32", "bfloat16"] = "bfloat16"


class DataSection(Section):
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


class TrainingSection(Section):
    """Fields of `transformers.TrainingArguments`, under their own names."""

    max_steps: PositiveInt
    learning_rate: PositiveFloat
    per_device_train_batch_size: PositiveInt = 1
    per_device_eval_batch_size: PositiveInt = 1
    gradient_accumulation_steps: PositiveInt = 1
    lr_scheduler_type: SchedulerType = SchedulerType.LINEAR
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    logging_steps: PositiveInt = 10
    save_steps: PositiveInt = 100


class Recipe(Section):
    """What a run trains, on what, how and with which seed."""

    model: ModelSection
    data: DataSection = DataSection()
    method: str
    neuroada: dict[str, Any] = {}
    lora: dict[str, Any] = {}
    training: TrainingSection
    seed: int = 0

    @field_validator("method")
    @classmethod
    def _known_method(cls, name: str) -> str:
        if name not in METHODS:
            raise ValueError(f"no such method. {near(name, METHODS)}")
        return name

    def peft_config(self) -> PeftConfig:
        """The chosen method's PEFT configuration."""
        return build_config(self.method, getattr(self, self.method), TaskType.CAUSAL_LM)

    def resolved(self) -> dict[str, Any]:
        """Every value, defaults included, as plain types; blocks of methods not chosen are left out."""
        return self.model_dump(mode="json", exclude=set(METHODS) - {self.method})


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 7e-4 as a string; here it is the number that it looks like."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def bundled_recipes() -> dict[str, Path]:
    """Name and path of each recipe that comes with the package."""
    folder = Path(str(files("neuroada"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The file of a bundled recipe's name or of a path.

    Raises:
        ConfigError: neither is there; the message lists the bundled names, near ones first.
    """
    bundled = bundled_recipes()
    if name in bundled:
        return bundled[name]
    path = Path(name).expanduser()
    if path.is_file():
        return path
    looks_like_path = path.suffix in {".yaml", ".yml"} or len(path.parts) > 1
    found = "no such file" if looks_like_path else "neither a bundled recipe nor a file"
    raise ConfigError(f"recipe {name!r}", found, near(path.stem, bundled))


def load_recipe(path: Path, overrides: Iterable[str] = (), values: Mapping[str, Any] | None = None) -> Recipe:
    """Read `path`, apply `overrides` ("section.key=value") and then dotted `values`, and check it all.

    Raises:
        ConfigError: no valid YAML, an unknown key, or a value that cannot be meant.
    """
    asked = f"recipe {path}"
    content = _parse(path.read_text(encoding="utf-8"), asked)
    if not isinstance(content, dict):
        raise ConfigError(asked, "it is not a mapping of sections", "Begin from a bundled recipe")
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"--set {override}", "it is not of the form key=value", "Write section.key=value")
        _assign(content, key.strip(), _parse(value, f"--set {override}"))
    for key, value in (values or {}).items():
        _assign(content, key, value)
    return check_recipe(content, asked)


def check_recipe(content: Mapping[str, Any], asked: str) -> Recipe:
    """Validate the sections and build the method's configuration once, so that errors come early."""
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise _readable(error, asked) from None
    recipe.peft_config()
    return recipe


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load_recipe` reads back to an equal one."""
    return yaml.safe_dump(recipe.resolved(), sort_keys=False, allow_unicode=True)


def _parse(text: str, asked: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(asked, f"it is not valid YAML ({error})", "Correct the syntax") from None


def _assign(content: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for name in sections:
        inner = content.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {key}", f"{name!r} is a value, not a section", "Set the value itself")
        content = inner
    content[last] = value


def _readable(error: ValidationError, asked: str) -> NeuroAdaError:
    problems, advice = [], []
    for item in error.errors():
        key = ".".join(map(str, item["loc"]))
        if item["type"] == "extra_forbidden":
            problems.append(f"unknown key {key!r}")
            advice.append(near(str(item["loc"][-1]), _known_keys(item["loc"][:-1])))
        elif item["type"] == "missing":
            problems.append(f"{key!r} is missing")
            advice.append(f"Add {key!r}")
        else:
            problems.append(f"{key} = {item['input']!r}: {item['msg']}")
            advice.append(f"Correct {key!r}")
    return ConfigError(asked, "; ".join(problems), ". ".join(dict.fromkeys(advice)))


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    section: Any = Recipe
    for name in location:
        section = section.model_fields[name].annotation
    return list(section.model_fields)
