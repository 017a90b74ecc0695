"""Which inputs of each neuron get a delta: scores W → [O, I], then the top k of each row → indices [N, K]."""

from neuroada.selection.coverage import covered_neurons
from neuroada.selection.scores import SCORES
from neuroada.selection.topk import require_finite, select, top_k

__all__ = ["SCORES", "covered_neurons", "require_finite", "select", "top_k"]
