"""Which inputs of each neuron get a delta: scores W → [O, I], then the top k of each row → indices [N, K]."""

from neuroada.selection.allocation import allocate, score_steps
from neuroada.selection.coverage import covered_neurons
from neuroada.selection.drop_and_grow import kept_entries, moved, places_before
from neuroada.selection.global_topk import TopEntries, draw_entries
from neuroada.selection.scores import CRITERIA, Criterion, ScoreFunction, Statistics
from neuroada.selection.topk import require_finite, scores_of, select, top_k

__all__ = [
    "CRITERIA",
    "Criterion",
    "ScoreFunction",
    "Statistics",
    "TopEntries",
    "allocate",
    "covered_neurons",
    "draw_entries",
    "kept_entries",
    "moved",
    "places_before",
    "require_finite",
    "score_steps",
    "scores_of",
    "select",
    "top_k",
]
