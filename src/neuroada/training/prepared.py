"""What training starts from: the data read, the model loaded, the support chosen, and the model wrapped."""

from dataclasses import dataclass, replace
from typing import Any

import transformers
from rich.console import Console

from neuroada.inputs.data import Data, Source, open_data
from neuroada.inputs.digest import digest_of
from neuroada.inputs.models import load_model
from neuroada.recipe.methods import METHODS
from neuroada.recipe.schema import Recipe
from neuroada.training.wrapping import Trainee, apply_method


@dataclass(frozen=True)
class Prepared:
    """A model as its method trains it, and its data, ready for Trainer. processor: as of a `LoadedModel`."""

    trainee: Trainee
    processor: Any
    model_source: str
    source: Source
    data: Data

    @property
    def model(self) -> Any:
        """A PeftModel, or the base model where its own weights are trained."""
        return self.trainee.model

    def without_tests(self) -> "Prepared":
        """The same, but the task's tests are left alone."""
        return replace(self, data=replace(self.data, tests=None))

    def depends_on(self, processes: int) -> dict[str, Any]:
        """What the course of a training depends on beside its recipe."""
        course: dict[str, Any] = {
            "processes": processes,
            "samples": len(self.data.train),
            "data": digest_of(self.data.train, self.data.held_out),
        }
        if self.source.labels:
            course["labels"] = list(self.source.labels)
        return course if self.trainee.chosen is None else {**course, "chosen": self.trainee.chosen}


def prepare(recipe: Recipe, console: Console) -> Prepared:
    """Read the data, then load the model, encode the data for it, and wrap the model with the method."""
    source = open_data(recipe.data, recipe.evaluation, recipe.seed, METHODS[recipe.method].virtual_tokens)
    transformers.set_seed(recipe.seed)  # a new head is random
    loaded = load_model(recipe.model.name, recipe.model.dtype, console, source.head)
    data = source.encode(loaded.processor, loaded.model)
    transformers.set_seed(recipe.seed)
    with console.status("Choosing what to train"):
        trainee = apply_method(recipe.method, recipe.seeded_settings, loaded.model, source.task_type)
    return Prepared(trainee, loaded.processor, loaded.source, source, data)
