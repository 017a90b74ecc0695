"""Linear layers whose weight is a plain parameter."""

from __future__ import annotations

from typing import ClassVar, cast

from peft.tuners.tuners_utils import _get_in_out_features
from torch import nn
from torch.nn.parameter import UninitializedParameter

from neuroada.layers.kinds.base import Kind
from neuroada.ops.sparse_delta import FrozenWeight


class Dense(Kind):
    """A linear layer that computes x Wᵀ + b by the forward method of `module_class`, from a parameter."""

    module_class: ClassVar[type[nn.Module]]
    traceable = True

    def claims(self, module: nn.Module) -> bool:
        return type(module).forward is self.module_class.forward

    def obstacle(self, module: nn.Module) -> str | None:
        weight = module._parameters.get("weight")
        if isinstance(weight, UninitializedParameter):
            return "it is lazy: its weight has no shape before a first batch has run through the model"
        if weight is None:
            return (
                "its weight is computed from other parameters (a parametrisation), so that merging could not reach it"
            )
        if weight.numel() == 0:
            return "its weight has no entries"
        if "forward" in module.__dict__ and not hasattr(module, "_hf_hook"):
            return "its forward method was replaced, and an adapter would pass it over"
        return None

    def size(self, module: nn.Module) -> tuple[int, int]:
        return cast("tuple[int, int]", _get_in_out_features(module))

    def parameter(self, module: nn.Module) -> nn.Parameter | None:
        return cast(nn.Parameter, module.weight)

    def weight(self, module: nn.Module, mode: str = "inplace") -> FrozenWeight:
        return FrozenWeight(cast(nn.Parameter, module.weight), self.transposed, mode)

    def merge_obstacle(self, module: nn.Module) -> tuple[str, str] | None:
        if self.weight(module).writable():
            return None
        found = "entries of its weight share memory, or it is an inference tensor outside inference mode"
        return found, "Give the layer a weight of its own, such as a clone of this one"


class Linear(Dense):
    """torch.nn.Linear, weight [O, I]."""

    called = "torch.nn.Linear"
    module_class = nn.Linear

    def obstacle(self, module: nn.Module) -> str | None:
        found = super().obstacle(module)
        if found is None and isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
            return "torch.nn.MultiheadAttention reads its weight directly, so that an adapter would have no effect"
        return found
