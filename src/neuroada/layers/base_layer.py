"""What a base layer may be, and how to run something in its place."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from peft.utils import resolve_quantization_backend
from peft.utils.quantization_utils import QuantizationBackend
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.parameter import UninitializedParameter
from transformers.pytorch_utils import Conv1D

from neuroada.errors import TargetError

_HOOKED_LAYER = threading.RLock()
"""Hooked base layers run one thread at a time: their forward method is replaced for the length of a call."""


def quantization_backend(base_layer: nn.Module) -> QuantizationBackend | None:
    """How PEFT reads the layer's weight if it is quantised, else None."""

    def quantise_again() -> None:  # what torchao needs for merging, which `merge` refuses
        raise NotImplementedError

    return resolve_quantization_backend(base_layer, get_apply_tensor_subclass=quantise_again)


def require_supported(base_layer: nn.Module, name: str) -> None:
    """Raise TargetError unless the layer computes x Wᵀ + b from a weight that can be read.

    Accepted: torch.nn.Linear, Transformers' Conv1D, and quantised linear layers whose weight PEFT can dequantise.
    """
    backend = quantization_backend(base_layer)
    if backend is not None:
        if backend.supports_merge and backend.layer_type == "linear":
            return
        found = f"its {backend.backend_name} weights cannot be dequantised"
    elif isinstance(weight := base_layer._parameters.get("weight"), UninitializedParameter):
        found = "it is lazy: its weight has no shape before a first batch has run through the model"
    elif weight is None and type(base_layer).forward in (nn.Linear.forward, Conv1D.forward):
        found = "its weight is computed from other parameters (a parametrisation), so that merging could not reach it"
    elif weight is not None and weight.numel() == 0:
        found = "its weight has no entries"
    elif "forward" in base_layer.__dict__ and not hasattr(base_layer, "_hf_hook"):
        found = "its forward method was replaced, and an adapter would pass it over"
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


def keep_readable(base_layer: nn.Module) -> None:
    """Keep a 4-bit weight of bitsandbytes in the layout that PEFT can dequantise.

    On CPUs with bfloat16 instructions bitsandbytes packs such a weight anew, in place and with rounded scales, when the
    layer is first evaluated; dequantised from there it is another weight.
    """
    if getattr(base_layer, "support_avx512bf16_for_cpu", False):
        base_layer.state_dict()  # brings back the layout of a weight that has been packed anew already
        base_layer.__dict__["support_avx512bf16_for_cpu"] = False


def storage_uses(model: nn.Module) -> Counter[int]:
    """How many modules of a model use each parameter storage, by its address."""
    uses = (
        parameter.untyped_storage().data_ptr()
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
        if not parameter.is_meta
    )
    return Counter(uses)


def is_hooked(base_layer: nn.Module) -> bool:
    """Whether hooks run around the base layer's forward method: its own, accelerate's, or those of all modules."""
    return bool(
        "_hf_hook" in base_layer.__dict__
        or base_layer._forward_hooks
        or base_layer._forward_pre_hooks
        or base_layer._backward_hooks
        or base_layer._backward_pre_hooks
        or _has_any_global_hook()
    )


def run_in_place_of(base_layer: nn.Module, compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Run `compute` in place of the base layer's own forward, so that hooks on the base layer still run."""
    if not is_hooked(base_layer):
        return compute(x)
    attribute = "_old_forward" if "_hf_hook" in base_layer.__dict__ else "forward"
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
