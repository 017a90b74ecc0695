"""Searches over a small recipe, and what they print."""

import os
from pathlib import Path
from typing import Any

from rich.console import Console

from neuroada.recipe.files import RecipeFile
from neuroada.tuning.objective import Search
from neuroada.tuning.search import tune
from neuroada.tuning.space import load_space

RATES = "training.learning_rate={low: 1e-4, high: 1.0, log: true}"
KS = "neuroada.k={choices: [1, 2, 3]}"


def make_search(recipe: Path, *given: str, seed: int = 0, **kept: Any) -> Search:
    given = given or (RATES, KS)
    file = RecipeFile(recipe)
    return Search(file, load_space(given, file), recipe.parent / "out", [], kept, seed)


def run(search: Search, trials: int = 4, **options: Any) -> tuple[Any, str]:
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=160, file=nowhere)
        study = tune(search, console, trials=trials, in_process=True, **options)
    return study, console.export_text()
