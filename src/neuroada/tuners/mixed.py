"""PEFT's mixed models with the methods of this library in them: inside LoRA's layers, around the linear layer.

There our layer has the base weight to itself: LoRA adds to what it computes, and merges into the weight after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

from peft import LoraConfig, PeftConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora import LoraLayer
from peft.tuners.mixed.model import MixedModel
from peft.tuners.tuners_utils import BaseTunerLayer, _maybe_include_all_linear_layers, onload_layer
from torch import nn

from neuroada.config import AdapterConfig
from neuroada.errors import MergeError, TargetError
from neuroada.layers import AdapterLayer, NeatLinear
from neuroada.tuners import processes
from neuroada.tuners.base import AdapterModel, require_usable_names
from neuroada.tuners.files.base import PEFT_PREFIX
from neuroada.tuners.names import check_names
from neuroada.tuners.targets import ALL_LINEAR, find_targets, include_all_linear

Chain = list[BaseTunerLayer]


class HybridModel(MixedModel):
    """A mixed model that takes NeuroAda and NEAT too, together with LoRA on the same layers, added in either order."""

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """As of `NeuroAdaModel`."""
        return [f"{PEFT_PREFIX}{name}" for name in processes.index_names(self.model)]

    @staticmethod
    def _prepare_adapter_config(peft_config: PeftConfig, model_config: dict) -> PeftConfig:
        if isinstance(peft_config, AdapterConfig):
            peft_config.target_modules = peft_config.target_modules or ALL_LINEAR
            return peft_config
        return MixedModel._prepare_adapter_config(peft_config, model_config)

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        """Look at every target before anything is changed."""
        super()._prepare_model(peft_config, model)
        if not self._has_ours():
            return
        if isinstance(peft_config, AdapterConfig):
            check_names(peft_config, model)
            include_all_linear(peft_config, model)
            require_usable_names(self.peft_config)
            targets = find_targets(self, peft_config, model)
            for name, module in targets.items():
                for layer in _chain(module):
                    _require_plain_lora(layer, name)
            innermost = {name: _inside_lora(module) for name, module in targets.items()}
            _method(peft_config).check_targets(peft_config, innermost)
            return
        _maybe_include_all_linear_layers(peft_config, model)
        if type(peft_config) is not LoraConfig or peft_config.use_dora:
            for name, module in model.named_modules():
                if isinstance(_inside_lora(module), AdapterLayer) and self._check_target_module_exists(
                    peft_config, name
                ):
                    raise _only_lora(
                        name, f"{peft_config.peft_type.value} adapter{' with DoRA' * _uses_dora(peft_config)}"
                    )

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter as PEFT does; beside one of ours by the names that modules have in the base model."""
        if not self._has_ours():
            super().inject_adapter(model, adapter_name, *args, **kwargs)
            return
        super().inject_adapter(self.model, adapter_name, *args, **kwargs)
        for method in {_method(config) for config in self.peft_config.values() if isinstance(config, AdapterConfig)}:
            method.after_injection(self.model, adapter_name, self.peft_config[adapter_name])
        for chain in self._chains():
            for layer in chain[1:]:
                if isinstance(layer, AdapterLayer):
                    layer.nested = True

    def _create_and_replace(
        self,
        config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        if not isinstance(config, AdapterConfig):
            super()._create_and_replace(config, adapter_name, target, target_name, parent, current_key, **kwargs)
            return
        while isinstance(target, LoraLayer):
            parent, target_name, target = cast(nn.Module, target), "base_layer", cast(nn.Module, target.base_layer)
        active = adapter_name in self.active_adapters
        setattr(parent, target_name, _method(config).adapted(target, adapter_name, config, current_key, active))

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        if not isinstance(self.peft_config[adapter_name], AdapterConfig):
            super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The adapted model's own; replicas in several processes compare their supports the first time."""
        processes.compare_once(self.model)
        return super().forward(*args, **kwargs)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge as PEFT does, but ours before the LoRA around it: first base + deltas, rounded, then what LoRA adds.

        Raises:
            MergeError: LoRA is merged around a layer of ours that is not, or would be around an active NEAT adapter,
                which reads the weight.
        """
        if not self._has_ours():
            super().merge_adapter(adapter_names, safe_merge)
            return
        self._check_merge_allowed()
        self._require_unmerged_around(adapter_names)
        self._require_weight_to_read(adapter_names)
        for chain in self._chains():
            for layer in reversed(chain):
                with onload_layer(layer):
                    layer.merge(adapter_names=adapter_names, safe_merge=safe_merge)

    def unmerge_adapter(self) -> None:
        """Unmerge as PEFT does, LoRA before what is inside it; LoRA's own undo is not exact."""
        for chain in self._chains():
            for layer in chain:
                if layer.merged:
                    with onload_layer(layer):
                        layer.unmerge()

    def unload(self) -> nn.Module:
        """The base model without adapters, merged or not."""
        if self._has_ours():
            self.unmerge_adapter()
        return super().unload()

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge:
            self._require_unmerged_around(adapter_names)
        return super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)

    def _require_unmerged_around(self, adapter_names: list[str] | None) -> None:
        for chain in self._chains():
            for outer, inner in pairwise(chain):
                if not outer.merged or not isinstance(inner, AdapterLayer):
                    continue
                names = inner.present(adapter_names or inner.active_adapters)
                if not set(names) <= set(inner.merged_adapters):
                    raise MergeError(
                        f"Merging {', '.join(names)} into {inner.name}",
                        f"{', '.join(outer.merged_adapters)}, which is around it, is merged already",
                        "Call unmerge_adapter() first, then merge both together",
                    )

    def _require_weight_to_read(self, adapter_names: list[str] | None) -> None:
        for chain in self._chains():
            for outer, inner in pairwise(chain):
                if not isinstance(inner, NeatLinear):
                    continue
                wanted = adapter_names or outer.active_adapters
                around = outer._get_available_adapters().intersection(wanted)
                left = set(inner.present(inner.active_adapters)).difference(wanted, inner.merged_adapters)
                reading = sorted(filter(inner.reads_weight, left))
                if around and reading:
                    raise MergeError(
                        f"Merging {', '.join(sorted(around))} around {inner.name}",
                        f"{', '.join(reading)}, inside it, reads the pretrained weight, and would read the merged one",
                        "Merge both together, or deactivate it with set_adapter",
                    )

    def _chains(self) -> Iterator[Chain]:
        """Adapter layers around the same layer, the outermost first."""
        inner: set[int] = set()
        for module in self.model.modules():
            if isinstance(module, BaseTunerLayer) and id(module) not in inner:
                chain = list(_chain(cast(nn.Module, module)))
                inner.update(map(id, chain))
                yield chain

    def _has_ours(self) -> bool:
        return any(isinstance(config, AdapterConfig) for config in self.peft_config.values())


def _method(config: AdapterConfig) -> type[AdapterModel]:
    return cast("type[AdapterModel]", PEFT_TYPE_TO_TUNER_MAPPING[cast(Any, config.peft_type)])


def _chain(module: nn.Module | None) -> Iterator[BaseTunerLayer]:
    while isinstance(module, BaseTunerLayer):
        yield module
        module = getattr(module, "base_layer", None)


def _inside_lora(module: nn.Module) -> nn.Module:
    while isinstance(module, LoraLayer):
        module = cast(nn.Module, module.base_layer)
    return module


def _uses_dora(config: Any) -> bool:
    return bool(getattr(config, "use_dora", False))


def _require_plain_lora(layer: BaseTunerLayer, name: str) -> None:
    """Of what is around a target: it must only add to its output, and not be in the weight now."""
    if isinstance(layer, AdapterLayer):
        return
    if not isinstance(layer, LoraLayer) or layer.lora_variant:
        raise _only_lora(name, f"adapter ({type(layer).__module__}.{type(layer).__name__})")
    if layer.merged:
        raise MergeError(
            f"Adapting the module {name}",
            f"{', '.join(layer.merged_adapters)}, which is around it, is merged",
            "Call unmerge_adapter() first",
        )


def _only_lora(name: str, other: str) -> TargetError:
    return TargetError(
        f"Adapting the module {name}",
        f"it would have an adapter of ours and, around it, another {other}, which reads the weight past ours",
        "Around ours only plain LoRA is supported: name other target_modules for one of the two",
    )
