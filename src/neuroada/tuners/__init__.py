"""PEFT tuners of the methods; importing this package registers them."""

from neuroada.tuners.files.peanut import convert_peanut
from neuroada.tuners.mixed import HybridModel
from neuroada.tuners.neat import NeatModel
from neuroada.tuners.neuroada import NeuroAdaModel
from neuroada.tuners.registration import register, register_mixed
from neuroada.tuners.regrow import regrow
from neuroada.tuners.regrow_callback import RegrowCallback
from neuroada.tuners.reselect import reselect

__all__ = [
    "HybridModel",
    "NeatModel",
    "NeuroAdaModel",
    "RegrowCallback",
    "convert_peanut",
    "register",
    "register_mixed",
    "regrow",
    "reselect",
]
