"""What the processor multiplies by itself."""

from __future__ import annotations

from functools import lru_cache

import torch

INSTRUCTIONS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16"),
}
"""What PyTorch calls the x86 instructions that multiply a 16-bit type; any one of them will do."""


@lru_cache
def lacks_instructions(device: str, dtype: torch.dtype) -> bool:
    """Whether products in `dtype` are emulated here, and so slower than casting to float32 and multiplying there.

    True only where PyTorch describes an x86 processor without the instructions; in doubt False.
    """
    if device != "cpu" or dtype not in INSTRUCTIONS or not hasattr(torch.cpu, "get_capabilities"):
        return False
    found = torch.cpu.get_capabilities()
    return found.get("architecture") == "x86_64" and not any(found.get(name) for name in INSTRUCTIONS[dtype])
