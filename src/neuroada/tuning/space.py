"""Search spaces: keys of a recipe, each with the values that a search may try or with one that it keeps."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from neuroada.errors import ConfigError, near
from neuroada.recipe.files import RecipeFile, bundled, parse_yaml
from neuroada.recipe.loading import load_recipe
from neuroada.recipe.methods import METHODS
from neuroada.recipe.schema import Recipe, TrainingSection

if TYPE_CHECKING:
    from optuna import Trial

BATCH_SIZE = "batch_size"
"""Samples an optimiser step takes: a key of spaces only, reached by accumulating the recipe's batches of a device."""

PINS = {"training.gradient_accumulation_steps": BATCH_SIZE}
"""A key of recipes that, where it is set by hand, decides one of spaces."""

FORM = "Write {low: 1e-4, high: 1e-2, log: true}, {choices: [1, 20]}, or one value to keep"


class Choices(BaseModel):
    """One of these."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    choices: list[Any] = Field(min_length=1)

    @property
    def ends(self) -> list[Any]:
        """What to check before a search begins."""
        return self.choices

    @property
    def text(self) -> str:
        """For the header."""
        return ", ".join(_plain(choice) for choice in self.choices)

    def suggest(self, trial: "Trial", key: str) -> Any:
        """The choice of a trial."""
        return self.value_of(trial.suggest_categorical(key, self._labels))

    def value_of(self, parameter: Any) -> Any:
        """The choice that a trial's parameter stands for."""
        return self.choices[self._labels.index(parameter)]

    @property
    def _labels(self) -> list[Any]:
        """Optuna's parameters are plain values; a list, say of modules, goes by its YAML."""
        return [each if each is None or isinstance(each, str | int | float) else _plain(each) for each in self.choices]


class Range(BaseModel):
    """Anything between two ends, both of them included; whole numbers where both ends are."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    low: int | FiniteFloat
    high: int | FiniteFloat
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self):
        if not self.low < self.high:
            raise ValueError(f"low = {self.low} is not below high = {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log is given, and low = {self.low} is not above 0")
        return self

    @property
    def ends(self) -> list[Any]:
        """What to check before a search begins."""
        return [self.low, self.high]

    @property
    def text(self) -> str:
        """For the header."""
        return f"{self.low:g} to {self.high:g}{', logarithmic' if self.log else ''}"

    def suggest(self, trial: "Trial", key: str) -> Any:
        """The value of a trial."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(key, self.low, self.high, log=self.log)
        return trial.suggest_float(key, self.low, self.high, log=self.log)

    def value_of(self, parameter: Any) -> Any:
        """Parameters are values."""
        return parameter


@dataclass(frozen=True)
class Space:
    """kept: the same in every trial. searched: what differs."""

    kept: dict[str, Any]
    searched: dict[str, Choices | Range]

    @property
    def size(self) -> int | None:
        """How many different trials there can be; None for no end of them."""
        counts = [len(each.choices) if isinstance(each, Choices) else None for each in self.searched.values()]
        return None if None in counts else prod(count for count in counts if count is not None)

    @property
    def plain(self) -> dict[str, Any]:
        """As a file would say it."""
        return self.kept | {key: each.model_dump() for key, each in self.searched.items()}

    def suggest(self, trial: "Trial") -> dict[str, Any]:
        """Values of a trial by key, those that are kept among them."""
        return self.kept | {key: each.suggest(trial, key) for key, each in self.searched.items()}


def bundled_spaces() -> dict[str, Path]:
    """Name and path of each space that comes with the package."""
    return bundled("recipes/search")


def load_space(given: Sequence[str], recipe: RecipeFile, pinned: Collection[str] = ()) -> Space:
    """The space of names, files and "key=value" that are `given`, later ones before earlier ones.

    With nothing given, it is RECIPE.search.yaml beside the recipe. Keys that are `pinned` are left out of it.

    Raises:
        ConfigError: a file or name is unknown, is no mapping, leaves nothing to search, or has a key whose values
            cannot be compared with one another.
    """
    beside = recipe.path.with_name(f"{recipe.name}.search.yaml")
    if not given and not beside.is_file():
        found = f"no --search says what to try, and there is no {beside}"
        raise ConfigError("neuroada tune", found, f"Give --search with a file, KEY=VALUES or a name: {_names()}")
    content: dict[str, Any] = {}
    for each in given or [str(beside)]:
        content |= _read(each)
    without = {*pinned, *(PINS[key] for key in pinned if key in PINS)}
    content = {key: value for key, value in content.items() if key not in without}
    kept = {key: value for key, value in content.items() if not isinstance(value, dict)}
    space = Space(kept, {key: _dimension(key, value) for key, value in content.items() if isinstance(value, dict)})
    if not space.searched:
        raise ConfigError("search space", "nothing in it is left to search", FORM)
    for key in space.searched:
        if key.split(".")[0] in ("data", "evaluation", "seed") or key == "model.name":
            found = "trials that differ in it are judged by different data, and cannot be compared"
            raise ConfigError(f"search space, {key}", found, "Keep one value for it")
    return space


def build_recipe(file: RecipeFile, overrides: Sequence[str], values: Mapping[str, Any]) -> Recipe:
    """The recipe of `file`, changed by `overrides` and then by `values`, whose batch size is taken apart.

    Raises:
        ConfigError: as `load_recipe`; or the batch size is no multiple of what a device takes at a time.
    """
    others = {key: value for key, value in values.items() if key != BATCH_SIZE}
    recipe = load_recipe(file, overrides, others)
    if BATCH_SIZE not in values:
        return recipe
    return load_recipe(file, overrides, others | _batches(values[BATCH_SIZE], recipe.training))


def check_space(space: Space, file: RecipeFile, overrides: Sequence[str], values: Mapping[str, Any]) -> None:
    """Build a recipe with every choice and end, one at a time, so that errors come early.

    Raises:
        ConfigError: an unknown key, a value that cannot be meant, or settings of a method that is not searched.
    """
    first = space.kept | {key: each.ends[0] for key, each in space.searched.items()}
    methods = space.searched["method"].ends if "method" in space.searched else []
    tried = [(key, value) for key, each in space.searched.items() for value in each.ends]
    for key, value in [*tried, *space.kept.items()]:
        block = key.split(".")[0]
        if "." not in key and key != BATCH_SIZE and key not in Recipe.model_fields:
            raise ConfigError(f"search space, {key}", "no such key", near(key, [*Recipe.model_fields, BATCH_SIZE]))
        method = {"method": block} if block in methods else {}
        try:
            recipe = build_recipe(file, overrides, {**first, **method, key: value, **values})
        except ConfigError as error:
            what = error.found if error.asked.startswith("recipe ") else f"{error.asked}: {error.found}"
            raise ConfigError("search space", what, error.do) from None
        if block in METHODS and block != recipe.method:
            found = f"it is not read, because the method is {recipe.method}"
            raise ConfigError(f"search space, {key}", found, f"Search {recipe.method}.*, or method as well")


def _batches(batch: Any, training: TrainingSection) -> dict[str, int]:
    asked = f"{BATCH_SIZE} = {batch!r}"
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise ConfigError(asked, "it is no number of samples", "Give a whole number above 0")
    each = min(batch, training.per_device_train_batch_size)
    if batch % each:
        found = f"it is no multiple of training.per_device_train_batch_size = {each}"
        raise ConfigError(asked, found, "Set training.per_device_train_batch_size to one that divides all of them")
    return {
        "training.per_device_train_batch_size": each,
        "training.gradient_accumulation_steps": batch // each,
    }


def _read(given: str) -> dict[str, Any]:
    asked, bundled, path = f"--search {given}", bundled_spaces(), Path(given).expanduser()
    key, sign, value = given.partition("=")
    if given in bundled:
        path = bundled[given]
    elif sign and key.strip() and not path.is_file():
        return {key.strip(): parse_yaml(value, asked)}
    elif not path.is_file():
        raise ConfigError(asked, "no such file, and no space of that name", near(path.stem, bundled))
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"), asked)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(asked, f"it cannot be read ({error})", f"Give a YAML file, or one of {_names()}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(asked, "it is not a mapping of a recipe's keys", FORM)
    return content


def _dimension(key: str, value: dict[str, Any]) -> Choices | Range:
    kind = Choices if "choices" in value else Range
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}".removeprefix(": ") for item in error.errors()]
        raise ConfigError(f"search space, {key}", "; ".join(problems), FORM) from None


def _plain(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).splitlines()[0]


def _names() -> str:
    return ", ".join(bundled_spaces())
