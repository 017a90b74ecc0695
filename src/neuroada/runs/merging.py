"""Whether a trained model says the same when its adapter is merged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device

from neuroada.errors import DamagedRunError, MergeError
from neuroada.runs import report
from neuroada.runs.folder import RunFolder
from neuroada.runs.methods import METHODS
from neuroada.runs.recipe import to_yaml
from neuroada.runs.schema import Recipe

if TYPE_CHECKING:
    from neuroada.runs.train import Prepared


@torch.no_grad()
def compare_merged(prepared: Prepared, rows: int) -> dict[str, Any]:
    """Logits of one held-out batch, adapted and then merged, compared bit for bit; merges the model."""
    model, held_out = prepared.model, prepared.data.held_out
    batch = prepared.data.collator([held_out[row] for row in range(min(rows, len(held_out)))])
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "logits_to_keep")}
    inputs = send_to_device(inputs, model.device)
    model.eval()
    adapted = model(**inputs).logits
    merged = model.merge_and_unload()(**inputs).logits
    bits = torch.int16 if adapted.element_size() == 2 else torch.int32
    differing = int((adapted.view(bits) != merged.view(bits)).sum())
    return {
        "equal": differing == 0,
        "logits": adapted.numel(),
        "differing": differing,
        "largest": float((adapted.float() - merged.float()).abs().max()),
    }


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
        require_exact(recipe, summary, folder)
    return summary


def require_exact(recipe: Recipe, summary: dict[str, Any], folder: RunFolder) -> None:
    """Raise MergeError if a run's summary says that merging changed outputs, and its method promises otherwise."""
    merge = summary["merge"]
    if merge is None or merge["equal"] or not METHODS[recipe.method].exact_merge:
        return
    raise MergeError(
        "merging the trained adapter",
        report.difference_text(merge),
        f"Use {folder.adapter} unmerged, and report this as a defect of neuroada",
    )
