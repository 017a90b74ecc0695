"""Adapters of other kinds that may be around our layers, as LoRA is in a mixed model."""

from __future__ import annotations

from collections.abc import Iterable

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from neuroada.errors import MergeError
from neuroada.layers import AdapterLayer


def require_unmerged_wrappers(model: nn.Module, layers: Iterable[AdapterLayer], asked: str) -> None:
    """Raise MergeError where another kind of adapter is merged into a layer's weight, which then is not the pretrained
    one, and ours cannot tell."""
    tuners = (each for each in model.modules() if isinstance(each, BaseTunerLayer) and each.merged)
    merged = {each.get_base_layer(): each for each in tuners if not isinstance(each, AdapterLayer)}
    for layer in layers:
        around = merged.get(layer.get_base_layer())
        if around is not None:
            names = ", ".join(around.merged_adapters)
            raise MergeError(asked, f"{names}, which is around {layer.name}, is merged", "Call unmerge_adapter() first")
