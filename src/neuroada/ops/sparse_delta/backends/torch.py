"""The products of the operation in plain torch, for any device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_ENTRIES = 1 << 20
"""Entries of x, or of dense rows, that the gradient works on at a time: 4 MiB in float32. A choice, not measured."""

FEW = 3
"""Deltas a neuron up to which single columns are gathered for blocks of tokens: on two Cascade Lake cores with 1,024
tokens, I=2048, O=5504, 12 against 35 ms at K=1 and 17 against 34 at K=2; 3 is where the lines would meet."""
SUMMED_TOKENS = 512
"""Tokens whose terms one product adds up in float32; their sums are added in float64. Not every BLAS sums in blocks."""
MOST_TOKENS = 4096
"""Tokens that a block of the float32 product is cut for: more would make blocks too narrow for a GEMM. A choice."""


def sampled_product(x: Tensor, dy: Tensor, indices: Tensor, neurons: Tensor | None = None) -> Tensor:
    """g[n, j] = Σ_b dy[b, neuron n] · x[b, indices[n, j]]: B·N·K multiplications, a block of neurons at a time.

    Args:
        x: [B, I], any float dtype.
        dy: [B, O], the same dtype.
        indices: [N, K], any integer dtype, in [0, I).
        neurons: [N], any integer dtype, in [0, O), or None for N = O.

    Returns:
        [N, K], float32 (float64 for float64 inputs), accumulated in that type, on CPUs in float64
        from block to block.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    total = torch.float64 if x.device.type == "cpu" else wide  # some devices have no float64
    if indices.shape[1] <= FEW and x.device.type == "cpu":
        return _sum_over_tokens(x, dy, indices, neurons, wide)
    columns = x.T.contiguous()
    gradient = torch.empty(indices.shape, dtype=wide, device=x.device)
    for block in _blocks(len(indices), indices.shape[1] * x.shape[0]):
        gathered = columns.index_select(0, indices[block].reshape(-1).long()).to(wide)  # [rows · K, B]
        rows = _rows(dy, neurons, block).to(wide).unsqueeze(2)  # [rows, B, 1]
        gathered = gathered.view(len(rows), indices.shape[1], len(x))
        summed = torch.zeros(*gathered.shape[:2], 1, dtype=total, device=x.device)
        for part in zip(gathered.split(SUMMED_TOKENS, 2), rows.split(SUMMED_TOKENS, 1), strict=True):
            summed += torch.bmm(*part)
        gradient[block] = summed.squeeze(2)
    return gradient


def _sum_over_tokens(x: Tensor, dy: Tensor, indices: Tensor, neurons: Tensor | None, wide: torch.dtype) -> Tensor:
    """The sampled product without a transposed copy of x or dy, a block of tokens at a time: one pass for each of K.

    Sums of blocks are added up in float64, so that the error does not grow with their number.
    """
    gradient = torch.zeros(indices.shape, dtype=torch.float64)
    columns = indices.T.long()
    for block in _blocks(len(x), max(len(indices), x.shape[1])):
        errors = dy[block] if neurons is None else dy[block].index_select(1, neurons.long())
        inputs, errors = x[block].to(wide), errors.to(wide)
        for j, column in enumerate(columns):
            gradient[:, j] += inputs.index_select(1, column).mul_(errors).sum(0)
    return gradient.to(wide)


def dense_product(x: Tensor, dy: Tensor, indices: Tensor, neurons: Tensor | None = None) -> Tensor:
    """The same sums, gathered from whole rows of dyᵀx that are made a block of neurons at a time.

    On CUDA the product is made in the inputs' own dtype, for which there are tensor cores, and so rounded to it once.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    gradient = torch.empty(indices.shape, dtype=wide, device=x.device)
    factor = x.dtype if x.is_cuda else wide
    columns = x.to(factor)
    for block in _blocks(len(indices), x.shape[1]):
        rows = _rows(dy, neurons, block).to(factor)
        gradient[block] = (rows @ columns).gather(1, indices[block].long())
    return gradient


def widened_product(dy: Tensor, weight: Tensor) -> Tensor:
    """dy W with both factors in float32, a block of the weight at a time, cut along its longer side.

    Args:
        dy: [B, O], a 16-bit dtype.
        weight: [O, I], any float dtype and layout; rounded to dy's first.

    Returns:
        [B, I], dy's dtype, rounded once.
    """
    outputs, inputs = weight.shape
    beside = min(len(dy), MOST_TOKENS)
    if outputs > inputs:
        total = torch.zeros(len(dy), inputs, dtype=torch.float32, device=dy.device)
        for block in _blocks(outputs, max(inputs, beside)):
            torch.addmm(total, dy[:, block].float(), weight[block].to(dy.dtype).float(), out=total)
        return total.to(dy.dtype)
    dx, rows = dy.new_empty(len(dy), inputs), dy.float()
    for block in _blocks(inputs, max(outputs, beside)):
        dx[:, block] = rows @ weight[:, block].to(dy.dtype).float()
    return dx


def _rows(dy: Tensor, neurons: Tensor | None, block: slice) -> Tensor:
    return dy.T[block] if neurons is None else dy.T[neurons[block].long()]


def _blocks(count: int, entries_each: int) -> Iterator[slice]:
    step = max(1, BLOCK_ENTRIES // max(1, entries_each))
    return (slice(start, start + step) for start in range(0, count, step))
