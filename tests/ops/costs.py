"""What one forward and backward pass costs, counted: products by FLOPs, bytes saved and kept for backward."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from allocations import Allocations

TOKENS, INPUTS, OUTPUTS = 512, 1024, 1024
WEIGHT_BYTES = 2 * INPUTS * OUTPUTS
"""In a 16-bit type."""


@dataclass(frozen=True)
class Cost:
    """products: forward + backward, in FLOPs of one dense product. saved: bytes of each tensor saved beyond x.
    kept: bytes of each new tensor that lives from forward to backward, however it is kept, beyond the output."""

    products: float
    saved: list[int]
    kept: list[int]


def cost_of(layer: Callable[[Tensor], Tensor], x: Tensor, own: list[Tensor] | None = None) -> Cost:
    """own: the layer's parameters, which are there anyway and do not count as saved."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    allocations = Allocations()
    with FlopCounterMode(display=False) as flops:
        with saved_tensors_hooks(pack, lambda tensor: tensor), allocations:
            output = layer(x)
        kept = sorted(allocations.alive())
        kept.remove(output.untyped_storage().nbytes())
        output.backward(torch.ones_like(output))
    for tensor in (x, *(own or ())):
        saved.pop(tensor.untyped_storage().data_ptr(), None)
    return Cost(flops.get_total_flops() / (2 * TOKENS * INPUTS * OUTPUTS), list(saved.values()), kept)
