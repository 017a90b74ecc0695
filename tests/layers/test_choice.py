"""Inputs are chosen from the pretrained weights, whatever stands in them at the moment (I7)."""

from contextlib import nullcontext

import pytest
import torch
from peft import get_peft_model
from torch import nn

from neuroada import NeuroAdaConfig, NeuroAdaLinear, held
from specimens import adapted, tiny


def chosen(model: nn.Module, adapter: str) -> list[torch.Tensor]:
    layers = [module for module in model.modules() if isinstance(module, NeuroAdaLinear)]
    return [layer.neuroada_indices[adapter] for layer in layers]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("state", ["merged", "held"])
def test_an_adapter_added_beside_a_merged_or_held_one(family, state):
    alone = get_peft_model(tiny(family), NeuroAdaConfig(k=3))
    model = adapted(tiny(family), k=2)
    with held(model) if state == "held" else nullcontext():
        if state == "merged":
            model.merge_adapter()
        model.add_adapter("second", NeuroAdaConfig(k=3))
    found, expected = chosen(model, "second"), chosen(alone, "default")
    assert all(torch.equal(left, right) for left, right in zip(found, expected, strict=True))
