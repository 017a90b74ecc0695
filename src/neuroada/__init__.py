"""NeuroAda and NEAT: fine-tune Hugging Face models with few trained weights, through PEFT.

Importing this package makes its methods known to `peft`.
"""

from neuroada.config import NeatConfig, NeuroAdaConfig
from neuroada.layers import NeatLinear, NeuroAdaLinear, held
from neuroada.ops.sparse_delta import sparse_delta_linear
from neuroada.ops.sparse_delta.backends.choice import set_backend
from neuroada.tuners import (
    HybridModel,
    NeatModel,
    NeuroAdaModel,
    RegrowCallback,
    convert_peanut,
    register,
    register_mixed,
    regrow,
    reselect,
)

register("neuroada", NeuroAdaConfig, NeuroAdaModel)
register("neat", NeatConfig, NeatModel)
register_mixed("neuroada", NeuroAdaConfig, NeuroAdaModel, HybridModel)
register_mixed("neat", NeatConfig, NeatModel, HybridModel)

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
