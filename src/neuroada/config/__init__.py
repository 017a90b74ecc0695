"""Configurations of the methods: fields declared once, validated at birth."""

from neuroada.config.neat import ACTIVATIONS, SIDES, VARIANTS, NeatConfig
from neuroada.config.neuroada import NeuroAdaConfig
from neuroada.config.shared import AdapterConfig, require_sound_weights

__all__ = [
    "ACTIVATIONS",
    "SIDES",
    "VARIANTS",
    "AdapterConfig",
    "NeatConfig",
    "NeuroAdaConfig",
    "require_sound_weights",
]
