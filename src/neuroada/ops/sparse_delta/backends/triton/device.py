"""The kernels on CUDA: whether they can run, and where the dense product overtakes them.

They are in the other files of this folder, which import triton; this one does not before it is asked.
None of it has yet been measured on a GPU: every constant below is reasoned, and is for a benchmark to confirm.
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from math import ceil

import torch

OLDEST_TRITON = (3, 2)
"""What torch 2.6 came with. The kernels were compiled for sm_80 and sm_90 with 3.2.0 and 3.9.0; 3.0.0 cannot."""

OLDEST_CAPABILITY = (8, 0)
"""What Triton itself supports; older GPUs have no bfloat16 either."""

LINE_BYTES = 128
"""Bytes of one column of x that lie together: a cache line, so that each gather uses all it fetches. Not measured."""

SPLIT_ABOVE = 4
"""Panels of tokens that one program works through at least: a split sum costs 8 bytes an entry, against 4 · 128 bytes
of x that were read for it. Not measured."""

PROGRAMS = 2048
"""Programs that a product is split into where it has fewer: 16 for each of the 132 multiprocessors of an H100 or H200.
A constant, not read from the device, so that sums are made in the same order everywhere. Not measured."""

DENSE_ABOVE = {2: 1 / 128, 4: 1 / 16}
"""By bytes of an element: the K / I above which the dense product, gathered, should be cheaper than the sampled one.
Per token and neuron the sampled product draws K · size bytes from the second-level cache, the dense one needs 2 · I
FLOPs, so they meet at K / I = 2 · (cache bytes/s) / (size · FLOP/s). Assumed for an H100: 5 TB/s of cache, 600 TFLOP/s
in 16-bit tensor cores (1/120), 45 TFLOP/s in float32 without TF32 (1/18). Not measured. The first is for a dense
product whose factors stay in 16 bits; one that converts them to float32 is cheaper from K / I = 1/9 on only."""


@cache
def available() -> tuple[bool, str]:
    """(whether the kernels can be used here, with what or why not): a phrase without a full stop.

    The first call imports triton, and where there is a GPU compiles and launches one small kernel on it.
    """
    try:
        import triton
    except ImportError as error:
        return False, f"triton cannot be imported ({error})"
    version = triton.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TRITON:
        return False, f"triton is {version}, and {'.'.join(map(str, OLDEST_TRITON))} or newer is needed"
    launch = importlib.import_module("neuroada.ops.sparse_delta.backends.triton.launch")
    if launch.INTERPRETED:
        return True, f"triton {version}, interpreted on the CPU"
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return False, "TRITON_INTERPRET was set after the kernels had been loaded"
    if not torch.cuda.is_available():
        return False, "PyTorch sees no CUDA device"
    capability, name = torch.cuda.get_device_capability(), torch.cuda.get_device_name()
    if capability < OLDEST_CAPABILITY:
        needed, found = (".".join(map(str, each)) for each in (OLDEST_CAPABILITY, capability))
        return False, f"{name} has compute capability {found}, and {needed} or newer is needed"
    try:
        launch.trial(torch.device("cuda", torch.cuda.current_device()))
    except Exception as error:  # a missing C compiler, an old driver: whatever it is, it is told
        return False, f"triton {version} cannot launch a kernel on {name} ({type(error).__name__}: {error})"
    return True, f"triton {version} on {name}"


def is_interpreted() -> bool:
    """Whether the kernels, which can be used, run in Triton's interpreter, on tensors of the CPU."""
    return importlib.import_module("neuroada.ops.sparse_delta.backends.triton.launch").INTERPRETED


def panel_tokens(element_size: int) -> int:
    """T: tokens of one panel, for x of 2 or 4 bytes an element."""
    return LINE_BYTES // element_size


def entry_block(entries: int) -> tuple[int, int]:
    """(neurons, entries of each) that one program of the product works on, for K entries a neuron; powers of two."""
    wide = min(8, 1 << (entries - 1).bit_length())
    return max(16, 64 // wide), wide


def split(tokens: int, neurons: int, entries: int, element_size: int) -> tuple[int, int]:
    """(parts, panels in each part) that the sum over B tokens is made in, for [N, K] entries; from shapes alone."""
    panels = ceil(tokens / panel_tokens(element_size))
    block_neurons, block_entries = entry_block(entries)
    programs = ceil(neurons / block_neurons) * ceil(entries / block_entries)
    parts = max(1, min(PROGRAMS // programs, panels // SPLIT_ABOVE))
    length = ceil(panels / parts)
    return ceil(panels / length), length
