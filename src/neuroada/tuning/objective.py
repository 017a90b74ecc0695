"""What a search is asked to do: where it looks, and what it goes for."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuroada.errors import DivergedError
from neuroada.recipe.files import RecipeFile
from neuroada.recipe.schema import Recipe
from neuroada.tuning.space import Space, build_recipe


@dataclass(frozen=True)
class Objective:
    """What a search goes for, of the held-out part: a score as high as can be, or else a loss as low as can be."""

    metric: str

    @classmethod
    def of(cls, task: str) -> "Objective":
        """A score where Trainer's evaluations give one for the task."""
        return cls("score" if task in ("glue", "images") else "loss")

    @property
    def maximise(self) -> bool:
        """Whether more is better."""
        return self.metric == "score"

    @property
    def text(self) -> str:
        """For people."""
        return f"held-out {self.metric}, {'highest' if self.maximise else 'lowest'} first"

    def value(self, summary: Mapping[str, Any]) -> float:
        """Of a run.

        Raises:
            DivergedError: it is not finite.
        """
        value = summary[f"held_out_{self.metric}_after"]
        if not math.isfinite(value):
            found = f"the held-out {self.metric} is {value}"
            raise DivergedError("judging a trial", found, "Search smaller learning rates")
        return value


@dataclass(frozen=True)
class Search:
    """A recipe, changed by `overrides` and `values`, what to try in it, and the folder of the trials' runs."""

    file: RecipeFile
    space: Space
    output: Path
    overrides: Sequence[str] = ()
    values: Mapping[str, Any] | None = None
    seed: int = 0

    def recipe(self, chosen: Mapping[str, Any]) -> Recipe:
        """The recipe of a trial."""
        return build_recipe(self.file, self.overrides, {**chosen, **(self.values or {})})

    @property
    def first(self) -> Recipe:
        """Some recipe of the space."""
        return self.recipe(self.space.kept | {key: each.ends[0] for key, each in self.space.searched.items()})
