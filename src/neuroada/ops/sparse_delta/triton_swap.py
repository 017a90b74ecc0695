"""Supports put into weights and taken out again on CUDA, one launch each; `triton_plan.py` does many weights at once.

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
from neuroada.ops.sparse_delta.torch import flat
from neuroada.ops.sparse_delta.triton_launch import launch, require_reachable

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
def swap_kernel(
    weight, indices, deltas, neurons, originals, count, entries, row_stride, column_stride,
    chosen: tl.constexpr, put: tl.constexpr, form: tl.constexpr, delta_form: tl.constexpr, block: tl.constexpr,
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
    if put:
        bits = tl.load(at, mask=inside, other=0)
        tl.store(originals + entry, bits, mask=inside)
        delta_bits = tl.load(deltas + entry, mask=inside, other=0)
        tl.store(at, shifted_bits(bits, delta_bits, form, delta_form), mask=inside)
    else:
        tl.store(at, tl.load(originals + entry, mask=inside, other=0), mask=inside)


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
    if task == "read":
        tl.store(kept, tl.load(at, mask=inside, other=0), mask=inside)
    elif task == "restore":
        tl.store(at, tl.load(kept, mask=inside, other=0), mask=inside)
    else:
        original = tl.load(kept, mask=inside, other=0)
        delta = tl.load(deltas + entry, mask=inside, other=0)
        tl.store(at, shifted_bits(original, delta, form, delta_form), mask=inside)


def as_bits(tensor: Tensor) -> Tensor:
    """The same memory as integers; the tensor is contiguous and of any float dtype."""
    return tensor.detach().view(INTEGERS[tensor.element_size()])


def swap_in(weight: Tensor, indices: Tensor, deltas: Tensor, neurons: Tensor | None = None) -> Tensor:
    """Write `round(original + delta)` into a weight; the same bits as `entries` in swap.py gives.

    Args:
        weight: [O, I], any float dtype and strides, entries not sharing memory. Autograd does not notice the write.
        indices: [N, K], any integer dtype, in [0, I). Values are not looked at; (neuron, index) pairs are distinct.
        deltas: [N, K], any float dtype. Added in at least float32, rounded once; where one is zero, no bit changes.
        neurons: [N], any integer dtype, in [0, O), repeated or not; None for N = O.

    Returns:
        The originals, [N, K] in the weight's dtype.

    Raises:
        ConfigError: dtypes or shapes that do not fit, or a device that Triton cannot reach here.
    """
    originals = torch.empty(indices.shape, dtype=weight.dtype, device=weight.device)
    _swap(weight, indices, deltas, neurons, originals, put=True)
    return originals


def swap_out(weight: Tensor, indices: Tensor, originals: Tensor, neurons: Tensor | None = None) -> None:
    """Write the originals [N, K] that `swap_in` returned back into the weight, bit for bit."""
    _swap(weight, indices, originals, neurons, originals.contiguous(), put=False)


def _swap(
    weight: Tensor, indices: Tensor, deltas: Tensor, neurons: Tensor | None, originals: Tensor, put: bool
) -> None:
    require_reachable(weight.device)
    covered = len(weight) if neurons is None else len(neurons)
    fits = indices.ndim == 2 and indices.shape == deltas.shape and covered == len(indices)
    if not fits or not {weight.dtype, deltas.dtype} <= set(FORMATS) or originals.dtype != weight.dtype:
        raise ConfigError(
            "Swapping a support in or out of a weight",
            f"the weight is {weight.dtype}, indices have shape {list(indices.shape)}, and what is to be written is "
            f"{deltas.dtype} of shape {list(deltas.shape)}, for {covered} neurons",
            "Give floats and indices as [N, K] with one row for each neuron, originals in the weight's dtype",
        )
    if not indices.numel():
        return
    launch(
        swap_kernel, (triton.cdiv(indices.numel(), BLOCK),), weight.device,
        as_bits(flat(weight)), indices.contiguous(), as_bits(deltas.contiguous()),
        indices if neurons is None else neurons.contiguous(), as_bits(originals),
        indices.numel(), indices.shape[1], *weight.stride(),
        chosen=neurons is not None, put=put, form=FORMATS[weight.dtype], delta_form=FORMATS[deltas.dtype], block=BLOCK,
    )  # fmt: skip
