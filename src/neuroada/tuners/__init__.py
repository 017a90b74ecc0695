"""PEFT tuners of the methods; importing this package registers them."""

from neuroada.tuners.neat import NeatModel
from neuroada.tuners.neuroada import NeuroAdaModel
from neuroada.tuners.peanut import convert_peanut
from neuroada.tuners.registration import register
from neuroada.tuners.reselect import reselect

__all__ = ["NeatModel", "NeuroAdaModel", "convert_peanut", "register", "reselect"]
