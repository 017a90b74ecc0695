"""A study: recipes that differ in method, learning rate and seed, run cell by cell, and what they scored."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError
from rich.console import Console

from neuroada.errors import ConfigError
from neuroada.measure.bars import counting
from neuroada.measure.machine import provenance
from neuroada.measure.process import call_in_fresh_process
from neuroada.measure.record import Record
from neuroada.measure.rounds import Row
from neuroada.measure.run import run_fields, run_record, selection_value
from neuroada.runs.folder import RunFolder
from neuroada.runs.recipe import find_recipe, load_recipe, to_yaml
from neuroada.runs.schema import Recipe


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StudyMethod(_Strict):
    """A row of a study. set: what it changes in the recipe. learning_rates: tried with the first seed."""

    set: dict[str, Any]
    learning_rates: list[PositiveFloat] = Field(min_length=1)


class Study(_Strict):
    """What a study file says.

    recipe: name or path. set: changes for every cell. seeds: the first one chooses each method's learning rate by the
    held-out part, and the best rate is then trained with all of them. methods: by label.
    """

    recipe: str
    set: dict[str, Any] = {}
    seeds: list[int] = Field(min_length=1)
    methods: dict[str, StudyMethod] = Field(min_length=1)


@dataclass(frozen=True)
class Cell:
    """One training of a study."""

    label: str
    learning_rate: float
    recipe: Recipe

    @property
    def name(self) -> str:
        """Of its run folder: readable, and another one for any other content."""
        digest = hashlib.sha256(to_yaml(self.recipe).encode()).hexdigest()[:8]
        slug = re.sub(r"[^a-z0-9]+", "-", self.label.lower()).strip("-")
        return f"{slug}-lr{self.learning_rate:g}-seed{self.recipe.seed}-{digest}"


def load_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        ConfigError: it cannot be read, or says something unknown.
    """
    try:
        return Study.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"study {path}", str(error), "Give a YAML file such as those in benchmarks/studies"
        ) from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"study {path}", problems, "Correct the file") from None


def run_study(
    path: Path,
    output: Path,
    values: Mapping[str, Any],
    console: Console,
    threads: int | None = None,
    keep: Callable[[Record], None] = lambda _: None,
) -> list[Record]:
    """Train every cell that `output` does not have yet; one record for each cell, failures too.

    values: dotted keys set in every recipe, such as data.data_dir. keep: called with each record as soon as its cell
    ends. Cells that were interrupted go on.
    """
    study = load_study(path)
    cells = {label: list(_cells(study, label, values, study.seeds[:1])) for label in study.methods}
    for each in cells.values():
        for cell in each:
            to_yaml(cell.recipe)
    total = sum(map(len, cells.values())) + len(cells) * (len(study.seeds) - 1)
    records = []
    with counting(console, "Cells", total) as advance:

        def run(cell: Cell) -> dict[str, Any] | None:
            advance(cell.name, 0)
            row = Row(cell.label)
            arguments = {"recipe": cell.recipe, "output": output / cell.name, "threads": threads}
            summary = row.attempt(partial(call_in_fresh_process, train_cell, arguments, threads))
            records.append(_record(study, path, cell, row, RunFolder(output / cell.name)))
            keep(records[-1])
            advance("", 1)
            return summary

        for label, tried in cells.items():
            scored = [(cell, summary) for cell in tried if (summary := run(cell)) is not None]
            if not scored:
                advance("", len(study.seeds) - 1)
                continue
            best = max(scored, key=lambda pair: selection_value(pair[1]))[0].learning_rate
            for cell in _cells(study, label, values, study.seeds[1:]):
                if cell.learning_rate == best:
                    run(cell)
    return records


def train_cell(recipe: Recipe, output: Path, threads: int | None) -> dict[str, Any]:
    """The summary of a run that is complete, or is completed now."""
    from neuroada.runs.train import train

    if threads is not None:
        torch.set_num_threads(threads)
    folder = RunFolder(output)
    if not folder.summary.is_file():
        train(recipe, output, Console(quiet=True), resume=folder.recipe.is_file())
    return folder.read_summary()


def _cells(study: Study, label: str, values: Mapping[str, Any], seeds: list[int]) -> Iterator[Cell]:
    method, path = study.methods[label], find_recipe(study.recipe)
    for seed in seeds:
        for rate in method.learning_rates:
            changes = {**study.set, **method.set, "training.learning_rate": rate, "seed": seed, **values}
            yield Cell(label, rate, load_recipe(path, values=changes))


def _record(study: Study, path: Path, cell: Cell, row: Row, folder: RunFolder) -> Record:
    fields: dict[str, Any] = {
        "kind": "study",
        "method": cell.label,
        "settings": {"learning_rate": cell.learning_rate},
        "notes": {"study": path.stem, "recipe": study.recipe, "cell": cell.name},
    }
    if row.status == "ok":
        return run_record(folder, fields)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    failure = {"status": row.status, "reason": row.reason}
    return Record(**provenance(device, cell.recipe.seed), **run_fields(cell.recipe), **fields, **failure)
