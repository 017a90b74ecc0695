"""NeuroAda as a PEFT tuner."""

from __future__ import annotations

import warnings
from typing import Any

from peft.tuners.tuners_utils import _get_in_out_features
from torch import nn

from neuroada.config import NeuroAdaConfig
from neuroada.layers import NeuroAdaLinear
from neuroada.layers.base_layer import quantization_backend
from neuroada.layers.inputs import group_siblings
from neuroada.ops.backend import resolve_mode
from neuroada.tuners.base import AdapterModel
from neuroada.tuners.neuroada_file import NeuroAdaFile


class NeuroAdaModel(AdapterModel):
    """Replaces targeted linear layers by `NeuroAdaLinear`; made by `peft.get_peft_model` and PeftModel."""

    prefix = "neuroada_"
    tuner_layer_cls = NeuroAdaLinear
    file = NeuroAdaFile()

    def _check_targets(self, peft_config: NeuroAdaConfig, targets: dict[str, nn.Module]) -> None:
        clamped = []
        for name, module in targets.items():
            if isinstance(module, NeuroAdaLinear):
                inputs = module.in_features
            else:
                quantized = quantization_backend(module) is not None
                resolve_mode(peft_config.mode, quantized=quantized, writable=True, contended=False)
                inputs = _get_in_out_features(module)[0] or 0
            if peft_config.k is not None and peft_config.k > inputs:
                clamped.append(f"{name} ({inputs} inputs)")
        if clamped:
            warnings.warn(
                f"k={peft_config.k} is more than these weights have inputs, so all of their inputs are used: "
                + ", ".join(clamped),
                stacklevel=2,
            )

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter, and note which layers share an input."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        group_siblings(model, NeuroAdaLinear)
