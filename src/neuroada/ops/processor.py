"""What the processor multiplies by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch

INSTRUCTIONS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16"),
}
"""What PyTorch calls the x86 instructions that multiply a 16-bit type; any one of them will do."""


_plans_for_another = False


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Take no product for emulated: for plans of a device other than this processor."""
    global _plans_for_another
    before, _plans_for_another = _plans_for_another, True
    try:
        yield
    finally:
        _plans_for_another = before


def lacks_instructions(device: str, dtype: torch.dtype) -> bool:
    """Whether products in `dtype` are emulated here, and so slower than casting to float32 and multiplying there.

    True only where PyTorch describes an x86 processor without the instructions; in doubt False.
    """
    return device == "cpu" and dtype in INSTRUCTIONS and not _plans_for_another and _are_missing(dtype)


@lru_cache
def _are_missing(dtype: torch.dtype) -> bool:
    if not hasattr(torch.cpu, "get_capabilities"):
        return False
    found = torch.cpu.get_capabilities()
    return found.get("architecture") == "x86_64" and not any(found.get(name) for name in INSTRUCTIONS[dtype])
