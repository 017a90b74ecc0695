"""What a study trains: recipes that differ in method, in a setting along an axis, in learning rate and in seed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, model_validator

from neuroada.errors import ConfigError, near
from neuroada.recipe.files import bundled, find_recipe, parse_yaml
from neuroada.recipe.loading import load_recipe
from neuroada.recipe.schema import Recipe

Rates = list[PositiveFloat]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Change(_Strict):
    """What a method, or a point of an axis, changes in the recipe.

    set: dotted keys. learning_rates: tried with the first seed.
    """

    set: dict[str, Any] = {}
    learning_rates: Rates = []


class Axis(_Strict):
    """A setting that every method is trained at several values of. name: what the numbers are, as a figure says it."""

    name: str = Field(min_length=1)
    points: dict[float, Change] = Field(min_length=1)


class Study(_Strict):
    """What a study file says.

    recipe: name, or path from the study's file or the current folder. set: changes for every cell. seeds: the first
    one chooses the learning rate of each row by the held-out part, and the best rate is then trained with all of them.
    methods: by label. axis: a row for each method and point, or for each method if there is none. Learning rates stand
    with the methods or with the points.
    """

    recipe: str
    set: dict[str, Any] = {}
    seeds: list[int] = Field(min_length=1)
    methods: dict[str, Change] = Field(min_length=1)
    axis: Axis | None = None

    @model_validator(mode="after")
    def _rates_once(self) -> Study:
        rates = [*self.methods.values(), *(self.axis.points.values() if self.axis else ())]
        for name, values in (("seeds", self.seeds), *(("learning_rates", change.learning_rates) for change in rates)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: {values} repeats a value")
        for change in (self, *rates):
            if found := sorted({"seed", "training.learning_rate"} & change.set.keys()):
                raise ValueError(f"set: {found[0]} is what a study tries: give it as seeds or learning_rates")
        points = [None] if self.axis is None else list(self.axis.points)
        for label in self.methods:
            for point in points:
                given = [change.learning_rates for change in self.changes(label, point) if change.learning_rates]
                if len(given) != 1:
                    where = label if point is None else f"{label} at {point:g}"
                    raise ValueError(f"{where}: learning_rates are given {'twice' if given else 'nowhere'}")
        return self

    def changes(self, label: str, point: float | None) -> list[Change]:
        """Of a method, and of a point if there are any."""
        method = self.methods[label]
        return [method] if self.axis is None or point is None else [method, self.axis.points[point]]


@dataclass(frozen=True)
class Cell:
    """One training of a study."""

    label: str
    point: float | None
    learning_rate: float
    recipe: Recipe

    @property
    def name(self) -> str:
        """Readable, and another one for any other content, wherever the data lie. So its run folder is called, unless
        one of the same content has been trained under another label."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.label.lower()).strip("-")
        at = "" if self.point is None else f"-at{self.point:g}"
        return f"{slug}{at}-lr{self.learning_rate:g}-seed{self.recipe.seed}-{self.digest}"

    @property
    def digest(self) -> str:
        """Of all that is trained: cells of any label and study that have it in common are the same training."""
        return _digest(self._content())

    @property
    def row_content(self) -> str:
        """A digest of what all cells of its row have in common: those of another one are not to be mixed with them."""
        content = self._content()
        content["training"].pop("learning_rate")
        return _digest({key: value for key, value in content.items() if key != "seed"})

    def _content(self) -> dict[str, Any]:
        content = self.recipe.differing()
        content.get("data", {}).pop("data_dir", None)
        return {key: value for key, value in content.items() if value != {}}


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(yaml.safe_dump(dict(content)).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class GridRow:
    """One line of a study's table: a method, at a point if there is an axis. values: set in every recipe."""

    study: Study
    label: str
    point: float | None
    values: Mapping[str, Any]

    @property
    def learning_rates(self) -> Rates:
        """That the first seed tries, in ascending order."""
        return sorted(rate for change in self.study.changes(self.label, self.point) for rate in change.learning_rates)

    def cell(self, learning_rate: float, seed: int) -> Cell:
        """One training of this row.

        Raises:
            ConfigError: the recipe that results cannot be meant.
        """
        own = {"training.learning_rate": learning_rate, "seed": seed, **self.values}
        parts: dict[str, Any] = {}
        for given in (self.study, *self.study.changes(self.label, self.point)):
            parts = _without(parts, given.set) | given.set  # of keys that replace each other the later one counts
        parts = _without(parts, own) | own
        try:
            recipe = load_recipe(find_recipe(self.study.recipe), values=parts)
        except ConfigError as error:
            at = "" if self.point is None else f" at {self.point:g}"
            asked = f"{self.label!r}{at} of the study, {error.asked}"
            raise ConfigError(asked, error.found, error.do) from error
        return Cell(self.label, self.point, learning_rate, recipe)


def _without(parts: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in parts.items() if key not in others}


def rows_of(study: Study, values: Mapping[str, Any]) -> Iterator[GridRow]:
    """The rows of a study's table; values: dotted keys set in every recipe, such as data.data_dir."""
    for label in study.methods:
        for point in [None] if study.axis is None else list(study.axis.points):
            yield GridRow(study, label, point, values)


def bundled_studies() -> dict[str, Path]:
    """Name and path of each study that comes with the package."""
    return bundled("studies")


def find_study(name: str) -> Path:
    """The file of a bundled study's name or of a path.

    Raises:
        ConfigError: neither is there; the message lists the bundled names, near ones first.
    """
    known, path = bundled_studies(), Path(name).expanduser()
    if name in known or path.is_file():
        return known.get(name, path)
    raise ConfigError(f"study {name!r}", "neither a bundled study nor a file", near(path.stem, known))


def load_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        ConfigError: it cannot be read, or says something unknown.
    """
    try:
        study = Study.model_validate(parse_yaml(path.read_text(encoding="utf-8"), f"study {path}"))
    except (OSError, UnicodeDecodeError) as error:
        do = "Give a YAML file such as those in src/neuroada/studies"
        raise ConfigError(f"study {path}", str(error), do) from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {_said(e)}".lstrip(": ") for e in error.errors())
        raise ConfigError(f"study {path}", problems, "Correct the file") from None
    beside = path.parent / study.recipe
    return study.model_copy(update={"recipe": str(beside)}) if beside.is_file() else study


def _said(error: Mapping[str, Any]) -> str:
    """What is wrong with one place of a study file."""
    if error["type"] != "extra_forbidden":
        return str(error["msg"])
    place, key = error["loc"][:-1], str(error["loc"][-1])
    model = Study if not place else Axis if place == ("axis",) else Change
    return f"no such key. {near(key, model.model_fields)}"
