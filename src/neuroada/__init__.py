"""NeuroAda and NEAT: fine-tune Hugging Face models with few trained weights, through PEFT.

Importing this package makes its methods known to `peft`.
"""

from neuroada.config import NeatConfig, NeuroAdaConfig
from neuroada.layers import NeatLinear, NeuroAdaLinear, held
from neuroada.ops.backend import set_backend
from neuroada.ops.sparse_delta import sparse_delta_linear
from neuroada.tuners import NeatModel, NeuroAdaModel, RegrowCallback, convert_peanut, register, regrow, reselect

register("neuroada", NeuroAdaConfig, NeuroAdaModel)
register("neat", NeatConfig, NeatModel)

__all__ = [
    "NeatConfig",
    "NeatLinear",
    "NeatModel",
    "NeuroAdaConfig",
    "NeuroAdaLinear",
    "NeuroAdaModel",
    "RegrowCallback",
    "convert_peanut",
    "held",
    "regrow",
    "reselect",
    "set_backend",
    "sparse_delta_linear",
]
