"""Tiny adapted models with their optimisers, and a few steps of training, for the tests of drop and grow."""

import copy

import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from neuroada import NeuroAdaConfig, NeuroAdaLinear
from specimens import VOCABULARY, same_bits, tiny, token_ids

OPTIMISERS = {
    "adamw": lambda parameters: AdamW(parameters, lr=1e-2, amsgrad=True, fused=False),
    "fused": lambda parameters: AdamW(parameters, lr=1e-2, fused=True),
    "sgd": lambda parameters: SGD(parameters, lr=0.1, momentum=0.9),
}


def batches(count: int = 2) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    rows = [torch.randint(3, VOCABULARY, (2, 7), generator=generator) for _ in range(count)]
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids} for ids in rows]


def adapted(family: str = "llama", dtype: torch.dtype = torch.float32, optimiser: str = "adamw", **config):
    base = copy.deepcopy(tiny(family)).to(dtype)
    model = get_peft_model(base, NeuroAdaConfig(**{"k": 4, "target_modules": "all-linear"} | config)).train()
    return model, OPTIMISERS[optimiser]([p for p in model.parameters() if p.requires_grad])


def layers_of(model: nn.Module) -> list[NeuroAdaLinear]:
    return [layer for layer in model.modules() if isinstance(layer, NeuroAdaLinear)]


def step(model: nn.Module, optimiser: Optimizer, times: int = 1) -> None:
    for _ in range(times):
        ids = token_ids()
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()


def adapter(model: nn.Module) -> list[Tensor]:
    """Indices and deltas of each layer."""
    parts = [(layer.neuroada_indices["default"], layer.neuroada_deltas["default"]) for layer in layers_of(model)]
    return [part.detach().clone() for pair in parts for part in pair]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(same_bits(*pair) for pair in zip(left, right, strict=True))
