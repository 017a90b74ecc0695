"""What every adapted layer does alike: choose the active adapters, merge, unmerge, disable, run hooks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, MutableMapping
from typing import Any, cast

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from neuroada.errors import MergeError
from neuroada.layers.hooks import is_hooked, run_in_place_of
from neuroada.layers.kinds import kind_of, quantization_backend
from neuroada.ops.sparse_delta import FrozenWeight, Support, is_held, read, with_support

LEFT_BY_OTHERS = 8
"""Spacings of the largest entry that an adapter merged and unmerged meanwhile may leave: each of its two writes rounds
by half of one, and the weight may be some times larger in between. A choice."""


def buffer_dict(persistent: bool) -> MutableMapping[str, Tensor]:
    """PEFT's dictionary of buffers by adapter name, typed by what it is used for."""
    return cast("MutableMapping[str, Tensor]", BufferDict(persistent=persistent))


class AdapterLayer(nn.Module, BaseTunerLayer):
    """A base layer, whose `kind` gives its weight as [O, I], and the adapters on it.

    A method implements `_adapted_forward`, `_traced_forward`, `_merged_entries`, `_where` and `_witness`.
    The tuner sets `shared` where other modules of the model use the weight's memory too, and `nested` where a layer of
    PEFT's, which merges into the same weight later, is around this one.
    """

    base_layer: nn.Module
    in_features: int
    out_features: int
    merge_record: MutableMapping[str, Tensor]

    def __init__(self, base_layer: nn.Module, name: str = "") -> None:
        nn.Module.__init__(self)
        self.kind = kind_of(base_layer, name)
        self.kind.prepare(base_layer)
        self.base_layer, self.name = base_layer, name
        self.in_features, self.out_features = self.kind.size(base_layer)
        self.merged_adapters = []
        self.merge_record = buffer_dict(persistent=False)
        self._disable_adapters = self.shared = self.nested = False
        self.shared_weight: nn.Parameter | None = None
        self.quantization_backend = quantization_backend(base_layer)  # PEFT's own methods read it

    @abstractmethod
    def _adapted_forward(self, x: Tensor, weight: FrozenWeight, bias: Tensor | None, names: list[str]) -> Tensor:
        """The layer's output with these adapters, unmerged (none of them if empty)."""

    @abstractmethod
    def _traced_forward(self, x: Tensor, names: list[str]) -> Tensor:
        """The same in a form that torch.compile can put into a graph."""

    @abstractmethod
    def _merged_entries(self, weight: Tensor, names: list[str]) -> tuple[dict[str, Tensor], Tensor]:
        """What merging these adapters changes in a weight [O, I]: a record, and the new values.

        The record holds the "originals" of what changes, what `_where` and `_witness` need, and as "merged" what
        `_witness` finds as long as nothing else is written to the weight.
        """

    @abstractmethod
    def _where(self, weight: Tensor, record: Mapping[str, Tensor]) -> tuple[Tensor, Any]:
        """An alias of a weight [O, I], and the index in it of the values that a record of `_merged_entries` is of."""

    @abstractmethod
    def _witness(self, weight: Tensor, record: Mapping[str, Tensor]) -> Tensor:
        """Entries of a weight [O, I] by which one can tell whether it is as it was merged."""

    @property
    def transposed(self) -> bool:
        """Whether the base weight is stored as [I, O]."""
        return self.kind.transposed

    @property
    def stored_weight(self) -> Tensor:
        """The base layer's weight as it is stored: [O, I], [I, O] if `transposed`, or packed if quantised."""
        return cast(Tensor, self.base_layer.weight)

    @property
    def parameter(self) -> nn.Parameter | None:
        """The parameter that holds the base weight; None where a dense one is made for each use."""
        return self.kind.parameter(self.base_layer)

    def present(self, names: list[str]) -> list[str]:
        """Those of the named adapters that exist on this layer, each once."""
        available = getattr(self, self.adapter_layer_names[0])
        return [name for name in dict.fromkeys(names) if name in available]

    def frozen_weight(self, names: list[str]) -> FrozenWeight:
        """The base weight as the operation on these adapters takes it."""
        return self.kind.weight(self.base_layer)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x [..., I] → [..., O], in the base layer's dtype."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        names = [] if self.disable_adapters or self.merged else self.present(self.active_adapters)
        if torch.compiler.is_compiling():
            if self.merged:
                return self.base_layer(x, *args, **kwargs)
            return self._traced_forward(x, names) if self._is_traceable(x, names) else self._untraced_forward(x)
        if not names and not self._is_held():
            return self.base_layer(x, *args, **kwargs)

        def compute(x: Tensor) -> Tensor:
            return self._adapted_forward(x, self.frozen_weight(names), self.bias, names)

        offloaded: list[Any] = [
            part for name, part in self._modules.items() if name != "base_layer" and "_hf_hook" in part.__dict__
        ]
        for part in offloaded:  # accelerate expects a forward call of each, and an adapter's parts have none
            part._hf_hook.pre_forward(part)
        try:
            return run_in_place_of(self.base_layer, compute, x)
        finally:
            for part in offloaded:
                part._hf_hook.post_forward(part, x)

    def _is_traceable(self, x: Tensor, names: list[str]) -> bool:
        """Whether torch.compile can take the layer into a graph; otherwise it breaks the graph there."""
        if not self.kind.traceable or is_hooked(self.base_layer) or len(names) > 1:
            return False
        weight = self.stored_weight
        return not weight.requires_grad and (x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type))

    @torch.compiler.disable
    def _untraced_forward(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def __getstate__(self) -> dict[str, Any]:
        if self._is_held():
            raise MergeError(
                f"Copying or pickling {self.name}",
                "its adapter is swapped in by neuroada.held(...), and the copy would keep the changed weights",
                "Copy after leaving that context",
            )
        return self.__dict__.copy()

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put adapters into the base weight, which is rounded once.

        Args:
            safe_merge: refuse a result that is not finite.
            adapter_names: which ones; the active ones if None. Merged ones stay merged.

        Raises:
            MergeError: the base is quantised, a support is held in it, or `safe_merge` found NaN or infinity.
        """
        names = self.present(check_adapters_to_merge(self, adapter_names))
        if not names:
            return
        self._require_mergeable()
        if safe_merge:
            self.try_merge(names)
        together = [*self.merged_adapters, *names]
        if self.merged:
            self.unmerge()
        if self.shared:
            self._leave_shared_weight()
        weight, record, state = self._weight_alias(), self.merge_record, self.__dict__
        entries, merged = self._merged_entries(weight, together)
        for key, tensor in entries.items():
            record[key] = tensor
        alias, where = self._where(weight, record)
        state["merged_adapters"] = together  # Ctrl-C cannot come between this and the write: there is no call
        alias[where] = merged

    def unmerge(self) -> None:
        """Take all merged adapters out of the base weight again, bit for bit (I3).

        Raises:
            MergeError: the weight was written to, as `_witness` can tell, while they were merged; it stays as it is.
        """
        if not self.merged:
            return
        weight, record, state = self._weight_alias(), self.merge_record, self.__dict__
        alias, where = self._where(weight, record)
        originals = record["originals"]
        found, expected = self._witness(weight, record), record["merged"]
        slack = LEFT_BY_OTHERS * torch.finfo(expected.dtype).eps * float(expected.abs().max()) if self.nested else 0.0
        if not torch.allclose(found, expected, rtol=0, atol=slack, equal_nan=True):
            raise MergeError(
                f"Unmerging from {self.name}",
                "the base weight was written to while the adapter was merged",
                "Load the base weights again and start from an unmerged model",
            )
        state["merged_adapters"] = []  # as in `merge`
        alias[where] = originals
        record.clear()
        if self.shared_weight is not None:
            self.get_base_layer().weight, self.__dict__["shared_weight"] = self.shared_weight, None

    def _leave_shared_weight(self) -> None:
        """Merge into a weight of the layer's own: the other modules that share it keep the pretrained one."""
        base_layer = self.get_base_layer()
        self.__dict__["shared_weight"] = base_layer.weight  # not a parameter of this module as well
        base_layer.weight = nn.Parameter(self.stored_weight.detach().clone(), requires_grad=False)

    def _pretrained_weight(self) -> Tensor:
        """[O, I] without anything merged into it or held in it; a copy only where there is something."""
        if self.merged:
            return self._unmerged(self.stored_weight)
        if self._is_held():
            return with_support(self.kind.weight(self.base_layer), None, torch.clone)
        return self._weight_alias()

    def originals(self, support: Support, stored: Tensor | None) -> Tensor | None:
        """The pretrained values [N, K] at a support, merged or not; None where they cannot be had.

        stored: the base weight as a state dict holds it. A sharded, absent or meta one gives None.
        """
        if support.indices.is_meta:
            return None
        if self.parameter is None:
            weight = self._weight_alias()
            return read(weight, support.to(weight.device))
        if stored is None or stored.is_meta or type(stored) not in (Tensor, nn.Parameter):
            return None
        support = support.to(stored.device)
        if self.merged:
            return read(self._unmerged(stored), support)
        if self._is_held():
            stored = self.stored_weight
        return with_support(FrozenWeight(stored, self.transposed), None, lambda weight: read(weight, support))

    def _unmerged(self, stored: Tensor) -> Tensor:
        """A copy [O, I] of the stored weight, on any device, without the merged adapters."""
        copy = FrozenWeight(stored.detach().clone(), self.transposed).alias()
        record = {key: tensor.to(copy.device) for key, tensor in self.merge_record.items()}
        alias, where = self._where(copy, record)
        alias[where] = record["originals"]
        return copy

    def _weight_alias(self) -> Tensor:
        """[O, I]: the base weight as it is now, or a dense one made of it."""
        return self.kind.weight(self.base_layer).alias()

    def _is_held(self) -> bool:
        parameter = self.parameter
        return parameter is not None and is_held(parameter)

    def _require_mergeable(self) -> None:
        obstacle = self.kind.merge_obstacle(self.base_layer)
        if obstacle is not None:
            raise MergeError(f"Merging into {self.name}", *obstacle)
        if self._is_held():
            raise MergeError(
                f"Merging into {self.name}",
                "its adapter is swapped in by neuroada.held(...)",
                "Merge after leaving that context",
            )

    def try_merge(self, names: list[str]) -> None:
        """Raise MergeError if merging adapters beside those merged already would give NaN or infinity."""
        weight = self._unmerged(self.stored_weight) if self.merged else self._weight_alias()
        if not self._merged_entries(weight, [*self.merged_adapters, *names])[1].isfinite().all():
            raise MergeError(
                f"Merging {', '.join(names)} into {self.name} with safe_merge=True",
                "the merged weight would hold NaN or infinity",
                "The adapter seems broken: train it again or load an earlier checkpoint; nothing was changed",
            )

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """False: the update of a weight has no low rank."""
        return False

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move one adapter; its dtype stays what the configuration says, whatever the base layer's is."""
        if device is None:
            device, _ = self._get_base_layer_device_and_dtype(self.get_base_layer())
        if device is None or adapter_name not in getattr(self, self.adapter_layer_names[0]):
            return
        for kind in (*self.adapter_layer_names, *self.other_param_names):
            container: Any = getattr(self, kind)
            if kind in self._modules and adapter_name in container and not container[adapter_name].is_meta:
                container[adapter_name] = container[adapter_name].to(device)

    def __repr__(self) -> str:
        return "neuroada." + super().__repr__()
