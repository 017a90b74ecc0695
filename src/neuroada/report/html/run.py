"""A run folder as `neuroada train` leaves it, finished or not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from neuroada.errors import ConfigError, MissingInputError
from neuroada.report.paper.published import PUBLISHED_LABELS
from neuroada.report.rows import SHOWN_SETTINGS

LABELS = PUBLISHED_LABELS | {"ia3": "(IA)³", "probe": "linear probe"}
SETTINGS_IN_LABEL = (*SHOWN_SETTINGS, "budget")


class Part(BaseModel):
    """What a report needs of a file; it may hold more."""

    model_config = ConfigDict(extra="ignore", frozen=True)


AnyPart = TypeVar("AnyPart", bound=Part)


class Score(Part):
    """A test's score with its 95 % interval; fractions."""

    name: str
    metric: str
    value: float
    low: float
    high: float
    count: int
    note: str = ""
    majority: float | None = None


class Step(Part):
    """A record of training."""

    step: int
    loss: float
    learning_rate: float | None = None


class HeldOut(Part):
    """An evaluation of the held-out part, "before" training, "after" it, or in a step."""

    when: str = ""
    step: int | None = None
    loss: float | None = None
    score: float | None = None


class Scored(Part):
    """Scores of the tests, "before" training or "after" it."""

    when: str
    scores: list[Score]


class Merge(Part):
    """Logits of a held-out batch, adapted against merged."""

    equal: bool
    logits: int
    differing: int
    largest: float


class Summary(Part):
    """What a finished run says of itself; None where it does not."""

    trainable_parameters: int | None = None
    parameters: int | None = None
    deltas: int | None = None
    surviving_deltas: int | None = None
    steps: int | None = None
    training_seconds: float | None = None
    seconds: float | None = None
    samples_per_second: float | None = None
    tokens_per_second: float | None = None
    peak_memory_bytes: int | None = None
    peak_memory_of: str = ""
    adapter_bytes: int | None = None
    merge: Merge | None = None


class _Model(Part):
    name: str
    dtype: str = ""


class _Recipe(Part):
    model: _Model
    method: str
    data: dict[str, Any] = {}


@dataclass(frozen=True)
class Run:
    """What a run folder holds.

    name: short, another one for each run of a report. recipe, environment: as they were written. scores: by "before"
    and "after". summary: None where the run is not finished.
    """

    path: Path
    name: str
    recipe: dict[str, Any]
    environment: dict[str, Any]
    steps: list[Step]
    held_out: list[HeldOut]
    scores: dict[str, list[Score]]
    summary: Summary | None

    @property
    def model(self) -> str:
        """The base model's name."""
        return self.recipe["model"]["name"]

    @property
    def model_name(self) -> str:
        """The base model's name, without the path of a local folder."""
        is_path = Path(self.model).is_absolute() or self.model.startswith("~/")
        return Path(self.model).name if is_path else self.model

    @property
    def dtype(self) -> str:
        """Of the base weights."""
        return self.recipe["model"].get("dtype") or ""

    @property
    def method(self) -> str:
        """As people know it, with the settings that tell it from others."""
        name = self.recipe["method"]
        settings = self.recipe.get(name) or {}
        shown = [f"{key}={settings[key]}" for key in SETTINGS_IN_LABEL if settings.get(key) is not None]
        return " ".join([LABELS.get(name, name), *shown])

    @property
    def data(self) -> dict[str, Any]:
        """The recipe's section."""
        return self.recipe.get("data") or {}

    @property
    def task(self) -> str:
        """Of the recipe."""
        return str(self.data.get("task") or "text")

    @property
    def subject(self) -> str:
        """What it was trained for; runs with the same one can be set side by side."""
        own = {"instruct": ("file", "dataset"), "images": ("name", "folder")}
        keys = {"glue": ("name",), "text": ("text", "data_dir"), **own}
        named = [str(self.data[key]) for key in keys.get(self.task, ()) if self.data.get(key)]
        return " ".join(["GLUE" if self.task == "glue" else self.task, *named])

    def evaluated(self, when: str) -> HeldOut | None:
        """The held-out part "before" or "after" training."""
        return next((record for record in reversed(self.held_out) if record.when == when), None)

    def is_average(self, score: Score) -> bool:
        """Whether a score is the mean of several tests: those are called like their task."""
        return score.name.split("-")[0] == self.task


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in these folders, each once, with the shortest names that tell them apart.

    Raises:
        MissingInputError: a folder is not there, or is no run.
        ConfigError: a file in it is broken; the message says which, and in which line.
    """
    folders = list(dict.fromkeys(path.resolve() for path in paths))
    return [_read_run(path, name) for path, name in zip(folders, short_names(folders), strict=True)]


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of different absolute paths, as few as tell them apart."""
    longest = max(len(path.parts) for path in paths)
    candidates = (["/".join(path.parts[-count:]) for path in paths] for count in range(1, longest + 1))
    return next(names for names in candidates if len(set(names)) == len(names))


def read_lines(path: Path, kind: type[AnyPart]) -> Iterator[AnyPart]:
    """Each line of a .jsonl file; nothing without the file.

    Raises:
        ConfigError: a line is not what it should be; the message names file and line.
    """
    for where, line in _lines(path):
        yield _part(kind, line, where)


def _read_run(path: Path, name: str) -> Run:
    asked, do = f"run {path}", "Name a folder that `neuroada train` wrote"
    if not path.is_dir():
        raise MissingInputError(asked, "it is a file" if path.exists() else "no such folder", do)
    if not (path / "recipe.yaml").is_file():
        raise MissingInputError(asked, "it is no run: there is no recipe.yaml in it", do)
    steps, held_out, scores = [], [], {}
    for where, line in _lines(path / "metrics.jsonl"):
        event = line.get("event")
        if event == "train":
            steps.append(_part(Step, line, where))
        elif event == "evaluate":
            held_out.append(_part(HeldOut, line, where))
        elif event == "scores":
            scored = _part(Scored, line, where)
            scores[scored.when] = scored.scores
    summary = _read_json(path / "summary.json")
    return Run(
        path=path,
        name=name,
        recipe=_read_recipe(path / "recipe.yaml"),
        environment=_read_json(path / "environment.json") or {},
        steps=steps,
        held_out=held_out,
        scores=scores,
        summary=None if summary is None else _part(Summary, summary, f"summary {path / 'summary.json'}"),
    )


def _read_recipe(path: Path) -> dict[str, Any]:
    asked = f"recipe {path}"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(asked, f"it is not valid YAML ({error})", "Repair it") from None
    _part(_Recipe, content, asked)
    return content


def _read_json(path: Path) -> dict[str, Any] | None:
    """None without the file."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(str(path), f"it is not valid JSON ({error})", "Repair or remove it") from None
    if not isinstance(content, dict):
        raise ConfigError(str(path), "it holds no JSON object", "Repair or remove it")
    return content


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and line, its object). A last line that was cut short, as by a kill, is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            try:
                content = json.loads(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    return
                raise ConfigError(where, f"it is not valid JSON ({error})", "Repair or remove that line") from None
            if not isinstance(content, dict):
                raise ConfigError(where, "it holds no JSON object", "Repair or remove that line")
            yield where, content


def _part(kind: type[AnyPart], content: Any, where: str) -> AnyPart:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(name) for name in first["loc"])
        found = f"{field}: {first['msg']}" if field else first["msg"]
        raise ConfigError(where, found, "Repair or remove it") from None
