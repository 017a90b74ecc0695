"""Tiny models of several families, and comparison bit for bit."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoConfig,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from neuroada import NeuroAdaConfig, NeuroAdaLinear

MODES = ("inplace", "transient")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
VOCABULARY = 61
CAUSAL = ("llama", "gpt2")
CLASSIFIERS = ("bert", "roberta")

_ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_LLAMA = {name: size for name, size in _ENCODER.items() if not name.endswith("_prob")}
_FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, _LLAMA | {"num_key_value_heads": 1, "pad_token_id": 0}),
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config,
        {
            "vocab_size": VOCABULARY,
            "n_embd": 24,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 40,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
    ),
    "bert": (BertForSequenceClassification, BertConfig, _ENCODER),
    "roberta": (RobertaForSequenceClassification, RobertaConfig, _ENCODER | {"pad_token_id": 0}),
    "albert": (
        AlbertForSequenceClassification,
        AlbertConfig,
        _ENCODER | {"embedding_size": 16, "classifier_dropout_prob": 0.0},
    ),
}


def tiny(family: str, seed: int = 0, **overrides) -> PreTrainedModel:
    """A random two-layer model in float32, without dropout; the same values each time."""
    model_class, config_class, fields = _FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(config_class(**(fields | overrides))).eval()


def load_base(folder: str | Path) -> PreTrainedModel:
    """A model that `save_pretrained` wrote, in the dtype it was saved in."""
    return getattr(transformers, AutoConfig.from_pretrained(folder).architectures[0]).from_pretrained(folder).eval()


def token_ids(rows: int = 2, length: int = 9) -> Tensor:
    """int64 [rows, length] in [1, VOCABULARY)."""
    return torch.randint(1, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """What a model says about `token_ids()`."""
    return model(token_ids()).logits


def fill(module: nn.Module, adapter: str = "default", scale: float = 0.3) -> None:
    """Give an adapter deltas other than zero, as training would; another name, other values."""
    generator = torch.Generator().manual_seed(sum(adapter.encode()))
    for layer in module.modules():
        if isinstance(layer, NeuroAdaLinear) and adapter in layer.neuroada_deltas:
            deltas = layer.neuroada_deltas[adapter]
            with torch.no_grad():
                deltas.copy_(scale * torch.randn(deltas.shape, generator=generator))


def adapted(base: nn.Module, adapter: str = "default", **config) -> PeftModel:
    """A copy of `base` with a NeuroAda adapter that has been through training."""
    size = {} if "budget" in config else {"k": 2}
    model = get_peft_model(copy.deepcopy(base), NeuroAdaConfig(**(size | config)), adapter_name=adapter)
    fill(model, adapter)
    return model.eval()


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Equal dtype, shape and bits: a NaN equals itself, 0.0 and -0.0 differ."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    views = (tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (left, right))
    return torch.equal(*views)


def base_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the pretrained parameters and buffers, under the names they have without adapters."""
    found = {}
    for name, tensor in model.state_dict().items():
        if "neuroada_" in name or ".modules_to_save." in name:
            continue
        name = name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", ".")
        found[name] = tensor.detach().clone()
    return found


def changed(before: dict[str, Tensor], model: nn.Module) -> list[str]:
    """Names whose bits differ between `before` and the base weights that the model holds now."""
    after = base_weights(model)
    return sorted(
        name
        for name in before.keys() | after.keys()
        if name not in before or name not in after or not same_bits(before[name], after[name])
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Tiny models run twice as fast on one thread as on two, and more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
