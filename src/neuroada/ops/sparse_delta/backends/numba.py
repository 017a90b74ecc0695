"""The sampled product on the CPU, compiled by Numba (the extra `neuroada[cpu]`).

x and dy are transposed a tile of tokens at a time, in float32; then every entry is a dot product of two short
contiguous rows, which the compiler turns into vector instructions without gathers. Tiles are summed in order, so that
the rounding error is that of a blocked GEMM.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from numba import njit, types
from numba.extending import overload
from torch import Tensor

TILE = 64
"""Tokens a tile: with I = 2048 its columns of x fill half of a second-level cache of 1 MiB."""
NEURONS = 128
"""Neurons whose dy is transposed at a time: 32 KiB."""
CHUNKS = 16
"""Parts that the tokens are cut into for threads, however many those are, so that sums are the same."""


def _float32(value):
    raise NotImplementedError("compiled only")


@overload(_float32)
def _overload_float32(value):
    if value == types.uint16:  # bfloat16: the upper half of a float32's bits
        return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)
    return lambda value: value


@njit(nogil=True, fastmath={"contract"}, cache=True)
def _transpose(source, first, tokens, low, out):
    """out[i, t] = source[first + t, low + i]; zero beyond the tokens."""
    width = min(out.shape[0], source.shape[1] - low)
    for i_block in range(0, width, 16):
        for t_block in range(0, TILE, 8):
            for i in range(i_block, min(i_block + 16, width)):
                for t in range(t_block, t_block + 8):
                    out[i, t] = _float32(source[first + t, low + i]) if t < tokens else np.float32(0)


@njit(nogil=True, fastmath={"contract", "reassoc"}, cache=True)
def _sum_products(x, dy, indices, out, start, stop):
    """out[N, K] += the sums over the tokens from `start` to `stop`."""
    count, per_neuron = indices.shape
    columns = np.empty((x.shape[1], TILE), np.float32)
    errors = np.empty((NEURONS, TILE), np.float32)
    for first in range(start, stop, TILE):
        tokens = min(TILE, stop - first)
        _transpose(x, first, tokens, 0, columns)
        for low in range(0, count, NEURONS):
            _transpose(dy, first, tokens, low, errors)
            for n in range(min(NEURONS, count - low)):
                error = errors[n]
                for j in range(per_neuron):
                    column, total = columns[indices[low + n, j]], np.float32(0)
                    for t in range(TILE):
                        total += error[t] * column[t]
                    out[low + n, j] += total


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="neuroada")


def sampled_product(x: Tensor, dy: Tensor, indices: Tensor, neurons: Tensor | None = None) -> Tensor:
    """g[n, j] = Σ_b dy[b, neuron n] · x[b, indices[n, j]], the same bits for any number of threads.

    Args:
        x: [B, I], float32 or bfloat16, on the CPU.
        dy: [B, O], the same dtype.
        indices: [N, K], any integer dtype, in [0, I).
        neurons: [N], any integer dtype, in [0, O), or None for N = O.

    Returns:
        [N, K], float32.
    """
    if neurons is not None:
        dy = dy.index_select(1, neurons.long())
    x, dy = x.contiguous(), dy.contiguous()
    if x.dtype == torch.bfloat16:
        x, dy = x.view(torch.uint16), dy.view(torch.uint16)
    tokens = len(x)
    chunk = TILE * max(1, -(-tokens // (TILE * CHUNKS)))
    spans = [(start, min(start + chunk, tokens)) for start in range(0, tokens, chunk)]
    sums = torch.zeros(len(spans), *indices.shape)
    arrays = (x.numpy(), dy.numpy(), indices.to(torch.int32).contiguous().numpy())
    work = [(*arrays, part, *span) for part, span in zip(sums.numpy(), spans, strict=True)]
    threads = min(torch.get_num_threads(), len(work))
    if threads > 1:
        for done in [_pool(torch.get_num_threads()).submit(_sum_products, *task) for task in work]:
            done.result()
    else:
        for task in work:
            _sum_products(*task)
    return sums.sum(0)
