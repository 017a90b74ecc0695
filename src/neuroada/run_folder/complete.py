"""Complete runs: their summary, and whether what it says of merging is what the method promises."""

from typing import Any

from neuroada.errors import DamagedRunError, MergeError
from neuroada.recipe.loading import to_yaml
from neuroada.recipe.methods import METHODS
from neuroada.recipe.schema import Recipe
from neuroada.run_folder.folder import RunFolder
from neuroada.run_folder.summary import difference_text


def complete_summary(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """The summary of a complete run.

    Raises:
        MergeError: it says that merging changed outputs, and the run's method promises otherwise.
        DamagedRunError: it cannot be read, or is of another recipe, as where a default was another one.
    """
    with folder.reading():
        changed, summary = folder.changed_since(to_yaml(recipe)), folder.read_summary()
        if changed:
            found = f"its run is complete, but of another recipe; now: {changed}"
            raise DamagedRunError(f"run folder {folder.path}", found, "Delete it, and it is trained again")
        require_exact(recipe.method, summary, folder)
    return summary


def require_exact(method: str, summary: dict[str, Any], folder: RunFolder) -> None:
    """Raise MergeError if a run's summary says that merging changed outputs, and its method promises otherwise."""
    merge = summary["merge"]
    if merge is None or merge["equal"] or not METHODS[method].exact_merge:
        return
    raise MergeError(
        "merging the trained adapter",
        difference_text(merge),
        f"Use {folder.adapter} unmerged, and report this as a defect of neuroada",
    )
