"""NEAT as a PEFT tuner."""

from __future__ import annotations

from neuroada.layers import NeatLinear
from neuroada.tuners.base import AdapterModel
from neuroada.tuners.files.neat import NeatFile


class NeatModel(AdapterModel):
    """Replaces targeted linear layers by `NeatLinear`; made by `peft.get_peft_model` and PeftModel."""

    prefix = "neat_"
    tuner_layer_cls = NeatLinear
    file = NeatFile()
