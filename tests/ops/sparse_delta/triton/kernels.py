"""The Triton kernels as the tests run them: compiled for a GPU where there is one, else interpreted on the CPU.

Triton looks at TRITON_INTERPRET when a kernel is decorated, that is when the kernels' modules are imported, whenever
triton itself was; so it is set for that moment alone, and no other test sees it.
"""

import os

import pytest
import torch

from ...cases import Problem

if os.environ.get("NEUROADA_REQUIRE_ASSETS") != "1":  # where they are required, the import below fails instead
    pytest.importorskip("triton", reason="triton is not installed")

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0") or not torch.cuda.is_available()
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")

with pytest.MonkeyPatch.context() as patch:
    if INTERPRETED:
        patch.setenv("TRITON_INTERPRET", "1")
    from neuroada.ops.sparse_delta.backends.triton import device as triton
    from neuroada.ops.sparse_delta.backends.triton import launch as triton_launch
    from neuroada.ops.sparse_delta.backends.triton import product as triton_product
    from neuroada.ops.sparse_delta.backends.triton import swap as triton_swap
    from neuroada.ops.sparse_delta.backends.triton import swap_plan as triton_plan

assert triton_launch.INTERPRETED == INTERPRETED, "another test imported the kernels first"

__all__ = ["DEVICE", "INTERPRETED", "here", "moved", "storage_bytes", "triton", "triton_launch", "triton_plan",
           "triton_product", "triton_swap"]  # fmt: skip


def storage_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of all the memory that a tensor on any device is a view of."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage()).clone()


def moved(tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor on the device, with all the memory that it is a view of."""
    memory = storage_bytes(tensor).to(DEVICE).untyped_storage()
    place = tensor.storage_offset(), tensor.shape, tensor.stride()
    return torch.empty(0, dtype=tensor.dtype, device=DEVICE).set_(memory, *place)


def here(problem: Problem) -> Problem:
    """A problem on the device, its weight laid out as before."""
    names = ("x", "weight", "indices", "deltas", "bias", "neurons")
    tensors = {name: getattr(problem, name) for name in names}
    return problem.with_(**{name: None if tensor is None else moved(tensor) for name, tensor in tensors.items()})
