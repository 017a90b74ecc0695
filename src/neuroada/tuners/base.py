"""What the tuners of all methods do alike: find the targets, refuse what cannot be adapted, merge, unload, files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, cast

from peft import PeftConfig
from peft.tuners.tuners_utils import (
    BaseTuner,
    BaseTunerLayer,
    onload_layer,
)
from torch import Tensor, nn

from neuroada.config import AdapterConfig
from neuroada.errors import ConfigError, MergeError, TargetError
from neuroada.layers import AdapterLayer
from neuroada.layers.kinds import kind_of
from neuroada.layers.storage import storage_uses
from neuroada.selection import require_finite
from neuroada.tuners.files.base import AdapterFile
from neuroada.tuners.files.safe import require_safetensors
from neuroada.tuners.names import check_names
from neuroada.tuners.new_weights import save_new_whole
from neuroada.tuners.processes import has_weights
from neuroada.tuners.targets import ALL_LINEAR, find_targets, include_all_linear, require_apart


class AdapterModel(BaseTuner):
    """A tuner that replaces targeted linear layers by one kind of `AdapterLayer`.

    A method sets `prefix`, `tuner_layer_cls` (made from base layer, adapter name, configuration and name) and `file`.
    """

    tuner_layer_cls: type[Any]
    file: ClassVar[AdapterFile]
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (PEFT's class attribute)

    def _prepare_adapter_config(self, peft_config: AdapterConfig, model_config: dict) -> AdapterConfig:
        if peft_config.target_modules is None:
            peft_config.target_modules = ALL_LINEAR
        return peft_config

    def _prepare_model(self, peft_config: AdapterConfig, model: nn.Module) -> None:
        """Look at every target before anything is changed."""
        require_usable_names(self.peft_config)
        if not peft_config.read_from_file:
            save_new_whole(peft_config, model)
        check_names(peft_config, model)
        include_all_linear(peft_config, model)
        targets = find_targets(self, peft_config, model)
        require_apart(peft_config, model, targets)
        self.check_targets(peft_config, targets)

    @classmethod
    def check_targets(cls, peft_config: AdapterConfig, targets: dict[str, nn.Module]) -> None:
        """Refuse targets, by name, that cannot be adapted."""
        for name, module in targets.items():
            weight = cls._require_adaptable(module, name)
            dense = type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point() and not weight.is_meta
            if dense and has_weights() and not peft_config.inference_mode:
                require_finite(weight.detach(), name)

    @classmethod
    def _require_adaptable(cls, module: nn.Module, name: str) -> Tensor:
        """The stored weight of a target, or a TargetError that says why it cannot be adapted."""
        if isinstance(module, cls.tuner_layer_cls):
            return cast(AdapterLayer, module).stored_weight
        if isinstance(module, BaseTunerLayer):
            raise TargetError(
                f"Adapting the module {name}",
                f"it already has an adapter of another kind ({type(module).__module__}.{type(module).__name__})",
                "Merge or unload that adapter first",
            )
        kind_of(module, name)
        return cast(Tensor, module.weight)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter as PEFT does."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        self.after_injection(model, adapter_name, self.peft_config[adapter_name])

    @classmethod
    def after_injection(cls, model: nn.Module, adapter_name: str, config: PeftConfig) -> None:
        """What is to be done once a model has an adapter: note which weights other modules of it use too."""
        uses = storage_uses(model)
        for layer in model.modules():
            if isinstance(layer, cls.tuner_layer_cls):
                weight = layer.stored_weight
                layer.shared = not weight.is_meta and uses[weight.untyped_storage().data_ptr()] > 1

    def _create_and_replace(
        self,
        peft_config: AdapterConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        active = adapter_name in self.active_adapters
        setattr(parent, target_name, self.adapted(target, adapter_name, peft_config, current_key, active))

    @classmethod
    def adapted(cls, target: nn.Module, adapter_name: str, config: AdapterConfig, name: str, active: bool) -> nn.Module:
        """The layer that is to stand in a target's place: the target itself where it is one of this method already."""
        if isinstance(target, cls.tuner_layer_cls):
            cast(Any, target).update_layer(adapter_name, config)
            return target
        layer = cls.tuner_layer_cls(target, adapter_name, config, name)
        return layer if active else layer.requires_grad_(False)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Nothing: the configuration alone decides what dtype an adapter has."""

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge as PEFT does.

        Raises:
            MergeError: all of these adapters are merged already.
        """
        names = self.active_adapters if adapter_names is None else adapter_names
        layers = self._adapted_layers()
        wanted = [set(layer.present(names)) for layer in layers]
        if any(wanted) and all(want <= set(layer.merged_adapters) for want, layer in zip(wanted, layers, strict=True)):
            raise MergeError(
                f"Merging {', '.join(names)}",
                "merged already",
                "Call unmerge_adapter() first, or merge_and_unload() for a model without adapters",
            )
        self._try_merge(safe_merge, adapter_names)
        super().merge_adapter(adapter_names=adapter_names)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        self._try_merge(merge and safe_merge, adapter_names)
        return cast(nn.Module, super()._unload_and_optionally_merge(merge, progressbar, adapter_names=adapter_names))

    def _try_merge(self, safe_merge: bool, adapter_names: list[str] | None) -> None:
        """Try every layer before the first one is changed."""
        for layer in self._adapted_layers() if safe_merge else []:
            names = layer.present(adapter_names or layer.active_adapters)
            names = [name for name in names if name not in layer.merged_adapters]
            if names:
                with onload_layer(layer):
                    layer.try_merge(names)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            raise ConfigError(
                "A batch with adapter_names",
                f"{self.file.method} computes all rows of a batch with the same adapters",
                "Use set_adapter and one batch for each adapter",
            )
        yield

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter from every layer, whatever the module's name."""
        super().delete_adapter(adapter_name)
        for layer in self._adapted_layers():
            if layer.present([adapter_name]):
                layer.delete_adapter(adapter_name)
        self.active_adapter = self.active_adapter or next(iter(self.peft_config), [])

    def unload(self) -> nn.Module:
        """The base model without adapters, with its pretrained weights bit for bit (I3), merged or not."""
        for layer in self._adapted_layers():
            layer.unmerge()
        return super().unload()

    def _adapted_layers(self) -> list[AdapterLayer]:
        return [module for module in self.model.modules() if isinstance(module, self.tuner_layer_cls)]

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        require_safetensors(f"Saving adapter {adapter_name!r}")
        return cls.file.pack(model, adapter_name, state_dict)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        unpacked = cls.file.unpack(model, cast(AdapterConfig, config), adapter_name, state_dict)
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, unpacked)


def require_usable_names(names: Iterable[str]) -> None:
    """Raise ConfigError for a name that an adapter cannot have."""
    for name in names:
        if not name or "." in name:
            raise ConfigError(
                f"An adapter called {name!r}", "PyTorch keeps names with a dot for modules", "Choose another name"
            )
