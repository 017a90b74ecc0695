"""Supports of many weights put in, refreshed and taken out together: one launch for each device and dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
import triton.language as tl
from torch import Tensor

from neuroada.errors import ConfigError, WeightError
from neuroada.ops.sparse_delta.backends.triton.launch import launch, require_reachable
from neuroada.ops.sparse_delta.backends.triton.swap import BLOCK, FORMATS, as_bits, plan_kernel
from neuroada.ops.sparse_delta.entries import flat, positions
from neuroada.ops.sparse_delta.support import FrozenWeight, Support, version_of

FIELDS = ("weight", "indices", "deltas", "neurons", "row_stride", "column_stride", "entries", "count", "first")
"""The table's columns, a row for each weight: four addresses, two strides, K, N·K, and where its originals begin."""

BITS = {8: tl.int64, 4: tl.int32, 2: tl.int16}
INTEGERS = {torch.int32: tl.int32, torch.int64: tl.int64}
ASKED = "Planning to swap the supports of many weights"


def _place(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride()


@dataclass(eq=False)
class _Layer:
    """A weight, its support, and where they lay when the plan was made."""

    weight: FrozenWeight
    support: Support
    shape: torch.Size = field(init=False)
    weight_at: tuple[object, ...] = field(init=False)
    deltas_at: tuple[object, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.shape = self.weight.alias().shape
        self.weight_at, self.deltas_at = _place(self.weight.alias()), _place(self.support.deltas)

    def version(self) -> int:
        parameter = self.weight.parameter
        return -1 if parameter is None else version_of(parameter)

    def is_moved(self) -> bool:
        return _place(self.weight.alias()) != self.weight_at

    def is_lost(self, version: int) -> bool:
        """Whether the weight was written to since that version, has another shape, or has no memory any more."""
        alias = self.weight.alias()
        return self.version() != version or alias.shape != self.shape or not alias.untyped_storage().nbytes()

    def restore(self, originals: Tensor) -> None:
        """Write the originals back where the weight lies now, cast as the weight was, if it was."""
        alias = self.weight.alias()
        support = self.support.to(alias.device)
        where = positions(alias, support.indices, support.neurons)
        flat(alias).index_put_((where,), originals.to(alias).view_as(where))


def _layer(weight: FrozenWeight, support: Support) -> _Layer:
    if not weight.writable():
        found = "one is made afresh for each use, has entries that share memory, or is an inference tensor"
        raise WeightError(ASKED, found, "Leave it out of the plan")
    alias, indices, deltas, neurons = weight.alias(), support.indices, support.deltas, support.neurons
    require_reachable(alias.device)
    covered = len(alias) if neurons is None else len(neurons)
    fits = indices.ndim == 2 and indices.shape == deltas.shape and covered == len(indices)
    if not fits or not deltas.is_contiguous() or not {alias.dtype, deltas.dtype} <= set(FORMATS):
        raise ConfigError(
            ASKED,
            f"one is {alias.dtype} with deltas {deltas.dtype} of shape {list(deltas.shape)} and strides "
            f"{list(deltas.stride())} and indices of shape {list(indices.shape)}, for {covered} neurons",
            "Give float weights, and indices and contiguous float deltas as [N, K] with one row for each neuron",
        )
    if {indices.device, deltas.device, *([] if neurons is None else [neurons.device])} != {alias.device}:
        raise ConfigError(ASKED, f"one is on {alias.device} and its support is not", "Move them together")
    integer = indices.dtype if indices.dtype in INTEGERS else torch.int64
    neurons = None if neurons is None else neurons.to(integer).contiguous()
    return _Layer(weight, replace(support, indices=indices.to(integer).contiguous(), neurons=neurons))


def _require_in_range(layers: list[_Layer]) -> None:
    parts = [
        (part, size, layer.weight.alias().shape)
        for layer in layers
        for part, size in zip((layer.support.neurons, layer.support.indices), layer.weight.alias().shape, strict=True)
        if part is not None and part.numel()
    ]
    if not parts:
        return
    ends = torch.stack([torch.stack(part.aminmax()).long().to(parts[0][0].device) for part, _, _ in parts]).tolist()
    for (_, size, shape), (lowest, highest) in zip(parts, ends, strict=True):
        if not 0 <= lowest <= highest < size:
            raise ConfigError(
                ASKED,
                f"a support reaches from {lowest} to {highest} in a weight of shape {list(shape)}",
                "Give each weight its own support",
            )


def _require_apart(layers: list[_Layer]) -> None:
    aliases = [layer.weight.alias() for layer in layers if layer.weight.alias().numel()]
    spans = sorted((str(each.device), each.data_ptr(), each.data_ptr() + flat(each).nbytes) for each in aliases)
    for (device, _, end), (next_device, start, _) in pairwise(spans):
        if device == next_device and start < end:
            found = "two of them lie in one stretch of memory"
            raise WeightError(ASKED, found, "Leave tied weights out of the plan, or combine() their supports")


class _Group:
    """Weights of one device and dtype: one launch."""

    def __init__(self, layers: list[_Layer]):
        self.layers = layers
        alias, support = layers[0].weight.alias(), layers[0].support
        self.dtype, self.delta_dtype, self.index_dtype = alias.dtype, support.deltas.dtype, support.indices.dtype
        self.sizes = [layer.support.indices.numel() for layer in layers]
        self.versions: list[int] = []
        most = max(len(layer.support.indices) for layer in layers)
        self.all_neurons = torch.arange(most, dtype=self.index_dtype, device=alias.device)
        rows, blocks, first = [], [], 0
        for number, (layer, size) in enumerate(zip(layers, self.sizes, strict=True)):
            alias, support = layer.weight.alias(), layer.support
            neurons = self.all_neurons if support.neurons is None else support.neurons
            addresses = [tensor.data_ptr() for tensor in (alias, support.indices, support.deltas, neurons)]
            rows.append([*addresses, *alias.stride(), support.indices.shape[1], size, first])
            blocks += [(number, start) for start in range(0, size, BLOCK)]
            first += size
        self.table = torch.tensor(rows, dtype=torch.int64, device=alias.device)
        self.blocks = torch.tensor(blocks, dtype=torch.int64, device=alias.device).reshape(-1, 2).T.contiguous()
        self.originals = torch.empty(first, dtype=self.dtype, device=alias.device)

    def launch(self, task: str, table: Tensor | None = None) -> None:
        launch(
            plan_kernel, (self.blocks.shape[1],), self.originals.device,
            self.table if table is None else table, *self.blocks, as_bits(self.originals),
            task=task, form=FORMATS[self.dtype], delta_form=FORMATS[self.delta_dtype],
            bits=BITS[self.dtype.itemsize], delta_bits=BITS[self.delta_dtype.itemsize],
            integer=INTEGERS[self.index_dtype], fields=len(FIELDS), block=BLOCK,
        )  # fmt: skip

    def lost(self) -> list[bool]:
        """Of each weight, whether the originals no longer belong to it."""
        return [layer.is_lost(version) for layer, version in zip(self.layers, self.versions, strict=True)]

    def restore(self) -> None:
        """Give the originals back to all weights that they belong to, wherever those lie now."""
        lost, moved = self.lost(), [layer.is_moved() for layer in self.layers]
        skipped = [number for number, flags in enumerate(zip(lost, moved, strict=True)) if any(flags)]
        table = self.table
        if skipped:
            table = table.clone()
            table[skipped, FIELDS.index("count")] = 0
        self.launch("restore", table)
        for number, originals in enumerate(self.originals.split(self.sizes)):
            if moved[number] and not lost[number]:
                self.layers[number].restore(originals)


class SwapPlan:
    """Supports of many weights, put in and taken out together.

    Addresses are kept on the device, so weights and deltas must stay where they are; the values of deltas are read anew
    by `write` and `refresh`. The originals, N·K for each weight, are kept as long as the plan is.

    Args:
        supports: pairs of a parameter and its support. Deltas are contiguous; indices and neurons are in range, which
            is looked at once, and copied where they are neither int32 nor int64.

    Raises:
        ConfigError: shapes, dtypes or values that do not fit, or a device that Triton cannot reach here.
        WeightError: a weight that cannot be written in place, or two that may share memory.
    """

    def __init__(self, supports: Sequence[tuple[FrozenWeight, Support]]):
        self.written = False
        self._layers = [_layer(*pair) for pair in supports]
        _require_in_range(self._layers)
        _require_apart(self._layers)
        groups: dict[tuple[object, ...], list[_Layer]] = {}
        for layer in self._layers:
            alias, support = layer.weight.alias(), layer.support
            key = (alias.device, alias.dtype, support.deltas.dtype, support.indices.dtype)
            groups.setdefault(key, []).append(layer)
        self._groups = [_Group(layers) for layers in groups.values()]

    def originals(self) -> list[Tensor]:
        """The originals [N, K] of each weight, as supports were given: views of what `write` fills."""
        kept = {
            id(layer): part.view_as(layer.support.indices)
            for group in self._groups
            for layer, part in zip(group.layers, group.originals.split(group.sizes), strict=True)
        }
        return [kept[id(layer)] for layer in self._layers]

    def write(self) -> None:
        """Keep the originals of all weights, and write original + delta; where they are in already, `refresh`.

        Reading and writing are launched apart, so that an interrupt at any point leaves either weights as they were or
        originals that `restore` can use.

        Raises:
            WeightError: a weight or its deltas moved since the plan was made; nothing was written.
        """
        if not self.written:
            self._require_unmoved()
            for group in self._groups:
                group.versions = [layer.version() for layer in group.layers]
                group.launch("read")
            self.written = True
        self.refresh()

    def refresh(self) -> None:
        """Write kept original + present delta, as after an optimiser step; nothing where no supports are in.

        Raises:
            WeightError: a weight or its deltas moved since the plan was made; nothing was written.
        """
        if not self.written:
            return
        self._require_unmoved()
        for group in self._groups:
            group.launch("write")

    def restore(self) -> None:
        """Write all originals back, bit for bit; nothing where no supports are in. May be repeated after an interrupt.

        A weight that was moved or cast meanwhile gets them too, in plain torch.

        Raises:
            WeightError: weights were written to, given another shape or freed in the meantime, so that their originals
                no longer belong to them; they stay as they are, and all others are restored.
        """
        if not self.written:
            return
        for group in self._groups:
            group.restore()
        self.written = False
        lost = sum(sum(group.lost()) for group in self._groups)
        if lost:
            raise WeightError(
                "Taking supports out of weights",
                f"{lost} of {len(self._layers)} weights were written to, reshaped or freed while supports were in them",
                "Load the base weights again while no supports are in",
            )

    def _require_unmoved(self) -> None:
        weights = sum(layer.is_moved() for layer in self._layers)
        deltas = sum(_place(layer.support.deltas) != layer.deltas_at for layer in self._layers)
        if weights or deltas:
            raise WeightError(
                "Writing deltas into many weights at once",
                f"{weights} weights and the deltas of {deltas} were moved or cast since the plan was made",
                "Restore this plan and make a new one",
            )
