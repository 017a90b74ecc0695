"""NeuroAda as a PEFT tuner."""

from __future__ import annotations

import warnings
from typing import Any

from peft.tuners.tuners_utils import _get_in_out_features
from torch import nn

from neuroada.config import AdapterConfig, NeuroAdaConfig
from neuroada.layers import NeuroAdaLinear
from neuroada.layers.base_layer import quantization_backend
from neuroada.layers.inputs import group_siblings
from neuroada.ops.backend import resolve_mode
from neuroada.tuners import processes
from neuroada.tuners.base import AdapterModel
from neuroada.tuners.files import PEFT_PREFIX
from neuroada.tuners.neuroada_file import NeuroAdaFile

NAMED = 3
"""As many layers are named in a warning about several."""


class NeuroAdaModel(AdapterModel):
    """Replaces targeted linear layers by `NeuroAdaLinear`; made by `peft.get_peft_model` and PeftModel."""

    prefix = "neuroada_"
    tuner_layer_cls = NeuroAdaLinear
    file = NeuroAdaFile()

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """Names, in the PeftModel, of what DistributedDataParallel must not send: it asks for just this attribute."""
        return [f"{PEFT_PREFIX}{name}" for name in processes.index_names(self.model)]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The adapted model's own; replicas in several processes compare their supports the first time."""
        processes.compare_once(self.model)
        return super().forward(*args, **kwargs)

    @classmethod
    def check_targets(cls, peft_config: AdapterConfig, targets: dict[str, nn.Module]) -> None:
        """Refuse targets that cannot be adapted, and warn of those with fewer than k inputs."""
        super().check_targets(peft_config, targets)
        assert isinstance(peft_config, NeuroAdaConfig)
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
                + ", ".join(clamped[:NAMED])
                + (f" and {len(clamped) - NAMED} more" if len(clamped) > NAMED else ""),
                stacklevel=2,
            )

    @classmethod
    def note_shared(cls, model: nn.Module, adapter_name: str) -> None:
        """Note which weights and which inputs are shared; where one process chooses for all, share the indices."""
        super().note_shared(model, adapter_name)
        group_siblings(model, NeuroAdaLinear)
        layers = [layer for layer in model.modules() if isinstance(layer, NeuroAdaLinear)]
        processes.share_indices(layers, adapter_name)
