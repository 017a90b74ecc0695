"""The operation's own parts by themselves: the deltas' gradient by each way of computing it, and the swap."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from neuroada.errors import ConfigError
from neuroada.measure.clock import free, seconds
from neuroada.measure.record import Measurement
from neuroada.measure.rounds import Rounds, Row, Timed
from neuroada.ops.sparse_delta import FrozenWeight, Support, with_support
from neuroada.ops.sparse_delta.backends.choice import BACKENDS, backend_for, set_backend
from neuroada.ops.sparse_delta.gradient import delta_gradient
from neuroada.selection import select

REPEAT = {"cpu": 1, "cuda": 20}
"""Calls in a row for each timing: a kernel of 30 µs is far above the resolution of an event then."""
COPY_BYTES = 1 << 28
"""Size of the tensor whose copy shows the memory's bandwidth: beyond the caches of the GPUs and CPUs of today."""

GEMM, COPY = "gemm", "copy"


@contextlib.contextmanager
def pinned(backend: str) -> Iterator[None]:
    """Compute with this backend meanwhile."""
    set_backend(backend)
    try:
        yield
    finally:
        set_backend(os.environ.get("NEUROADA_BACKEND", "auto"))


def possible_backends(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Those that can run here, each of which is timed."""
    possible = []
    for name in BACKENDS:
        with contextlib.suppress(ConfigError), pinned(name):
            possible.append(backend_for(device.type, dtype)[0])
    return list(dict.fromkeys(possible))


def time_products(weight: Tensor, x: Tensor, dy: Tensor, per_neuron: Sequence[int], rounds: Rounds) -> list[Row]:
    """Rows for each K: the gradient by the sparse product with each backend and by the dense one, and a swap.

    Beside them a plain GEMM of the same size, which times are divided by, and a copy, whose bandwidth is the machine's.
    `share_of_bandwidth` is the part of it that a call reaches by the bytes that it has to move at least.

    Args:
        weight: [O, I], frozen. x: [B, I]. dy: [B, O], all of one float dtype on one device.
        per_neuron: each K, in [1, I].
    """
    device, repeat = x.device, REPEAT.get(x.device.type, 1)
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    gemm, copy = Row(GEMM), Row(COPY)
    calls = [
        Timed(gemm, partial(seconds, lambda: dy.T @ x, device, repeat)),
        Timed(copy, partial(seconds, lambda: target.copy_(source), device, repeat)),
    ]
    moved = {COPY: 2 * COPY_BYTES}
    rows = [gemm, copy]
    backends = possible_backends(device, x.dtype)
    for k in per_neuron:
        indices = select(weight, k, "magnitude", 0, "layer")
        for backend, product in [*((name, "sparse") for name in backends), ("torch", "dense")]:
            row = Row("gradient", {"k": k, "product": product, "backend": backend})
            moved[row.label] = _gradient_bytes(x, dy, indices)
            calls.append(Timed(row, partial(_with, backend, partial(delta_gradient, x, dy, indices, None, product), x)))
            rows.append(row)
        support = Support(indices, torch.zeros(indices.shape, device=device))
        swap = partial(with_support, FrozenWeight(weight), support, lambda merged: merged)
        for backend in backends if device.type == "cuda" else ("torch",):  # on a CPU the others do not write
            row = Row("swap", {"k": k, "backend": backend})
            moved[row.label] = indices.numel() * (4 + 4 + 5 * weight.element_size())
            calls.append(Timed(row, partial(_with, backend, swap, x)))
            rows.append(row)
    rounds.time(calls, lambda *_: None, lambda: free(device))
    rounds.note(rows, "time", {GEMM: gemm})
    for row in rows:
        if row.label in moved and row.status == "ok":
            row.measurements["bytes_moved"] = Measurement.count(moved[row.label], "bytes")
            rates = [moved[row.label] / time for time in row.times]
            shares = [rate * time / moved[COPY] for rate, time in zip(rates, copy.times, strict=True)]
            row.measurements["share_of_bandwidth"] = Measurement.of(shares, "x")
    return rows


def _with(backend: str, call: Callable[[], object], x: Tensor) -> float:
    with pinned(backend):
        return seconds(call, x.device, REPEAT.get(x.device.type, 1))


def _gradient_bytes(x: Tensor, dy: Tensor, indices: Tensor) -> int:
    """x, dy and int32 indices read once, float32 sums written once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (x, dy)) + indices.numel() * (4 + 4)
