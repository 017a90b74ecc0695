"""A pretrained model, where a benchmark is about real weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.utils import logging

from neuroada.inputs.models import resolve_model
from neuroada.measure.record import Shape

_SIZES = {
    "hidden": "hidden_size",
    "intermediate": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "key_value_heads": "num_key_value_heads",
    "vocabulary": "vocab_size",
}


def load_frozen(name: str, dtype: str, device: torch.device) -> Any:
    """The causal language model of that name (see `inputs.models`) with frozen weights of `dtype`."""
    source, _ = resolve_model(name)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype))
    finally:
        if shown:
            logging.enable_progress_bar()
    return model.to(device).requires_grad_(False)


def described(name: str, config: PretrainedConfig) -> Shape:
    """Name, without its folders, and sizes, for records."""
    sizes = {key: getattr(config, field) for key, field in _SIZES.items() if hasattr(config, field)}
    return Shape(name=Path(name).name, sizes=sizes)
