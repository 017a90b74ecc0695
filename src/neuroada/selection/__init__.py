"""Which inputs of each neuron get a delta: scores W → [O, I], then the top k of each row → indices [N, K]."""

from neuroada.selection.coverage import covered_neurons
from neuroada.selection.regrowth import kept_entries, moved, places_before
from neuroada.selection.scores import (
    COMPARABLE,
    CRITERIA,
    OWN,
    WITHOUT_DATA,
    Criterion,
    ScoreFunction,
    Statistics,
    waits_for_data,
)
from neuroada.selection.spread import score_steps, spread
from neuroada.selection.together import TopEntries, draw_entries
from neuroada.selection.topk import require_finite, scores_of, select, top_k

__all__ = [
    "COMPARABLE",
    "CRITERIA",
    "OWN",
    "WITHOUT_DATA",
    "Criterion",
    "ScoreFunction",
    "Statistics",
    "TopEntries",
    "covered_neurons",
    "draw_entries",
    "kept_entries",
    "moved",
    "places_before",
    "require_finite",
    "score_steps",
    "scores_of",
    "select",
    "spread",
    "top_k",
    "waits_for_data",
]
