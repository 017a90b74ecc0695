"""Top k of each row, the same on every device: ties go to the lower index (invariant I7)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from neuroada.errors import ConfigError, WeightError
from neuroada.selection.coverage import generator_for
from neuroada.selection.scores import CRITERIA, Criterion, Statistics, low_rank_part

ROW_BLOCK_ENTRIES = 1 << 20
"""Scores worked on at a time. With ties the work on a block takes some 15 bytes an entry: 15 MiB."""


def top_k(scores: Tensor, k: int) -> Tensor:
    """Positions of the k largest scores of each row, ascending; among equal scores the lower position wins.

    Args:
        scores: [rows, I], any real dtype, without NaN.
        k: in [1, I].

    Returns:
        int64 [rows, k], strictly ascending along each row.
    """
    if k == 1:
        return scores.argmax(dim=1, keepdim=True)
    values, chosen = scores.topk(k, dim=1)
    threshold = values[:, -1:]
    # topk leaves open which of several entries equal to the k-th value it returns: settle those rows by a stable sort.
    ambiguous = (scores >= threshold).sum(dim=1) > k
    if ambiguous.any():
        rows = ambiguous.nonzero().squeeze(1)
        chosen[rows] = scores[rows].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return chosen.sort(dim=1).values


def select(
    weight: Tensor,
    k: int,
    selection: str | Criterion,
    seed: int,
    name: str,
    neurons: Tensor | None = None,
    *,
    gradient: Tensor | None = None,
    inputs: Tensor | None = None,
    kept: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Choose k inputs for each (covered) neuron of a weight.

    Works in row blocks, so that it needs little more memory than its result.

    Args:
        weight: [O, I], any float dtype and layout, finite.
        k: in [1, I].
        selection: a name in `CRITERIA`, or a criterion of one's own.
        seed: of random selection.
        name: of the weight in its model, so that random choices do not depend on module order.
        neurons: int64 [N] ascending, or None for all O.
        gradient, inputs: statistics of calibration data, where the criterion needs them (see `Statistics`), [O, I]
            and [I].
        kept: (indices [N, k], bool [N, k]) of an earlier choice: where true, the input is chosen whatever its score.

    Returns:
        int32 [N, k], strictly ascending along each row, on the weight's device.

    Raises:
        ConfigError: a criterion of one's own returns something else than real scores of its rows' shape.
        WeightError: a score is NaN.
    """
    count = weight.shape[0] if neurons is None else len(neurons)
    indices = torch.empty(count, k, dtype=torch.int32, device=weight.device)
    for start, scores in scored_blocks(weight, selection, seed, name, neurons, gradient, inputs):
        block = slice(start, start + len(scores))
        if kept is not None:
            scores = _always(scores, *(part[block] for part in kept))
        indices[block] = top_k(scores, k)
    return indices


def scores_of(
    weight: Tensor,
    selection: str,
    seed: int,
    name: str,
    gradient: Tensor | None = None,
    inputs: Tensor | None = None,
) -> Tensor:
    """What a criterion gives each entry of a weight, as `select` sees it: [O, I], on the weight's device."""
    return torch.cat([scores for _, scores in scored_blocks(weight, selection, seed, name, None, gradient, inputs)])


def scored_blocks(
    weight: Tensor,
    selection: str | Criterion,
    seed: int,
    name: str,
    neurons: Tensor | None,
    gradient: Tensor | None,
    inputs: Tensor | None,
) -> Iterator[tuple[int, Tensor]]:
    """The arguments of `select` → (number of the first row among the covered, scores [rows, I]), block by block."""
    own = not isinstance(selection, str)
    criterion = CRITERIA[selection] if isinstance(selection, str) else selection
    generator = generator_for(seed, name, selection if isinstance(selection, str) else "")
    low_rank = low_rank_part(weight) if "low_rank" in criterion.needs else None
    count = weight.shape[0] if neurons is None else len(neurons)
    rows_per_block = max(1, ROW_BLOCK_ENTRIES // weight.shape[1])
    for start in range(0, count, rows_per_block):
        stop = min(start + rows_per_block, count)
        block = slice(start, stop) if neurons is None else neurons[start:stop].to(weight.device, torch.int64)
        rows = weight[block].clone() if own else weight[block]  # a function may write to what it is given
        found = (part if part is None else part[block] for part in (gradient, low_rank))
        parts = [part.clone() if own and part is not None else part for part in (*found, inputs)]
        scores = criterion.score(rows, Statistics(generator, gradient=parts[0], low_rank=parts[1], inputs=parts[2]))
        if own:
            _require_scores(scores, rows, name)
        if own or criterion.needs:
            _require_numbers(scores, name)
        yield start, scores


def _always(scores: Tensor, indices: Tensor, kept: Tensor) -> Tensor:
    """Scores [rows, I] with infinity, and there alone, where kept [rows, k] says so of indices [rows, k]."""
    scores = scores if scores.is_floating_point() else scores.double()
    scores, indices = scores.clamp(max=torch.finfo(scores.dtype).max), indices.long()
    return scores.scatter(1, indices, scores.gather(1, indices).masked_fill(kept, torch.inf))


def _require_scores(scores: object, rows: Tensor, name: str) -> None:
    asked, wanted = f"Choosing inputs of {name} by a criterion of one's own", f"a real tensor of shape {[*rows.shape]}"
    if not isinstance(scores, Tensor):
        raise ConfigError(asked, f"it returned a {type(scores).__name__}", f"Return {wanted}, a score for each entry")
    if scores.shape != rows.shape or scores.is_complex() or scores.dtype == torch.bool:
        found = f"it returned {str(scores.dtype).removeprefix('torch.')} of shape {[*scores.shape]}"
        raise ConfigError(asked, found, f"Return {wanted}, a score for each entry")


def _require_numbers(scores: Tensor, name: str) -> None:
    if scores.isnan().any():
        raise WeightError(
            f"Choosing inputs of {name}",
            f"{int(scores.isnan().sum())} of {scores.numel()} scores in a block of neurons are NaN",
            "Look for NaN in the calibration batches and in the losses that they give",
        )


def require_finite(weight: Tensor, name: str) -> None:
    """Raise WeightError if the weight called `name` holds NaN or infinity; one pass, no copy."""
    lowest, highest = weight.aminmax()
    if lowest.isfinite() and highest.isfinite():
        return
    bad = weight.numel() - int(weight.isfinite().sum())
    raise WeightError(
        f"Adapting {name}",
        f"{bad} of its {weight.numel()} weights are NaN or infinite",
        "Load the base weights before adapting them, and check the checkpoint for damage",
    )
