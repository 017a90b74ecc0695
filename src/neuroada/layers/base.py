"""What every adapted layer does alike: choose the active adapters, merge, unmerge, disable, run hooks."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, MutableMapping
from typing import Any, cast

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, check_adapters_to_merge
from peft.utils import resolve_quantization_backend
from peft.utils.quantization_utils import QuantizationBackend
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from transformers.pytorch_utils import Conv1D

from neuroada.errors import MergeError, TargetError
from neuroada.ops.backend import resolve_mode
from neuroada.ops.sparse_delta import FrozenWeight, flat, is_contended, is_held

_HOOKED_LAYER = threading.RLock()
"""Hooked base layers run one thread at a time: their forward method is replaced for the length of a call."""


def buffer_dict(persistent: bool) -> MutableMapping[str, Tensor]:
    """PEFT's dictionary of buffers by adapter name, typed by what it is used for."""
    return cast("MutableMapping[str, Tensor]", BufferDict(persistent=persistent))


def _quantization_backend(base_layer: nn.Module) -> QuantizationBackend | None:
    def quantise_again() -> None:  # what torchao needs for merging, which `merge` refuses
        raise NotImplementedError

    return resolve_quantization_backend(base_layer, get_apply_tensor_subclass=quantise_again)


def require_supported(base_layer: nn.Module, name: str) -> None:
    """Raise TargetError unless the layer computes x Wᵀ + b from a weight that can be read.

    Accepted: torch.nn.Linear, Transformers' Conv1D, and quantised linear layers whose weight PEFT can dequantise.
    """
    backend = _quantization_backend(base_layer)
    if backend is not None:
        if backend.supports_merge and backend.layer_type == "linear":
            return
        found = f"its {backend.backend_name} weights cannot be dequantised"
    elif isinstance(base_layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
        found = "torch.nn.MultiheadAttention reads its weight directly, so that an adapter would have no effect"
    elif type(base_layer).forward in (nn.Linear.forward, Conv1D.forward):
        return
    else:
        found = f"it is a {type(base_layer).__module__}.{type(base_layer).__qualname__}"
    raise TargetError(
        f"Adapting the module {name}",
        found,
        "Supported are torch.nn.Linear and transformers' Conv1D; name such modules in target_modules, or leave this "
        "one out with exclude_modules",
    )


class AdapterLayer(nn.Module, BaseTunerLayer):
    """A linear base layer, weight [O, I], and the adapters on it.

    A method implements `_adapted_forward`, `_merged_entries` and `_requested_mode`; all the rest is here.
    """

    base_layer: nn.Module
    in_features: int
    out_features: int
    merge_record: MutableMapping[str, Tensor]

    def __init__(self, base_layer: nn.Module, name: str = "") -> None:
        nn.Module.__init__(self)
        require_supported(base_layer, name)
        self.base_layer = base_layer
        self.name = name
        self._disable_adapters = False
        self.merged_adapters = []
        self.merge_record = buffer_dict(persistent=False)
        self.quantization_backend = _quantization_backend(base_layer)
        self.transposed = isinstance(base_layer, Conv1D)
        if self.transposed:
            self.in_features, self.out_features = self.stored_weight.shape
        else:
            self.in_features, self.out_features = cast("tuple[int, int]", _get_in_out_features(base_layer))

    @abstractmethod
    def _adapted_forward(self, x: Tensor, weight: FrozenWeight, bias: Tensor | None, names: list[str]) -> Tensor:
        """The layer's output with these adapters, unmerged (none of them if empty)."""

    @abstractmethod
    def _merged_entries(self, weight: Tensor, names: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """What merging these adapters writes to a weight [O, I]: (positions in `flat(weight)`, originals, merged)."""

    @abstractmethod
    def _requested_mode(self, names: list[str]) -> str:
        """The mode that the configurations of these adapters ask for."""

    @property
    def stored_weight(self) -> Tensor:
        """The base layer's weight as it is stored: [O, I], [I, O] if `transposed`, or packed if quantised."""
        return cast(Tensor, self.get_base_layer().weight)

    def present(self, names: list[str]) -> list[str]:
        """Those of the named adapters that exist on this layer, each once."""
        available = self._get_available_adapters()
        return [name for name in dict.fromkeys(names) if name in available]

    def resolved_mode(self, names: list[str] | None = None) -> tuple[str, str]:
        """(mode, reason) that a forward pass with these adapters, or the active ones, uses now."""
        names = self.present(self.active_adapters) if names is None else names
        quantized = self.quantization_backend is not None
        weight = None if quantized else self.stored_weight
        return resolve_mode(
            self._requested_mode(names),
            quantized=quantized,
            writable=weight is None or FrozenWeight(weight).writable(),
            contended=weight is not None and is_contended(weight),
        )

    def frozen_weight(self, names: list[str]) -> FrozenWeight:
        """The base weight as the operation on these adapters takes it."""
        mode, _ = self.resolved_mode(names)
        if self.quantization_backend is not None:
            return FrozenWeight(self.get_base_weight, mode=mode)
        return FrozenWeight(self.stored_weight, self.transposed, mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x [..., I] → [..., O], in the base layer's dtype."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        names = [] if self.disable_adapters or self.merged else self.present(self.active_adapters)
        if not names and not self._is_held():
            return self.base_layer(x, *args, **kwargs)

        def compute(x: Tensor) -> Tensor:
            return self._adapted_forward(x, self.frozen_weight(names), self.bias, names)

        offloaded: list[Any] = [
            part for part in self.children() if part is not self.base_layer and hasattr(part, "_hf_hook")
        ]
        for part in offloaded:  # accelerate expects a forward call of each, and an adapter's parts have none
            part._hf_hook.pre_forward(part)
        try:
            return _through(self.base_layer, compute, x)
        finally:
            for part in offloaded:
                part._hf_hook.post_forward(part, x)

    def __getstate__(self) -> dict[str, Any]:
        if self._is_held():
            raise MergeError(
                f"Copying or pickling {self.name}",
                "its adapter is swapped in by neuroada.held(...), and the copy would keep the changed weights",
                "Copy after leaving that context",
            )
        return self.__dict__.copy()

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put adapters into the base weight: exactly the weight that the unmerged layer computes with (I2).

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
        weight, record, state = self._weight_alias(), self.merge_record, self.__dict__
        record["where"], record["originals"], record["merged"] = self._merged_entries(weight, together)
        storage, where, merged = flat(weight), record["where"], record["merged"]
        state["merged_adapters"] = together  # Ctrl-C cannot come between this and the write: there is no call
        storage.index_put_((where,), merged)

    def unmerge(self) -> None:
        """Take all merged adapters out of the base weight again, bit for bit (I3).

        Raises:
            MergeError: the weight was written to while they were merged; it stays as it is.
        """
        if not self.merged:
            return
        storage, record, state = flat(self._weight_alias()), self.merge_record, self.__dict__
        where, originals = record["where"], record["originals"]
        if not torch.allclose(storage.take(where), record["merged"], rtol=0, atol=0, equal_nan=True):
            raise MergeError(
                f"Unmerging from {self.name}",
                "the base weight was written to while the adapter was merged",
                "Load the base weights again and start from an unmerged model",
            )
        state["merged_adapters"] = []  # as in `merge`
        storage.index_put_((where,), originals)
        record.clear()

    def _unmerged(self, stored: Tensor) -> Tensor:
        """A copy [O, I] of the stored weight, on any device, without the merged adapters."""
        copy = FrozenWeight(stored.detach().clone(), self.transposed).alias()
        where, originals = self.merge_record["where"], self.merge_record["originals"]
        flat(copy).index_put_((where.to(copy.device),), originals.to(copy.device))
        return copy

    def _weight_alias(self) -> Tensor:
        return FrozenWeight(self.stored_weight, self.transposed).alias()

    def _is_held(self) -> bool:
        return self.quantization_backend is None and is_held(self.stored_weight)

    def _require_mergeable(self) -> None:
        if self.quantization_backend is not None:
            raise MergeError(
                f"Merging into {self.name}",
                f"its weight is quantised ({self.quantization_backend.backend_name}), and quantising again would "
                "change what was trained",
                "Load the base model unquantised, load the adapter onto it, and merge there",
            )
        if self._is_held():
            raise MergeError(
                f"Merging into {self.name}",
                "its adapter is swapped in by neuroada.held(...)",
                "Merge after leaving that context",
            )

    def try_merge(self, names: list[str]) -> None:
        """Raise MergeError if merging adapters beside those merged already would give NaN or infinity."""
        weight = self._unmerged(self.stored_weight) if self.merged else self._weight_alias()
        _, _, merged = self._merged_entries(weight, [*self.merged_adapters, *names])
        if not merged.isfinite().all():
            raise MergeError(
                f"Merging {', '.join(names)} into {self.name} with safe_merge=True",
                "the merged weight would hold NaN or infinity",
                "The adapter seems broken: train it again or load an earlier checkpoint; nothing was changed",
            )

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """False: the update of a weight has no low rank."""
        return False


def _through(base_layer: nn.Module, compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Run `compute` in place of the base layer's own forward, so that hooks on the base layer still run."""
    offload_hook = hasattr(base_layer, "_hf_hook")
    hooked = (
        offload_hook
        or base_layer._forward_hooks
        or base_layer._forward_pre_hooks
        or base_layer._backward_hooks
        or base_layer._backward_pre_hooks
        or _has_any_global_hook()
    )
    if not hooked:
        return compute(x)
    attribute = "_old_forward" if offload_hook else "forward"
    with _HOOKED_LAYER:
        own = base_layer.__dict__.get(attribute)
        base_layer.__dict__[attribute] = compute
        try:
            return base_layer(x)
        finally:
            if own is None:
                del base_layer.__dict__[attribute]
            else:
                base_layer.__dict__[attribute] = own
