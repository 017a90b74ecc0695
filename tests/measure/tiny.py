"""A model small enough to measure in a test."""

from transformers import LlamaForCausalLM

from neuroada.measure.shapes import ModelShape

TINY = ModelShape(
    "tiny",
    LlamaForCausalLM,
    "llama",
    {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 99,
        "use_cache": False,
    },
    sequence=6,
    longest=32,
)
