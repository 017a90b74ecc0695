"""Hooks on base layers: whether there are any, and how to run something in the layer's place so that they still run."""

from __future__ import annotations

import threading
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

_HOOKED_LAYER = threading.RLock()
"""Hooked base layers run one thread at a time: their forward method is replaced for the length of a call."""


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
