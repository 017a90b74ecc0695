"""The sampled product as Triton kernels: x in panels whose tokens lie together, then gather, multiply and add.

In x [B, I] neighbours in a column are I elements apart, so gathering from it would fetch a 32-byte sector for every 2
bytes used. So x is first copied into panels [B/T, I, T], T tokens filling a cache line; gathering from those uses all
that it fetches, and each panel stays in the second-level cache while all neurons draw from it. dy is read by rows and
turned over on the chip. Elements moved in main memory: 2·B·I for the panels, at most B·I to read them again, B·O for
dy. The ideal at K=1, B·I + B·O, would need x gathered on the chip. Layers that share x can share its panels, and where
only some columns of x were kept, panels of those are all there is to make.

Sums are float32, in an order that depends on the shapes alone; there are no atomics. Not yet measured on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# tl.sum is itself a jit function, compiled or interpreted as the import of triton decided; tl.reduce is neither.
from triton.language.standard import _sum_combine

from neuroada.errors import ConfigError
from neuroada.ops.sparse_delta.backends.triton.device import entry_block, panel_tokens, split
from neuroada.ops.sparse_delta.backends.triton.launch import launch, require_reachable

COLUMNS = 64
"""Columns of x that one program turns over: 64 bfloat16 are a cache line of a row of x. Not measured."""

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@triton.jit
def panels_kernel(
    x, columns, panels, tokens, width, stride_b, stride_i,
    chosen: tl.constexpr, per_panel: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    panel = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * block + tl.arange(0, block)
    inside = column < width
    if chosen:
        source = tl.load(columns + column, mask=inside, other=0).to(tl.int64)
    else:
        source = column.to(tl.int64)
    token = panel * per_panel + tl.arange(0, per_panel)
    at = x + token[:, None] * stride_b + source[None, :] * stride_i
    tile = tl.load(at, mask=(token < tokens)[:, None] & inside[None, :], other=0.0)
    to = panels + (panel * width + column)[:, None] * per_panel + tl.arange(0, per_panel)[None, :]
    tl.store(to, tl.trans(tile), mask=inside[:, None])


@triton.jit
def product_kernel(
    panels, dy, indices, neurons, sums, tokens, count, entries, panel_step, dy_step, stride_b, stride_o,
    panel_count, length,
    chosen: tl.constexpr, per_panel: tl.constexpr, block_neurons: tl.constexpr, block_entries: tl.constexpr,
):  # fmt: skip
    blocks = (entries + block_entries - 1) // block_entries
    row = tl.program_id(0) // blocks * block_neurons + tl.arange(0, block_neurons)
    entry = tl.program_id(0) % blocks * block_entries + tl.arange(0, block_entries)
    inside = (row < count)[:, None] & (entry < entries)[None, :]
    at = row.to(tl.int64)[:, None] * entries + entry[None, :]
    column = tl.load(indices + at, mask=inside, other=0).to(tl.int64)
    if chosen:
        neuron = tl.load(neurons + row, mask=row < count, other=0).to(tl.int64)
    else:
        neuron = row.to(tl.int64)

    part = tl.program_id(1).to(tl.int64)
    first = part * length
    lane = tl.arange(0, per_panel)
    token = first * per_panel + lane
    x_at = panels + first * panel_step + column[:, :, None] * per_panel + lane[None, None, :]
    dy_at = dy + neuron[:, None] * stride_o + token[None, :] * stride_b
    total = tl.full([block_neurons, block_entries, per_panel], 0.0, tl.float32)
    for _ in range(0, tl.minimum(length, panel_count - first)):
        x_tile = tl.load(x_at, mask=inside[:, :, None], other=0.0).to(tl.float32)
        dy_tile = tl.load(dy_at, mask=(row < count)[:, None] & (token < tokens)[None, :], other=0.0).to(tl.float32)
        total = tl.fma(x_tile, tl.broadcast_to(dy_tile[:, None, :], [block_neurons, block_entries, per_panel]), total)
        x_at += panel_step
        dy_at += dy_step
        token += per_panel
    tl.store(sums + part * count * entries + at, tl.reduce(total, 2, _sum_combine), mask=inside)


def token_panels(x: Tensor, columns: Tensor | None = None) -> Tensor:
    """Columns of x, copied so that T tokens of each lie together in a cache line; zeros after the last token.

    Args:
        x: [B, I], bfloat16, float16 or float32, any strides.
        columns: [U], any integer dtype, in [0, I): the columns that are wanted, ascending for speed; None for all.
            Values are not looked at.

    Returns:
        [⌈B/T⌉, U, T] contiguous, x's dtype; T is 64 in 16 bits and 32 in float32.

    Raises:
        ConfigError: another dtype, or a device that Triton cannot reach here.
    """
    _require_dtype(x)
    require_reachable(x.device)
    tokens, width = x.shape[0], x.shape[1] if columns is None else len(columns)
    per_panel = panel_tokens(x.element_size())
    panels = x.new_empty(triton.cdiv(tokens, per_panel), width, per_panel)
    launch(
        panels_kernel, (triton.cdiv(width, COLUMNS), len(panels)), x.device,
        x, x if columns is None else columns.contiguous(), panels, tokens, width, *x.stride(),
        chosen=columns is not None, per_panel=per_panel, block=COLUMNS,
    )  # fmt: skip
    return panels


def panel_product(panels: Tensor, dy: Tensor, indices: Tensor, neurons: Tensor | None = None) -> Tensor:
    """g[n, j] = Σ_b dy[b, neuron n] · x[b, indices[n, j]] for x in `token_panels`, accumulated in float32.

    Args:
        panels: [⌈B/T⌉, U, T] from `token_panels`.
        dy: [B, O], bfloat16, float16 or float32, any strides.
        indices: [N, K], any integer dtype, in [0, U): they count the columns of the panels. Values are not looked at.
        neurons: [N], any integer dtype, in [0, O), repeated or not; None for N = O.

    Returns:
        [N, K] float32; the same bits each time.

    Raises:
        ConfigError: another dtype, shapes that do not fit, or a device that Triton cannot reach here.
    """
    _require_dtype(panels)
    _require_dtype(dy)
    require_reachable(dy.device)
    (count, entries), tokens = indices.shape, dy.shape[0]
    covered = dy.shape[1] if neurons is None else len(neurons)
    per_panel = panel_tokens(panels.element_size())
    if covered != count or panels.shape[::2] != (triton.cdiv(tokens, per_panel), per_panel):
        raise ConfigError(
            "A sampled product",
            f"panels have shape {list(panels.shape)}, dy {list(dy.shape)} and indices {list(indices.shape)} for "
            f"{covered} neurons",
            "Make the panels from the x that belongs to this dy, and give indices one row for each neuron",
        )
    if not tokens or not indices.numel():
        return torch.zeros(indices.shape, dtype=torch.float32, device=dy.device)
    parts, length = split(tokens, count, entries, panels.element_size())
    block_neurons, block_entries = entry_block(entries)
    sums = torch.empty(parts, count, entries, dtype=torch.float32, device=dy.device)
    launch(
        product_kernel, (triton.cdiv(count, block_neurons) * triton.cdiv(entries, block_entries), parts), dy.device,
        panels, dy, indices.contiguous(), indices if neurons is None else neurons.contiguous(), sums,
        tokens, count, entries, panels.stride(0), per_panel * dy.stride(0), *dy.stride(), len(panels), length,
        chosen=neurons is not None, per_panel=per_panel, block_neurons=block_neurons, block_entries=block_entries,
        num_warps=4 if block_neurons * block_entries <= 64 else 8,
    )  # fmt: skip
    return sums[0] if parts == 1 else sums.sum(0)


def sampled_product(x: Tensor, dy: Tensor, indices: Tensor, neurons: Tensor | None = None) -> Tensor:
    """g[n, j] = Σ_b dy[b, neuron n] · x[b, indices[n, j]]: x [B, I] into panels, then `panel_product`."""
    return panel_product(token_panels(x), dy, indices, neurons)


def _require_dtype(tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        raise ConfigError(
            "A sampled product as a Triton kernel",
            f"an input is {tensor.dtype}, and sums are float32",
            f"Give {', '.join(map(str, DTYPES))}, or use the plain torch path",
        )
