"""Which inputs of each neuron get a delta: scores W → [O, I], then the top k of each row → indices [N, K]."""

from neuroada.selection.coverage import covered_neurons
from neuroada.selection.scores import CRITERIA, WITHOUT_DATA, Criterion, ScoreFunction, Statistics
from neuroada.selection.together import TopEntries, draw_entries
from neuroada.selection.topk import require_finite, scores_of, select, top_k

__all__ = [
    "CRITERIA",
    "WITHOUT_DATA",
    "Criterion",
    "ScoreFunction",
    "Statistics",
    "TopEntries",
    "covered_neurons",
    "draw_entries",
    "require_finite",
    "scores_of",
    "select",
    "top_k",
]
