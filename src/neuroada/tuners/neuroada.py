"""NeuroAda as a PEFT tuner."""

from __future__ import annotations

import warnings
from collections import defaultdict
from typing import Any

from peft import PeftConfig
from peft.utils.other import get_pattern_key
from torch import nn

from neuroada.config import AdapterConfig, NeuroAdaConfig
from neuroada.errors import ConfigError, near
from neuroada.layers import NeuroAdaLinear
from neuroada.layers.kinds import kind_of
from neuroada.layers.saved_inputs import group_siblings
from neuroada.ops.sparse_delta.mode import resolve_mode
from neuroada.tuners import processes
from neuroada.tuners.base import AdapterModel
from neuroada.tuners.budget import allocate_budget, warn_of_least
from neuroada.tuners.files.base import PEFT_PREFIX
from neuroada.tuners.files.neuroada import NeuroAdaFile
from neuroada.tuners.processes import has_weights

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
        """Refuse targets that cannot be adapted, and names that none has; warn of those with fewer than k inputs, and
        of a budget below one delta a neuron."""
        super().check_targets(peft_config, targets)
        assert isinstance(peft_config, NeuroAdaConfig)
        _require_matches(peft_config, targets)
        clamped = defaultdict(list)
        sizes = []
        for name, module in targets.items():
            if isinstance(module, NeuroAdaLinear):
                inputs, outputs = module.in_features, module.out_features
            else:
                kind = kind_of(module, name)
                quantized = kind.parameter(module) is None
                resolve_mode(peft_config.mode, quantized=quantized, writable=True, contended=False)
                inputs, outputs = kind.size(module)
            k = peft_config.k_of(name)
            if k is None:
                sizes.append((inputs, outputs))
            if k is not None and k > inputs:
                clamped[k].append(f"{name} ({inputs} inputs)")
        for k, names in clamped.items():
            warnings.warn(
                f"k={k} is more than these weights have inputs, so all of their inputs are used: "
                + ", ".join(names[:NAMED])
                + (f" and {len(names) - NAMED} more" if len(names) > NAMED else ""),
                stacklevel=2,
            )
        if sizes:
            warn_of_least(peft_config, sizes)

    @classmethod
    def after_injection(cls, model: nn.Module, adapter_name: str, config: PeftConfig) -> None:
        """Spread a budget that is for the model, and note which weights and which inputs are shared; where one process
        chooses for all, share the indices."""
        super().after_injection(model, adapter_name, config)
        layers = [layer for layer in model.modules() if isinstance(layer, NeuroAdaLinear)]
        if isinstance(config, NeuroAdaConfig):
            _allocate_budget(config, adapter_name, [layer for layer in layers if layer.present([adapter_name])])
        group_siblings(model, NeuroAdaLinear)
        processes.share_indices(layers, adapter_name)


def _allocate_budget(config: NeuroAdaConfig, adapter_name: str, layers: list[NeuroAdaLinear]) -> None:
    """Give each weight its own K, unless data are to decide, or a file brings the deltas."""
    without_weights = any(layer.neuroada_deltas[adapter_name].is_meta for layer in layers) or not has_weights()
    waits = any(adapter_name in layer.awaiting for layer in layers)
    if config.budget_scope == "weight" or config.inference_mode or without_weights or waits:
        return
    steps = {layer: layer.score_steps(adapter_name, config.selection, config.seed) for layer in layers}
    for layer, per_neuron in allocate_budget(config, adapter_name, steps).items():
        if per_neuron != layer.neuroada_deltas[adapter_name].shape[1]:
            chosen = layer.chosen_anew(adapter_name, config.selection, config.seed, per_neuron=per_neuron)
            layer.replace_indices(adapter_name, chosen)
            if not config.init_weights:
                nn.init.normal_(layer.neuroada_deltas[adapter_name])


def _require_matches(config: NeuroAdaConfig, targets: dict[str, nn.Module]) -> None:
    """Raise ConfigError for a key of `k_pattern` that no target has: its k would be lost unseen."""
    for key in config.k_pattern:
        if not any(get_pattern_key([key], name) == key for name in targets):
            raise ConfigError(
                f"k_pattern={{{key!r}: {config.k_pattern[key]}}}",
                f"none of the {len(targets)} adapted modules has such a name",
                near(key.rpartition(".")[2], sorted({name.rpartition(".")[2] for name in targets})),
            )
