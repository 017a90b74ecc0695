"""Supports put into weights and taken out again on CUDA, one launch each; `swap_plan.py` does many weights at once.

An entry is moved as bits, so that originals come back exactly. Writes go to raw memory: autograd's version counter does
not move. An entry costs a scattered 32-byte sector of the weight, read and written, and, in order, the bytes of its
index, delta and original; at K=1 the few microseconds of a launch are most of the time, hence the plan. Not yet
measured on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from neuroada.errors import ConfigError
from neuroada.ops.sparse_delta.backends.triton.launch import launch, require_reachable
from neuroada.ops.sparse_delta.entries import flat

BLOCK = 512
"""Entries of one program, 4 for each of 128 threads: a layer of 4,096 neurons makes 8 programs at K=1 and 160 at K=20.
Not measured."""

FORMATS = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


@triton.jit
def value(bits, form: tl.constexpr):
    """A number from its bits: float64 from float64, float32 from the others."""
    if form == tl.bfloat16:
        return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    elif form == tl.float16:
        return bits.to(tl.float16, bitcast=True).to(tl.float32)
    else:
        return bits.to(form, bitcast=True)


@triton.jit
def rounded(total, form: tl.constexpr):
    """The bits of a number rounded to nearest, ties to even; in integers for bfloat16, which the interpreter cuts."""
    if form == tl.bfloat16:
        bits = total.to(tl.int32, bitcast=True)
        return tl.where(total == total, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, 0x7FC0).to(tl.int16)
    elif form == tl.float16:
        return total.to(tl.float16).to(tl.int16, bitcast=True)
    elif form == tl.float32:
        return total.to(tl.int32, bitcast=True)
    else:
        return total.to(tl.int64, bitcast=True)


@triton.jit
def shifted_bits(bits, delta_bits, form: tl.constexpr, delta_form: tl.constexpr):
    """Bits of round(original + delta), summed in float32, or in float64 for float64 weights; where a delta is zero, the
    original's bits."""
    delta = value(delta_bits, delta_form)
    original = value(bits, form)
    return tl.where(delta == 0, bits, rounded(original + delta.to(original.dtype), form))


@triton.jit
def move(at, kept, deltas, inside, task: tl.constexpr, form: tl.constexpr, delta_form: tl.constexpr):
    """Read entries and keep them, write kept + delta, restore what was kept, or read and write at once."""
    if task == "restore":
        tl.store(at, tl.load(kept, mask=inside, other=0), mask=inside)
    else:
        bits = tl.load(kept if task == "write" else at, mask=inside, other=0)
        if task != "write":
            tl.store(kept, bits, mask=inside)
        if task != "read":
            delta_bits = tl.load(deltas, mask=inside, other=0)
            tl.store(at, shifted_bits(bits, delta_bits, form, delta_form), mask=inside)


@triton.jit
def swap_kernel(
    weight, indices, neurons, originals, deltas, count, entries, row_stride, column_stride,
    chosen: tl.constexpr, task: tl.constexpr, form: tl.constexpr, delta_form: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    entry = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = entry < count
    row = entry // entries
    if chosen:
        neuron = tl.load(neurons + row, mask=inside, other=0).to(tl.int64)
    else:
        neuron = row
    column = tl.load(indices + entry, mask=inside, other=0).to(tl.int64)
    at = weight + neuron * row_stride + column * column_stride
    move(at, originals + entry, deltas + entry, inside, task, form, delta_form)


@triton.jit
def pointer(field, integer: tl.constexpr):
    """The pointer to integers whose address a field of the table holds."""
    return tl.load(field).to(tl.pointer_type(integer))  # pyrefly: ignore[bad-argument-type]


@triton.jit
def plan_kernel(
    table, layers, starts, originals,
    task: tl.constexpr, form: tl.constexpr, delta_form: tl.constexpr, bits: tl.constexpr, delta_bits: tl.constexpr,
    integer: tl.constexpr, fields: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    layer = table + tl.load(layers + tl.program_id(0)) * fields
    weight, deltas = pointer(layer, bits), pointer(layer + 2, delta_bits)
    indices, neurons = pointer(layer + 1, integer), pointer(layer + 3, integer)
    entry = tl.load(starts + tl.program_id(0)) + tl.arange(0, block)
    inside = entry < tl.load(layer + 7)
    row = entry // tl.load(layer + 6)
    neuron = tl.load(neurons + row, mask=inside, other=0).to(tl.int64)
    column = tl.load(indices + entry, mask=inside, other=0).to(tl.int64)
    at = weight + neuron * tl.load(layer + 4) + column * tl.load(layer + 5)
    kept = originals + tl.load(layer + 8) + entry
    move(at, kept, deltas + entry, inside, task, form, delta_form)


def as_bits(tensor: Tensor) -> Tensor:
    """The same memory as integers; the tensor is contiguous and of any float dtype."""
    return tensor.detach().view(INTEGERS[tensor.element_size()])


def swap_in(weight: Tensor, indices: Tensor, neurons: Tensor | None, deltas: Tensor) -> Tensor:
    """Write `round(original + delta)` into a weight in one launch; the same bits as `entries.py` gives.

    Where an interrupt must not lose the originals, `read` and then `write`: two launches.

    Args:
        weight: [O, I], any float dtype and strides, entries not sharing memory. Autograd does not notice the write.
        indices: [N, K], any integer dtype, in [0, I). Values are not looked at; (neuron, index) pairs are distinct.
        neurons: [N], any integer dtype, in [0, O), repeated or not; None for N = O.
        deltas: [N, K], any float dtype. Added in at least float32, rounded once; where one is zero, no bit changes.

    Returns:
        The originals, [N, K] in the weight's dtype.

    Raises:
        ConfigError: dtypes or shapes that do not fit, or a device that Triton cannot reach here.
    """
    originals = torch.empty(indices.shape, dtype=weight.dtype, device=weight.device)
    _swap("swap", weight, indices, neurons, originals, deltas)
    return originals


def read(weight: Tensor, indices: Tensor, neurons: Tensor | None) -> Tensor:
    """The originals, [N, K] in the weight's dtype; arguments as in `swap_in`."""
    originals = torch.empty(indices.shape, dtype=weight.dtype, device=weight.device)
    _swap("read", weight, indices, neurons, originals, originals)
    return originals


def write(weight: Tensor, indices: Tensor, neurons: Tensor | None, originals: Tensor, deltas: Tensor) -> None:
    """Write `round(original + delta)` into a weight, from originals [N, K] that `read` returned."""
    _swap("write", weight, indices, neurons, originals.contiguous(), deltas)


def restore(weight: Tensor, indices: Tensor, neurons: Tensor | None, originals: Tensor) -> None:
    """Write originals [N, K] back into the weight, bit for bit."""
    _swap("restore", weight, indices, neurons, originals.contiguous(), originals)


def _swap(
    task: str, weight: Tensor, indices: Tensor, neurons: Tensor | None, originals: Tensor, deltas: Tensor
) -> None:
    require_reachable(weight.device)
    covered = len(weight) if neurons is None else len(neurons)
    fits = indices.ndim == 2 and indices.shape == deltas.shape == originals.shape and covered == len(indices)
    if not fits or not {weight.dtype, deltas.dtype} <= set(FORMATS) or originals.dtype != weight.dtype:
        raise ConfigError(
            "Swapping a support in or out of a weight",
            f"the weight is {weight.dtype}, the originals {originals.dtype}, indices have shape {list(indices.shape)} "
            f"for {covered} neurons, and what is to be written is {deltas.dtype} of shape {list(deltas.shape)}",
            "Give floats and indices as [N, K] with one row for each neuron, originals in the weight's dtype",
        )
    if not indices.numel():
        return
    launch(
        swap_kernel, (triton.cdiv(indices.numel(), BLOCK),), weight.device,
        as_bits(flat(weight)), indices.contiguous(), indices if neurons is None else neurons.contiguous(),
        as_bits(originals), as_bits(deltas.contiguous()), indices.numel(), indices.shape[1], *weight.stride(),
        chosen=neurons is not None, task=task, form=FORMATS[weight.dtype], delta_form=FORMATS[deltas.dtype],
        block=BLOCK,
    )  # fmt: skip
