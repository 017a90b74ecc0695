"""W Θ1, the only product of NEAT that reads the whole weight: how it is made, kept and differentiated."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakIdKeyDictionary

from neuroada.ops.neat.network import Network, widest
from neuroada.ops.sparse_delta import FrozenWeight, with_support
from neuroada.ops.sparse_delta.guards import without_autocast
from neuroada.ops.sparse_delta.support import version_of

BLOCK_ENTRIES = 1 << 20
"""Entries of a 16-bit weight that are cast to float32 at a time. A choice, not measured."""

_PRODUCTS: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""By Θ1ᵀ and then by gradient mode: the product made with it, for which weight, and under which circumstances."""
_optimiser_steps = 0


def first_product(read: Tensor, first: Tensor) -> Tensor:
    """W Θ1 in at least float32.

    Args:
        read: [M, D], any float dtype and layout.
        first: [R, D], any float dtype.

    Returns:
        [M, R].
    """
    wide = widest(read, first)
    columns = first.to(wide).T
    return torch.cat([read[block].to(wide) @ columns for block in _blocks(read, wide)])


def first_gradient(read: Tensor, d_product: Tensor) -> Tensor:
    """The gradient of Θ1ᵀ, [R, D] in the dtype of the gradient [M, R] of W Θ1; read as in `first_product`."""
    total = d_product.new_zeros(d_product.shape[1], read.shape[1])
    for block in _blocks(read, d_product.dtype):
        torch.addmm(total, d_product[block].T, read[block].to(d_product.dtype), out=total)
    return total


def _blocks(read: Tensor, dtype: torch.dtype) -> Iterator[slice]:
    """Rows of [M, D] to cast at a time; all of them where nothing is to be cast."""
    step = len(read) if read.dtype == dtype else max(1, BLOCK_ENTRIES // read.shape[1])
    return (slice(start, start + step) for start in range(0, len(read), step))


def _count_step(*_: object) -> None:
    global _optimiser_steps
    _optimiser_steps += 1


@functools.cache
def _watch_optimisers() -> None:
    """Fused optimisers, and those that train copies of their own, write parameters without a new version."""
    register_optimizer_step_post_hook(_count_step)


def _bits(first: Tensor) -> int | None:
    """A sum that a change of Θ1 changes; None where one would have to wait for a device."""
    if first.device.type != "cpu":
        return None
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[first.element_size()]
    bits = first.detach().view(whole).flatten()
    return int((bits * torch.arange(1, len(bits) + 1)).sum())


def kept_product(weight: FrozenWeight, stored: Tensor, first: Tensor, network: Network) -> Tensor:
    """W Θ1 [M, R] without a graph, made again only when it may have changed.

    That is: after a step of any optimiser, and after Θ1 or the weight was replaced or written to. A write through
    `.data` alone is noticed at once in a Θ1 on a CPU; anywhere else only at one of these. Where it cannot be noticed,
    there is a product for each gradient mode, so that what was made for an evaluation with swapped weights is not
    taken for training.

    Args:
        weight: the weight [O, I], or how to make it.
        stored: the parameter that stands for it: the weight as stored, packed if it is quantised.
        first: Θ1ᵀ.
        network: which reads it.
    """
    if network.variant == "nonlinear_lora":
        return first.detach().to(widest(first)).T
    _watch_optimisers()
    tensors = first, stored
    if not all(type(tensor) in (Tensor, nn.Parameter) and not tensor.is_inference() for tensor in tensors):
        return _product(weight, first, network)
    bits = _bits(first)
    mode = torch.is_inference_mode_enabled(), bits is None and torch.is_grad_enabled()
    memory = ((tensor.data_ptr(), version_of(tensor), tensor.dtype) for tensor in tensors)
    stamp = _optimiser_steps, bits, *memory
    slots = _PRODUCTS.get(first, {})
    known = slots.get(mode)
    if known is not None and known[0] == stamp and known[1]() is stored:
        return known[2]
    product = _product(weight, first, network)
    current = {each: kept for each, kept in slots.items() if kept[0] == stamp}
    _PRODUCTS[first] = {**current, mode: (stamp, weakref.ref(stored), product)}  # not changed: threads may read it
    return product


@torch.no_grad()
def _product(weight: FrozenWeight, first: Tensor, network: Network) -> Tensor:
    with without_autocast(first.device.type):
        return with_support(weight, None, lambda dense: first_product(network.read(dense), first))
