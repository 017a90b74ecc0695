"""Entries chosen from several weights together, not neuron by neuron."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from neuroada.selection.coverage import digest_of
from neuroada.selection.topk import top_k


class TopEntries:
    """The `count` largest scores of several weights together; ties go to the earlier weight, then the lower position.

    The weights are seen one after the other, and no more than `count` scores are kept of them all.
    """

    def __init__(self, count: int) -> None:
        """count: at most as many as the weights have entries."""
        self.count = count
        self.scores: Tensor | None = None
        self.places: list[Tensor] = []

    def see(self, scores: Tensor) -> None:
        """Of the next weight: any shape and real dtype, without NaN."""
        flat = scores.flatten()
        own = top_k(flat[None], min(self.count, len(flat)))[0]
        before = flat[:0] if self.scores is None else self.scores
        together = torch.cat([before, flat[own].to(before.device)])
        best = top_k(together[None], min(self.count, len(together)))[0]
        self.scores = together[best]
        sizes = [len(places) for places in (*self.places, own)]
        self.places = [places[kept] for places, kept in zip((*self.places, own), _shares(best, sizes), strict=True)]

    def positions(self) -> list[Tensor]:
        """For each weight in turn, the entries chosen of it: int64 [n], ascending, in the flattened weight."""
        return self.places


def draw_entries(sizes: Sequence[int], count: int, seed: int, name: str) -> list[Tensor]:
    """`count` distinct entries drawn uniformly from weights of these sizes together, as `TopEntries` gives them."""
    numbers = np.random.default_rng(digest_of(seed, name, "entries"))
    drawn = numbers.choice(sum(sizes), count, replace=False, shuffle=False)
    return _shares(torch.from_numpy(drawn).long().sort().values, sizes)


def _shares(places: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Ascending places in a row of parts of these sizes, as those in each part."""
    ends = torch.tensor(sizes, device=places.device).cumsum(0)
    cuts = torch.searchsorted(places, ends)[:-1].tolist()
    starts = (ends - torch.tensor(sizes, device=places.device)).tolist()
    return [part - start for part, start in zip(places.tensor_split(cuts), starts, strict=True)]
