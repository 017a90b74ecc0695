"""The published results of NeuroAda and NEAT as data, to be set beside one's own."""

from __future__ import annotations

import re
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from neuroada.errors import ConfigError, near
from neuroada.report.rows import LABELS

TASKS = {
    "commonsense": (
        *("boolq", "piqa", "social_i_qa", "hellaswag", "winogrande"),
        *("ARC-Easy", "ARC-Challenge", "openbookqa"),
    ),
    "arithmetic": ("AQuA", "gsm8k", "mawps", "SVAMP", "MultiArith", "AddSub", "SingleEq", "MATH"),
    "glue": ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"),
    "images": ("oxford_pets", "stanford_cars", "cifar10", "dtd", "eurosat", "fgvc", "resisc45", "cifar100"),
}
"""The tests of each family, in the names of `neuroada.tasks`."""

PUBLISHED_LABELS = LABELS | {
    "none": "not fine-tuned",
    "series-adapter": "Series adapter",
    "parallel-adapter": "Parallel adapter",
    "adapter": "Adapter",
    "adapter-ffn": "Adapter (FFN)",
    "smt": "SMT",
    "prefix": "prefix tuning",
    "bitfit": "BitFit",
    "red": "RED",
    "direft": "DiReFT",
    "loreft": "LoReFT",
    "pissa": "PiSSA",
    "milora": "MiLoRA",
    "fourierft": "FourierFT",
    "linear-probe": "linear probe",
    "neat": "NEAT",
    "nonlinear-lora": "nonlinear LoRA",
    "multiplicative-lora": "multiplicative LoRA",
}
"""Methods that the papers compare, as people know them."""

Family = Literal["commonsense", "arithmetic", "glue", "images"]
Scalar = bool | int | float | str
Score = Annotated[float, Field(ge=-100, le=100)]
Decimals = Annotated[int, Field(ge=0, le=4)]
Text = Annotated[str, Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PublishedRow(_Strict):
    """One method in a published table.

    trained_percent: share of the whole model, in (0, 100]; None where it is not printed. trained_parameters: the
    count, where that is printed instead. scores: by task, in percent; cells that the source leaves empty or that
    cannot be read are not there. spread: standard deviations of them. average: as printed, right or wrong.
    decimals: how many the source prints. taken_from: where it says that it has the values from. note: what is wrong
    or unclear about the row.
    """

    method: str
    settings: dict[str, Scalar] = {}
    trained_percent: Annotated[float, Field(gt=0, le=100)] | None = None
    trained_parameters: Annotated[int, Field(gt=0)] | None = None
    scores: Annotated[dict[str, Score], Field(min_length=1)]
    spread: dict[str, Annotated[float, Field(ge=0)]] = {}
    average: Score
    decimals: Decimals = 1
    taken_from: Text | None = None
    note: Text | None = None

    @field_validator("method")
    @classmethod
    def _known_method(cls, name: str) -> str:
        if name not in PUBLISHED_LABELS:
            raise ValueError(f"no such method. {near(name, PUBLISHED_LABELS)}")
        return name

    @property
    def label(self) -> str:
        """The method as people know it, with its settings."""
        return " ".join([PUBLISHED_LABELS[self.method], *(f"{key}={value}" for key, value in self.settings.items())])

    @property
    def mean(self) -> float:
        """Mean of the scores that are there."""
        return float(_mean(self))


class PublishedTable(_Strict):
    """The rows of one source and table for one model.

    In the file, scores are lists in the order of `tasks`, and `decimals` is said once for all rows.
    """

    source: Text
    table: Text
    family: Family
    model: Text
    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    decimals: Decimals = 1
    note: Text | None = None
    rows: Annotated[tuple[PublishedRow, ...], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _name_cells(cls, content: Any) -> Any:
        if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
            return content
        tasks, decimals = content.get("tasks") or [], content.get("decimals", 1)
        return content | {"rows": [_with_names(row, tasks, decimals) for row in content["rows"]]}

    @model_validator(mode="after")
    def _known_tasks(self):
        for task in self.tasks:
            if task not in TASKS[self.family]:
                raise ValueError(f"{self.family} has no task {task!r}. {near(task, TASKS[self.family])}")
        return self


def _with_names(row: Any, tasks: list[str], decimals: int) -> Any:
    if not isinstance(row, dict):
        return row
    named: dict[str, Any] = {"decimals": decimals}
    for key in ("scores", "spread"):
        cells = row.get(key)
        if isinstance(cells, list):
            if len(cells) != len(tasks):
                raise ValueError(f"{row.get('method')}: {len(cells)} {key} for {len(tasks)} tasks")
            named[key] = {task: cell for task, cell in zip(tasks, cells, strict=True) if cell is not None}
    return row | named


class Chosen(_Strict):
    """Settings that a source chose, and for what (a k, a task)."""

    where: dict[str, Scalar]
    values: dict[str, Scalar]


class PublishedSettings(_Strict):
    """How a source trained: what it fixed, what it searched over, what it chose.

    marked: values that the source marks as the best, where its text no longer shows of what.
    """

    source: Text
    table: Text
    family: Family
    model: Text
    method: Text
    fixed: dict[str, Scalar | list[Scalar]] = {}
    search: dict[str, list[Scalar]] = {}
    marked: dict[str, list[Scalar]] = {}
    chosen: tuple[Chosen, ...] = ()
    note: Text | None = None


class PublishedStatement(_Strict):
    """Numbers that a source prints about a figure in its text."""

    source: Text
    place: Text
    text: Text
    values: dict[str, float]


class Published(_Strict):
    """All that a file holds, or all files together."""

    tables: tuple[PublishedTable, ...] = ()
    settings: tuple[PublishedSettings, ...] = ()
    statements: tuple[PublishedStatement, ...] = ()


class Found(NamedTuple):
    """A row and the table that it stands in."""

    table: PublishedTable
    row: PublishedRow


def read_published(path: Path) -> Published:
    """One file of published results.

    Raises:
        ConfigError: it is no YAML, or not of this form; the message says where.
    """
    asked = f"published results {path}"
    try:
        return Published.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ConfigError(asked, f"it is not valid YAML ({error})", "Correct the syntax") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(name) for name in first["loc"])
        raise ConfigError(asked, f"{place}: {first['msg']}", "Correct the file") from None


@cache
def published() -> Published:
    """What the files beside this module hold, together."""
    files = [read_published(path) for path in sorted(Path(__file__).parent.glob("published-*.yaml"))]
    return Published(
        tables=tuple(table for file in files for table in file.tables),
        settings=tuple(each for file in files for each in file.settings),
        statements=tuple(each for file in files for each in file.statements),
    )


def find(model: str | None = None, family: str | None = None, method: str | None = None) -> list[Found]:
    """The published rows of a model, a family of tasks and a method, in the order of the files; None means any.

    model: a name as in the tables ("LLaMA-7B"), a hub id of the same base model, or a folder called like one.
    """
    return [
        Found(table, row)
        for table in published().tables
        for row in table.rows
        if (model is None or model_key(model) == model_key(table.model))
        and (family is None or family == table.family)
        and (method is None or method == row.method)
    ]


def model_key(name: str) -> str:
    """What names and hub ids of one base model share: "meta-llama/Meta-Llama-3-8B" and "Llama-3-8B" are equal, and so
    are "google/vit-base-patch16-224-in21k" and "ViT-base"."""
    last = name.rstrip("/").split("/")[-1].lower()
    return re.sub(r"^meta-|-hf$|-patch\d+-\d+(-in21k)?$", "", last)


def averages_agree(row: PublishedRow) -> bool:
    """Whether the printed average can be the mean of the printed scores, all of them being rounded.

    Rounding shifts each of them, and so their mean, by half a unit of the last decimal at most, and the printed
    average by as much again.
    """
    return abs(_mean(row) - _exact(row.average)) <= Decimal(1).scaleb(-row.decimals)


def _mean(row: PublishedRow) -> Decimal:
    return sum((_exact(score) for score in row.scores.values()), Decimal(0)) / len(row.scores)


def _exact(value: float) -> Decimal:
    return Decimal(str(value))
