"""Tiny models with NeuroAda or NEAT and LoRA on the same layers, added in either order, and each of them alone."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftMixedModel, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from specimens import METHODS, base_weights, fill, same_bits

TARGETS = ["q_proj", "v_proj", "down_proj"]
ORDERS = [("ours", "lora"), ("lora", "ours")]
NEUROADA = METHODS[0]

both_orders = pytest.mark.parametrize("order", ORDERS, ids="-".join)
two_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@torch.no_grad()
def fill_lora(model: nn.Module, adapter: str = "lora") -> None:
    generator = torch.Generator().manual_seed(9)
    for name, layer in sorted(model.named_modules()):
        if isinstance(layer, LoraLayer) and adapter in layer.lora_B and name:
            for part in (layer.lora_A, layer.lora_B):
                weight = part[adapter].weight
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))


def mixed(base: nn.Module, kind=NEUROADA, order=ORDERS[0], trained: bool = True, **ours) -> PeftMixedModel:
    configs = {
        "ours": kind.config(**({"target_modules": TARGETS} | ours)),
        "lora": LoraConfig(r=2, target_modules=TARGETS),
    }
    model = get_peft_model(copy.deepcopy(base), configs[order[0]], adapter_name=order[0], mixed=True)
    model.add_adapter(order[1], configs[order[1]])
    model.set_adapter(["ours", "lora"])
    if trained:
        fill(model, "ours")
        fill_lora(model)
    return model.eval()


def ours_alone(base: nn.Module, kind=NEUROADA) -> PeftModel:
    return kind.adapted(base, "ours", target_modules=TARGETS)


def lora_on(base: nn.Module, autocast: bool = True) -> PeftModel:
    """autocast: LoRA in float32 on any base, as PEFT has it but for the first adapter of a mixed model."""
    config = LoraConfig(r=2, target_modules=TARGETS)
    model = get_peft_model(copy.deepcopy(base), config, adapter_name="lora", autocast_adapter_dtype=autocast)
    fill_lora(model)
    return model.eval()


def plain_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the base's own, by the names that they have without adapters."""
    weights = {}
    for name, tensor in base_weights(model).items():
        while ".base_layer." in name:
            name = name.replace(".base_layer.", ".")
        if ".lora_" not in name:
            weights[name] = tensor
    return weights


def same_weights(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(same_bits(tensor, right[name]) for name, tensor in left.items())
