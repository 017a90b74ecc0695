"""Quantised linear layers whose weight PEFT's quantisation backends can dequantise."""

from __future__ import annotations

from functools import partial
from typing import cast

from peft.tuners.tuners_utils import _get_in_out_features
from peft.utils import resolve_quantization_backend
from peft.utils.quantization_utils import QuantizationBackend
from torch import Tensor, nn

from neuroada.layers.kinds.base import Kind
from neuroada.ops.sparse_delta import FrozenWeight


def quantization_backend(module: nn.Module) -> QuantizationBackend | None:
    """How PEFT reads the module's weight if it is quantised, else None."""

    def quantise_again() -> None:  # what torchao needs for merging, which is refused
        raise NotImplementedError

    return resolve_quantization_backend(module, get_apply_tensor_subclass=quantise_again)


class Quantised(Kind):
    """A packed weight: a dense one [O, I] is made for each use, and nothing is merged into it."""

    def claims(self, module: nn.Module) -> bool:
        return quantization_backend(module) is not None

    def obstacle(self, module: nn.Module) -> str | None:
        backend = _backend(module)
        if backend.supports_merge and backend.layer_type == "linear":
            return None
        return f"its {backend.backend_name} weights cannot be dequantised"

    def size(self, module: nn.Module) -> tuple[int, int]:
        return cast("tuple[int, int]", _get_in_out_features(module))

    def parameter(self, module: nn.Module) -> nn.Parameter | None:
        return None

    def weight(self, module: nn.Module, mode: str = "transient") -> FrozenWeight:
        return FrozenWeight(partial(_dequantised, module), mode=mode)

    def merge_obstacle(self, module: nn.Module) -> tuple[str, str] | None:
        name = _backend(module).backend_name
        found = f"its weight is quantised ({name}), and quantising again would change what was trained"
        return found, "Load the base model unquantised, load the adapter onto it, and merge there"

    def prepare(self, module: nn.Module) -> None:
        """Keep a 4-bit weight of bitsandbytes in the layout that PEFT can dequantise.

        On CPUs with bfloat16 instructions bitsandbytes packs such a weight anew, in place and with rounded scales, when
        the layer is first evaluated; dequantised from there it is another weight.
        """
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.state_dict()  # brings back the layout of a weight that has been packed anew already
            module.__dict__["support_avx512bf16_for_cpu"] = False


def _backend(module: nn.Module) -> QuantizationBackend:
    backend = quantization_backend(module)
    assert backend is not None
    return backend


def _dequantised(module: nn.Module) -> Tensor:
    return _backend(module).get_base_weight(module)
