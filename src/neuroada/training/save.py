"""What a run leaves of its model."""

import torch

from neuroada.recipe.methods import ADAPTERS, OWN
from neuroada.recipe.schema import Recipe
from neuroada.run_folder.card import write_card
from neuroada.run_folder.folder import RunFolder, whole_folder
from neuroada.training.prepared import Prepared


def save(recipe: Recipe, prepared: Prepared, folder: RunFolder, state: dict[str, torch.Tensor] | None) -> None:
    """The adapter, or the whole model with what prepares its input where base weights were trained.

    state: of a sharded model.
    """
    with whole_folder(folder.trained(recipe.method)) as beside:
        prepared.model.save_pretrained(str(beside), state_dict=state)
        if recipe.method in OWN:
            write_card(beside, recipe)
        if recipe.method not in ADAPTERS:
            prepared.processor.save_pretrained(str(beside))
