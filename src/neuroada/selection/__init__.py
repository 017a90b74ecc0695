"""Which inputs of each neuron get a delta: scores W → [O, I], then the top k of each row → indices [N, K]."""

from neuroada.selection.coverage import covered_neurons
from neuroada.selection.regrowth import kept_entries, moved, places_before
from neuroada.selection.scores import COMPARABLE, CRITERIA, WITHOUT_DATA, Criterion, ScoreFunction, Statistics
from neuroada.selection.spread import score_steps, spread
from neuroada.selection.topk import require_finite, select, top_k

__all__ = [
    "COMPARABLE",
    "CRITERIA",
    "WITHOUT_DATA",
    "Criterion",
    "ScoreFunction",
    "Statistics",
    "covered_neurons",
    "kept_entries",
    "moved",
    "places_before",
    "require_finite",
    "score_steps",
    "select",
    "spread",
    "top_k",
]
