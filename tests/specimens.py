"""Tiny models of several families, the methods that shared tests run over, and comparison bit for bit."""

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
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

from neuroada import NeatConfig, NeatLinear, NeatModel, NeuroAdaConfig, NeuroAdaLinear, NeuroAdaModel
from neuroada.layers import AdapterLayer

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
def logits(model: nn.Module, rows: int = 2) -> Tensor:
    """What a model says about `token_ids(rows)`."""
    return model(token_ids(rows)).logits


def adapted_layers(module: nn.Module) -> list[AdapterLayer]:
    """Of any method, in the module's own order."""
    return [layer for layer in module.modules() if isinstance(layer, AdapterLayer)]


def trained_parameters(layer: AdapterLayer, adapter: str = "default") -> dict[str, nn.Parameter]:
    """Of one adapter, by the name of what holds them."""
    containers = {kind: getattr(layer, kind) for kind in layer.adapter_layer_names}
    return {kind: container[adapter] for kind, container in containers.items() if adapter in container}


@torch.no_grad()
def fill(module: nn.Module, adapter: str = "default", scale: float = 0.3) -> None:
    """Give an adapter values other than those of its birth, as training would; another name, other values."""
    generator = torch.Generator().manual_seed(sum(adapter.encode()))
    for layer in adapted_layers(module):
        for parameter in trained_parameters(layer, adapter).values():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))


@dataclass(frozen=True)
class Kind:
    """A method with settings, as the tests that all methods share run over them.

    size: the field that says how many values are trained. exact: merging changes no output by one bit; otherwise by
    rounding only.
    """

    name: str
    config_class: type
    model_class: type
    layer_class: type
    prefix: str
    size: str
    exact: bool
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    @property
    def peft_type(self) -> str:
        """As PEFT calls the method."""
        return self.prefix.removesuffix("_").upper()

    def config(self, size: int = 2, **fields) -> Any:
        """A configuration of this method."""
        return self.config_class(**({self.size: size} | self.settings | fields))

    def layer(self, base: nn.Module, adapter: str = "default", **fields) -> AdapterLayer:
        """A base layer with a new adapter on it."""
        return self.layer_class(base, adapter, self.config(**fields), "layer")

    def adapted(self, base: nn.Module, adapter: str = "default", **fields) -> PeftModel:
        """A copy of `base` with an adapter that has been through training."""
        model = get_peft_model(copy.deepcopy(base), self.config(**fields), adapter_name=adapter)
        fill(model, adapter)
        return model.eval()

    def agrees(self, adapted: Tensor, merged: Tensor, exact: Callable[[], Tensor]) -> bool:
        """Whether outputs before and after merging are as equal as the method promises.

        exact: the same in float64; the difference may be twice the error that the merged weight itself has.
        """
        if self.exact:
            return same_bits(adapted, merged)
        if merged.dtype == torch.float64:
            return adapted.dtype == merged.dtype and torch.allclose(adapted, merged, rtol=1e-10, atol=1e-12)
        right = exact()
        floor = max((merged.double() - right).norm(), right.norm() * torch.finfo(merged.dtype).eps / 2)
        return adapted.dtype == merged.dtype and bool((adapted.double() - merged.double()).norm() <= 2 * floor)

    def models_agree(self, adapted: Tensor, merged: Tensor, model: nn.Module) -> bool:
        """The same for the logits of a model that is not merged now."""
        return self.agrees(adapted, merged, lambda: logits(copy.deepcopy(model).double(), len(adapted)))


_NEUROADA = NeuroAdaConfig, NeuroAdaModel, NeuroAdaLinear, "neuroada_", "k", True
_NEAT = NeatConfig, NeatModel, NeatLinear, "neat_", "r", False
NEUROADA_KINDS = tuple(Kind(f"neuroada-{mode}", *_NEUROADA, {"mode": mode}) for mode in MODES)
NEAT_KINDS = (
    Kind("neat", *_NEAT),
    Kind("neat-output", *_NEAT, {"side": "output", "depth": 4, "activation": "gelu"}),
)
NEAT_VARIANTS = tuple(
    Kind(f"{variant}-{side}", *_NEAT, {"variant": variant, "side": side})
    for variant in ("nonlinear_lora", "multiplicative_lora")
    for side in ("input", "output")
)
KINDS = NEUROADA_KINDS + NEAT_KINDS
METHODS = (Kind("neuroada", *_NEUROADA), NEAT_KINDS[0])
every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)
every_method = pytest.mark.parametrize("kind", METHODS, ids=str)


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


_OF_ADAPTERS = re.compile(r"\.(neuroada_(deltas|indices|neurons)|neat_(in|hidden|out))\.")


def base_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the pretrained parameters and buffers, under the names they have without adapters."""
    found = {}
    for name, tensor in model.state_dict().items():
        if _OF_ADAPTERS.search(name) or ".modules_to_save." in name:
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
