"""Adapted layers: a base layer with its adapters beside it."""

from neuroada.layers.base import AdapterLayer
from neuroada.layers.held import held
from neuroada.layers.neat import NeatLinear
from neuroada.layers.neuroada import NeuroAdaLinear

__all__ = ["AdapterLayer", "NeatLinear", "NeuroAdaLinear", "held"]
