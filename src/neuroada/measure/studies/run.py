"""Records of finished runs: what was trained, what it cost, and what it scored."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from neuroada.errors import MissingInputError
from neuroada.inputs.tests import FAMILIES
from neuroada.measure.machine import provenance_in
from neuroada.measure.record import Measurement, Record, RecordedScore, Shape
from neuroada.recipe.loading import load_recipe
from neuroada.recipe.methods import METHODS
from neuroada.recipe.schema import Recipe
from neuroada.run_folder.folder import RunFolder
from neuroada.tasks.scores import Score, average


def read_run(path: Path) -> Record:
    """The record of a complete run, named after its folder.

    Raises:
        MissingInputError: there is no run in it, or it is not complete.
        DamagedRunError: a file of the run, or a part of one, is missing.
    """
    folder = RunFolder(path)
    if not folder.recipe.is_file():
        raise MissingInputError(f"run {path}", "there is no run in it", "Name the folder that `neuroada train` made")
    if not folder.summary.is_file():
        do = f"neuroada train --resume --output {path}"
        raise MissingInputError(f"run {path}", "it is not complete", do)
    with folder.reading():
        recipe = load_recipe(folder.recipe)
    others = {
        "kind": "run",
        "method": METHODS[recipe.method].label,
        "settings": recipe.settings,
        "notes": {"run": path.resolve().name},
    }
    return run_record(folder, others)


def run_record(folder: RunFolder, others: Mapping[str, Any]) -> Record:
    """Of a complete run, with where and when it was trained; `others` are the record's other fields.

    Raises:
        DamagedRunError: a file of the run, or a part of one, is missing.
    """
    with folder.reading():
        return _record(folder, others)


def _record(folder: RunFolder, others: Mapping[str, Any]) -> Record:
    summary = folder.read_summary()
    environment = json.loads(folder.environment.read_text(encoding="utf-8"))
    counts = {
        "trained_parameters": (summary["trainable_parameters"], "parameters"),
        "parameters": (summary["parameters"], "parameters"),
        "steps": (summary["steps"], "steps"),
        "selection": (selection_value(summary), "x"),
        "held_out_loss_before": (summary.get("held_out_loss_before", math.nan), "nats"),
        "held_out_loss": (summary["held_out_loss_after"], "nats"),
        "training_time": (summary["training_seconds"], "s"),
        "peak_memory": (summary["peak_memory_bytes"], "bytes"),
    }
    return Record(
        **provenance_in(environment),
        **run_fields(load_recipe(folder.recipe)),
        **others,
        measurements={
            name: Measurement.count(value, unit) for name, (value, unit) in counts.items() if math.isfinite(value)
        },
        scores=[
            RecordedScore(when=when, **score)
            for when in ("before", "after")
            for score in _averaged(summary[f"scores_{when}"])
        ],
    )


def _averaged(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With the mean of several tests, where they are not all of an average that is there already."""
    averages = {name for family in FAMILIES.values() for name in family.averages}
    if len(scores) < 2 or averages & {score["name"] for score in scores}:
        return scores
    known = {field.name for field in fields(Score)}
    found = [Score(**{name: value for name, value in score.items() if name in known}) for score in scores]
    return [*scores, asdict(average(f"mean of {len(scores)} tests", found))]


def run_fields(recipe: Recipe) -> dict[str, Any]:
    """The fields of a `Record` that a recipe tells."""
    name = recipe.model.name
    return {
        "shape": Shape(name=Path(name).resolve().name if Path(name).is_dir() else name, sizes={}),
        "batch": recipe.training.per_device_train_batch_size,
        "dtype": recipe.model.dtype,
    }


def selection_value(summary: Mapping[str, Any]) -> float:
    """By which runs of one task are compared, larger is better: the held-out score, or else minus the held-out loss."""
    score = summary.get("held_out_score_after")
    return -summary["held_out_loss_after"] if score is None else score
