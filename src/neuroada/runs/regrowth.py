"""Drop and grow in a recipe: its section, and the callback that does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator
from transformers import TrainerCallback

from neuroada.errors import ConfigError, near
from neuroada.runs.sharding import is_sharded
from neuroada.selection import CRITERIA
from neuroada.tuners import RegrowCallback
from neuroada.tuners.regrow import DROP_FRACTION
from neuroada.tuners.regrow_callback import STOP_AFTER
from neuroada.tuners.statistics import MAX_MEMORY

if TYPE_CHECKING:
    from neuroada.runs.folder import RunFolder
    from neuroada.runs.schema import Recipe

Share = Annotated[float, Field(gt=0, le=1)]


class RegrowthSection(BaseModel):
    """Drop and grow while NeuroAda trains (`neuroada.regrow`); off without `every`, a number of optimiser steps.

    drop_fraction: of the deltas, each time. stop_after: a share of the training's steps. max_memory: bytes of gradients
    held at a time.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    every: PositiveInt | None = None
    drop_fraction: Share = DROP_FRACTION
    criterion: str = "gradient"
    stop_after: Share = STOP_AFTER
    max_memory: PositiveInt = MAX_MEMORY

    @model_validator(mode="after")
    def _nothing_in_vain(self) -> RegrowthSection:
        if self.model_fields_set and "every" not in self.model_fields_set:
            raise ValueError(
                "it is off without every; give every, a number of optimiser steps, or leave the section out"
            )
        return self

    @field_validator("criterion")
    @classmethod
    def _known_criterion(cls, name: str) -> str:
        if name not in CRITERIA:
            raise ValueError(f"no such criterion. {near(name, CRITERIA)}")
        return name


def check_regrowth(recipe: Recipe) -> None:
    """Raise ConfigError if a recipe asks for it where it cannot be done."""
    if recipe.regrowth.every is not None and is_sharded():
        raise ConfigError(
            f"regrowth.every={recipe.regrowth.every} under FSDP",
            "deltas are sharded over the processes, so that none has a whole neuron's",
            "Train with DistributedDataParallel, or leave regrowth.every out",
        )


def regrowth_text(recipe: Recipe, steps: int) -> str | None:
    """How often a training of so many steps will regrow, and how; None where it was not asked for."""
    asked = recipe.regrowth
    if asked.every is None:
        return None
    times = sum(step < asked.stop_after * steps for step in range(asked.every, steps + 1, asked.every))
    how = f"every {asked.every:,} steps before {asked.stop_after:.0%} of {steps:,}"
    return f"{times:,} times, {how}: {asked.drop_fraction:.0%} of each neuron's deltas, by {asked.criterion}"


def regrowth(recipe: Recipe, folder: RunFolder) -> list[TrainerCallback]:
    """What drops and grows NeuroAda's inputs where a recipe asks for it; each time is recorded in `folder`."""
    asked = recipe.regrowth
    if asked.every is None:
        return []

    def note(step: int, changed: int) -> None:
        folder.record("regrow", step=step, changed=changed)

    callback = RegrowCallback(
        every=asked.every,
        drop_fraction=asked.drop_fraction,
        criterion=asked.criterion,
        stop_after=asked.stop_after,
        records=recipe.calibration_records,
        batch_size=recipe.calibration_batch_size,
        max_memory=asked.max_memory,
        notify=note,
    )
    return [callback]
