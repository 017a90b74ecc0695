"""NeuroAda: fine-tune Hugging Face models with a few trainable deltas per neuron, through PEFT.

Importing this package makes its methods known to `peft`.
"""

from neuroada.config import NeuroAdaConfig
from neuroada.layers import NeuroAdaLinear, held
from neuroada.ops.backend import set_backend
from neuroada.ops.sparse_delta import sparse_delta_linear
from neuroada.tuners import NeuroAdaModel, register

register("neuroada", NeuroAdaConfig, NeuroAdaModel)

__all__ = ["NeuroAdaConfig", "NeuroAdaLinear", "NeuroAdaModel", "held", "set_backend", "sparse_delta_linear"]
