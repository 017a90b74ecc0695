"""Every class of Transformers that puts a head on a body, as a model small enough for a test."""

import re
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

TASKS = re.compile("CLASSIFICATION|QUESTION_ANSWERING|MULTIPLE_CHOICE|XVECTOR")
LARGEST = 5_000_000
"""Parameters of a model that is still tiny."""

SIZES: tuple[tuple[str, int], ...] = (
    (r"(num|n)_(kv|key_value)_heads|num_key_value_heads|multi_query_group_num", 2),
    (r".*attention_heads|n_heads?|num_heads|heads", 2),
    (r"(encoder_|decoder_|num_|n_)*(hidden_)?layers?|num_hidden_layers|num_blocks|depth", 2),
    (r"intermediate_size|.*ffn_dim|d_ff|n_inner|ffn_hidden_size|hidden_dim|dim_feedforward", 32),
    (r"hidden_size|d_model|n_embd|dim|emb_dim|embed_dim|embedding_size|d_embed|hidden_sizes_?|conv_dim_out", 16),
    (r"head_dim|d_kv|d_head|qk_nope_head_dim|qk_rope_head_dim|v_head_dim", 8),
    (r"vocab_size|.*_vocab_size", 60),
    (r"max_position_embeddings|n_positions|max_seq_len(gth)?|n_ctx", 64),
    (r"num_experts|num_local_experts|n_routed_experts|num_experts_per_tok|moe_num_experts", 2),
    (r"image_size", 32),
    (r"patch_size", 8),
    (r"q_lora_rank|kv_lora_rank", 8),
)
TOKENS = re.compile(r".*_token_id|.*_token_index")


def shrunk(config: PreTrainedConfig) -> PreTrainedConfig:
    """The same with small sizes, in its parts too."""
    for key, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            shrunk(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            small = next((size for name, size in SIZES if re.fullmatch(name, key)), None)
            if small is not None and value > small:
                setattr(config, key, small)
            elif TOKENS.fullmatch(key) and value >= 60:
                setattr(config, key, 1)
    types = getattr(config, "layer_types", None)
    if isinstance(types, list) and isinstance(getattr(config, "num_hidden_layers", None), int):
        config.layer_types = types[: config.num_hidden_layers]
    return config


def head_classes() -> dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]]:
    """By its name, each class with a head for classification, questions or choices, and its configuration's."""
    found: dict[str, Any] = {}
    for name in dir(modeling_auto):
        if name.startswith("MODEL_FOR_") and name.endswith("_MAPPING") and TASKS.search(name):
            for config, classes in getattr(modeling_auto, name).items():
                for each in classes if isinstance(classes, tuple) else (classes,):
                    found[each.__name__] = config, each
    return dict(sorted(found.items()))


def tiny_config(name: str) -> PreTrainedConfig | None:
    """A small configuration of a class, or None where there is none that builds a small model with linear layers."""
    config_class, model_class = head_classes()[name]
    try:
        config = shrunk(config_class())
        with torch.device("meta"):
            model = model_class(config)
        if sum(parameter.numel() for parameter in model.parameters()) > LARGEST:
            return None
        prefix = model.base_model_prefix
        if prefix not in dict(model.named_children()):
            return None
        body = model.get_submodule(prefix)
        if not any(type(module) is nn.Linear for module in body.modules()):
            return None
        model_class(type(config).from_dict(config.to_dict()))
    except Exception:  # whatever a configuration of odd sizes meets: that class is not tried
        return None
    return config
