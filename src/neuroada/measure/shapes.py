"""Models by name, made in code with random weights: cost does not depend on their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    RobertaForSequenceClassification,
    ViTForImageClassification,
)

from neuroada.errors import ConfigError, near
from neuroada.measure.record import Shape

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class ModelShape:
    """A model to measure: class, configuration as published, and the longest sequence that it takes.

    sequence: the default length, or the only one for images.
    """

    name: str
    model: type[PreTrainedModel]
    model_type: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    sequence: int = 512
    longest: int = 2048

    def config(self, layers: int | None = None) -> PretrainedConfig:
        """The Transformers configuration, with another number of layers if one is given."""
        chosen = {} if layers is None else {"num_hidden_layers": layers}
        return AutoConfig.for_model(self.model_type, **{**self.fields, **chosen})

    def described(self, layers: int | None = None) -> Shape:
        """Name and sizes, for records."""
        config = self.config(layers)
        keys = {
            "hidden": "hidden_size",
            "intermediate": "intermediate_size",
            "layers": "num_hidden_layers",
            "heads": "num_attention_heads",
            "key_value_heads": "num_key_value_heads",
            "vocabulary": "vocab_size",
        }
        return Shape(
            name=self.name, sizes={key: getattr(config, at) for key, at in keys.items() if hasattr(config, at)}
        )


def _llama(name: str, hidden: int, intermediate: int, layers: int, heads: int, **fields: Any) -> ModelShape:
    longest = fields.get("max_position_embeddings", 2048)
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "use_cache": False,
    }
    return ModelShape(name, LlamaForCausalLM, "llama", sizes | fields, longest=longest)


def _roberta(name: str, hidden: int, intermediate: int, layers: int, heads: int) -> ModelShape:
    fields = {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "num_labels": 3,
    }
    return ModelShape(name, RobertaForSequenceClassification, "roberta", fields, sequence=128, longest=512)


SHAPES = {
    shape.name: shape
    for shape in (
        _llama("llama-2048x5504", 2048, 5504, 4, 16, vocab_size=256),
        _llama(
            *("SmolLM2-135M", 576, 1536, 30, 9),
            num_key_value_heads=3,
            vocab_size=49152,
            tie_word_embeddings=True,
            max_position_embeddings=8192,
        ),
        _llama(
            *("Llama-3.2-1B", 2048, 8192, 16, 32),
            num_key_value_heads=8,
            vocab_size=128256,
            tie_word_embeddings=True,
            max_position_embeddings=131072,
        ),
        _llama("LLaMA-7B", 4096, 11008, 32, 32, vocab_size=32000),
        _llama(
            *("Llama-3-8B", 4096, 14336, 32, 32),
            num_key_value_heads=8,
            vocab_size=128256,
            max_position_embeddings=8192,
        ),
        _llama("LLaMA-13B", 5120, 13824, 40, 40, vocab_size=32000),
        _roberta("RoBERTa-base", 768, 3072, 12, 12),
        _roberta("RoBERTa-large", 1024, 4096, 24, 16),
        ModelShape("ViT-base", ViTForImageClassification, "vit", {"num_labels": 100}, sequence=197, longest=197),
    )
}
"""The published sizes. "llama-2048x5504" is blocks alone: four of them, with a vocabulary too small to matter."""


def find_shape(name: str) -> ModelShape:
    """The shape of that name, in any case.

    Raises:
        ConfigError: none has it; the message names those that there are.
    """
    by_lower = {known.lower(): known for known in SHAPES}
    if name.lower() not in by_lower:
        raise ConfigError(f"shape {name!r}", "not a known shape", near(name, SHAPES))
    return SHAPES[by_lower[name.lower()]]


def build_model(
    shape: ModelShape, dtype: torch.dtype, device: torch.device, layers: int | None = None, seed: int = 0
) -> PreTrainedModel:
    """The model with random weights of `dtype`, frozen, in training mode; the same each time on one device."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(seed)
        model = shape.model._from_config(shape.config(layers), dtype=dtype)
    return model.requires_grad_(False).train()


def make_batch(shape: ModelShape, batch: int, sequence: int, dtype: torch.dtype, device: torch.device) -> Batch:
    """Random inputs with labels: ids [batch, sequence] int64, or images [batch, 3, 224, 224] of `dtype`.

    Raises:
        ConfigError: no tokens, or more than the model takes.
    """
    if batch < 1 or sequence < 1:
        raise ConfigError(f"a batch of {batch} x {sequence} tokens", "it has no tokens", "Give at least 1 x 1")
    config: Any = shape.config()
    if shape.model_type == "vit":
        if sequence != shape.sequence:
            found = f"{shape.name} makes {shape.sequence} tokens of an image"
            raise ConfigError(f"a sequence of {sequence}", found, f"Leave it out, or give {shape.sequence}")
        images = torch.randn(batch, config.num_channels, config.image_size, config.image_size, dtype=dtype)
        inputs = {"pixel_values": images, "labels": torch.randint(config.num_labels, (batch,))}
    else:
        if sequence > shape.longest:
            found = f"{shape.name} takes at most {shape.longest}"
            raise ConfigError(f"a sequence of {sequence}", found, "Give a shorter one")
        ids = torch.randint(3, config.vocab_size, (batch, sequence))
        causal = shape.model_type == "llama"
        inputs = {"input_ids": ids, "labels": ids.clone() if causal else torch.randint(config.num_labels, (batch,))}
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def adapted_names(model: nn.Module) -> list[str]:
    """Names of the linear layers inside the model's blocks: what PEFT's "all-linear" means, heads left out."""
    blocks = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name.startswith(blocks)]
