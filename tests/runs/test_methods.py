"""What a run says about the deltas of a model."""

import torch
from peft import get_peft_model

from neuroada import NeuroAdaConfig
from neuroada.layers import NeuroAdaLinear
from neuroada.runs.methods import surviving_deltas


def test_deltas_below_half_the_spacing_do_not_survive(make_tiny_llama):
    config = NeuroAdaConfig(target_modules=["q_proj"])
    model = get_peft_model(make_tiny_llama().to(torch.bfloat16), config)
    assert surviving_deltas(model) == 0
    layer = next(module for module in model.modules() if isinstance(module, NeuroAdaLinear))
    with torch.no_grad():
        layer.neuroada_deltas["default"][:3] = 1.0
        layer.neuroada_deltas["default"][3:9] = 1e-9
    assert surviving_deltas(model) == 3


def test_layers_of_other_adapters_are_not_counted(make_tiny_llama):
    model = get_peft_model(make_tiny_llama(), NeuroAdaConfig(target_modules=["q_proj"]))
    model.add_adapter("other", NeuroAdaConfig(target_modules=["k_proj"]))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, NeuroAdaLinear):
                for deltas in module.neuroada_deltas.values():
                    deltas.fill_(1.0)
    assert surviving_deltas(model) == 2 * 64


def test_without_its_layers_nothing_is_known(tiny_llama):
    assert surviving_deltas(tiny_llama) is None
