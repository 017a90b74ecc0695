"""What all kernels share: whether Triton compiles or interprets them, how they are launched, a trial."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from neuroada.errors import ConfigError


@triton.jit
def _double_kernel(values):
    tl.store(values, tl.load(values) * 2)


INTERPRETED = not isinstance(_double_kernel, triton.JITFunction)
"""Whether TRITON_INTERPRET was set when this module was imported: Triton decides when a kernel is decorated."""


def require_reachable(device: torch.device) -> None:
    """Raise ConfigError if kernels cannot be launched on tensors of this device."""
    if device.type != ("cpu" if INTERPRETED else "cuda"):
        found = "Triton interprets kernels on the CPU here" if INTERPRETED else "Triton compiles kernels for CUDA"
        raise ConfigError(
            f"Launching a Triton kernel on {device}", found, "Move the tensors, or use the plain torch path"
        )


def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, *arguments: object, **constants: object) -> None:
    """Launch a kernel on the device of its tensors, whichever is the current one; a grid of nothing is not launched.

    Multiplications and additions are fused only where a kernel says fma, whatever Triton's default is.
    """
    require_reachable(device)
    if 0 in grid:
        return
    if INTERPRETED:
        kernel[grid](*arguments, **constants)
        return
    with torch.cuda.device(device):
        kernel[grid](*arguments, **constants, enable_fp_fusion=False)


def trial(device: torch.device) -> None:
    """Compile and launch a kernel on a GPU, and look at what it did."""
    values = torch.full((1,), 21.0, device=device)
    launch(_double_kernel, (1,), device, values)
    if values.item() != 42:
        raise RuntimeError(f"a kernel that doubles 21 gave {values.item()}")
