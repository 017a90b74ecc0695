"""PEFT tuners of the methods; importing this package registers them."""

from neuroada.tuners.neuroada import NeuroAdaModel
from neuroada.tuners.registration import register

__all__ = ["NeuroAdaModel", "register"]
