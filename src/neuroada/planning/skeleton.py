"""A base model without weights: from its configuration, on the meta device."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from peft import TaskType
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
)

from neuroada.errors import ConfigError, MissingInputError
from neuroada.inputs.models import other_source, resolve_model

_CLASSES: dict[TaskType, Any] = {
    TaskType.CAUSAL_LM: AutoModelForCausalLM,
    TaskType.SEQ_CLS: AutoModelForSequenceClassification,
    TaskType.FEATURE_EXTRACTION: AutoModelForImageClassification,  # PEFT has no task of its own for images
}


def load_config(name: str) -> PretrainedConfig:
    """The configuration of a model by directory, hub id, or a name that `inputs.models` knows; no weights.

    Raises:
        MissingInputError: it is not there.
    """
    source, _ = resolve_model(name)
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].removesuffix(".")
        raise MissingInputError(f"model {name}", f"no usable config.json ({reason})", other_source(name)) from error


@dataclass(frozen=True)
class Skeleton:
    """What a model is made from. task: how it is trained here; dtype: of its weights."""

    config: PretrainedConfig
    task: TaskType
    dtype: torch.dtype

    @classmethod
    def of(cls, config: PretrainedConfig, dtype: torch.dtype) -> Skeleton:
        """A causal language model; a classifier where the configuration is an encoder's, of text or of images.

        Raises:
            ConfigError: none of these.
        """
        mappings = (
            (MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, TaskType.FEATURE_EXTRACTION),
            (MODEL_FOR_MASKED_LM_MAPPING, TaskType.SEQ_CLS),
            (MODEL_FOR_CAUSAL_LM_MAPPING, TaskType.CAUSAL_LM),
        )
        for mapping, task in mappings:
            if type(config) in mapping:
                return cls(config, task, dtype)
        raise ConfigError(
            f"Planning for a model of type {config.model_type!r}",
            "it is neither a causal language model nor an encoder of text or images",
            "Plan for a model of one of these kinds",
        )

    def build(self, blocks: int | None = None) -> PreTrainedModel:
        """The frozen model on the meta device in training mode, with so many blocks, or all of them."""
        config = self.config if blocks is None else _shortened(self.config, blocks)
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = _CLASSES[self.task].from_config(config, dtype=self.dtype)
        return model.requires_grad_(False).train()

    @cached_property
    def uniform(self) -> bool:
        """Whether the model has one list of blocks, all alike, so that some of them tell what all need."""
        lists = [
            part for part in self.build().modules() if isinstance(part, nn.ModuleList) and len(part) == self.blocks
        ]
        shapes = [{name: tensor.shape for name, tensor in block.named_parameters()} for part in lists for block in part]
        return len(lists) == 1 and all(shape == shapes[0] for shape in shapes)

    @property
    def blocks(self) -> int:
        """How many blocks the model has; 0 where its configuration does not say."""
        return getattr(self.config, "num_hidden_layers", None) or 0

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of the images that the model takes, in pixels; None where it takes tokens."""
        if self.task != TaskType.FEATURE_EXTRACTION:
            return None
        size = getattr(self.config, "image_size", None)
        if size is None:
            asked = f"Planning for a model of type {self.config.model_type!r}"
            do = "Plan for a model that has one, such as a ViT"
            raise ConfigError(asked, "its configuration has no image_size", do)
        return tuple(size) if isinstance(size, (list, tuple)) else (size, size)

    def require_length(self, sequence: int) -> None:
        """Raise ConfigError if the model has fewer positions."""
        longest = getattr(self.config, "max_position_embeddings", None)
        if longest is None or self.image_size is not None:
            return
        if self.task == TaskType.SEQ_CLS and self.config.model_type in ("roberta", "xlm-roberta", "camembert"):
            longest -= (self.config.pad_token_id or 0) + 1  # their positions begin after the padding's
        if sequence > longest:
            raise ConfigError(f"--seq {sequence}", f"the model has {longest} positions", f"Give at most {longest}")

    def inputs(self, batch: int, sequence: int) -> dict[str, Tensor]:
        """A batch with labels and without padding, on the current default device; images have their own size."""
        labels = torch.zeros(batch, dtype=torch.long)
        if self.image_size is not None:
            shape = batch, cast(Any, self.config).num_channels, *self.image_size
            return {"pixel_values": torch.zeros(shape, dtype=self.dtype), "labels": labels}
        ids = torch.zeros(batch, sequence, dtype=torch.long)
        return {"input_ids": ids, "labels": ids.clone() if self.task == TaskType.CAUSAL_LM else labels}


def _shortened(config: PretrainedConfig, blocks: int) -> PretrainedConfig:
    config = copy.deepcopy(config)
    kinds = vars(config).get("layer_types")
    if kinds:
        config.layer_types = kinds[:blocks]
    config.num_hidden_layers = blocks
    return config


def block_numbers(model: nn.Module, blocks: int) -> dict[str, int]:
    """Number of its block for the name of each parameter and buffer inside the list of blocks."""
    numbers: dict[str, int] = {}
    for path, part in model.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) == blocks:
            for name, _ in (*part.named_parameters(), *part.named_buffers()):
                numbers[f"{path}.{name}"] = int(name.partition(".")[0])
    return numbers
