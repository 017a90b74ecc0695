"""The methods that benchmarks compare: how each wraps a frozen base model, with the settings that records name."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import peft
from peft import get_peft_model
from torch import nn
from transformers import PreTrainedModel

from neuroada.baselines import wrap_compact_mask, wrap_mask, wrap_scatter
from neuroada.config import NeatConfig, NeuroAdaConfig
from neuroada.errors import ConfigError, near
from neuroada.layers import held
from neuroada.measure.shapes import adapted_names

FROZEN = "frozen"
RANK = 8
"""Of LoRA; NEAT, SHiRA, PEANuT and MiSS get as many trained parameters, or nearly."""


class NotAvailableError(Exception):
    """A method that this machine, or this version of PEFT, does not have; the message is the reason."""


@dataclass(frozen=True)
class Trainee:
    """A wrapped model. parameters: what the optimiser trains. around: entered around each step."""

    model: nn.Module
    parameters: list[nn.Parameter]
    around: Callable[[], AbstractContextManager[None]] = nullcontext


Wrap = Callable[[nn.Module, list[str], dict[str, Any]], Trainee]


@dataclass(frozen=True)
class Method:
    """A method with its settings. writes_base: it trains base weights, and needs its own copy of them."""

    name: str
    wrap: Wrap = field(repr=False)
    settings: dict[str, Any] = field(default_factory=dict)
    writes_base: bool = False
    sparse: bool = False

    @property
    def label(self) -> str:
        """Name with K, if it has one."""
        return f"{self.name} k={self.settings['k']}" if "k" in self.settings else self.name


def _frozen(model: nn.Module, names: list[str], settings: dict[str, Any]) -> Trainee:
    return Trainee(model, [])


def _full(model: nn.Module, names: list[str], settings: dict[str, Any]) -> Trainee:
    return Trainee(model.requires_grad_(True), list(model.parameters()))


def _mask(model: nn.Module, names: list[str], settings: dict[str, Any]) -> Trainee:
    return Trainee(model, wrap_mask(model, names, settings["k"]))


def _mask_compact(model: nn.Module, names: list[str], settings: dict[str, Any]) -> Trainee:
    return Trainee(model, wrap_compact_mask(model, names, settings["k"]))


def _scatter(model: nn.Module, names: list[str], settings: dict[str, Any]) -> Trainee:
    return Trainee(model, wrap_scatter(model, names, settings["k"]))


def _neuroada(model: nn.Module, names: list[str], settings: dict[str, Any]) -> Trainee:
    wrapped = get_peft_model(model, NeuroAdaConfig(target_modules=names, **settings))
    return Trainee(wrapped, _trained(wrapped), lambda: held(wrapped))


def _neuroada_unheld(model: nn.Module, names: list[str], settings: dict[str, Any]) -> Trainee:
    wrapped = get_peft_model(model, NeuroAdaConfig(target_modules=names, **settings))
    return Trainee(wrapped, _trained(wrapped))


def _neat(model: nn.Module, names: list[str], settings: dict[str, Any]) -> Trainee:
    wrapped = get_peft_model(model, NeatConfig(target_modules=names, **settings))
    return Trainee(wrapped, _trained(wrapped))


def _of_peft(config: str) -> Wrap:
    def wrap(model: nn.Module, names: list[str], settings: dict[str, Any]) -> Trainee:
        found = getattr(peft, config, None)
        if found is None:
            raise NotAvailableError(f"not in this PEFT ({peft.__version__}): it has no {config}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                wrapped = get_peft_model(model, found(target_modules=names, **settings))
        except (ValueError, TypeError, NotImplementedError) as error:
            raise NotAvailableError(f"{type(error).__name__}: {error}") from error
        return Trainee(wrapped, _trained(wrapped))

    return wrap


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


METHODS = {
    method.name: method
    for method in (
        Method(FROZEN, _frozen),
        Method("neuroada", _neuroada, sparse=True),
        Method("neuroada-unheld", _neuroada_unheld, sparse=True),
        Method("neat", _neat, {"r": RANK + 1}),
        Method("lora", _of_peft("LoraConfig"), {"r": RANK}),
        Method("dora", _of_peft("LoraConfig"), {"r": RANK, "use_dora": True}),
        Method("shira", _of_peft("ShiraConfig"), {"r": RANK, "random_seed": 0}),
        Method("supertuning", _of_peft("SupertuningConfig"), {"sparsity": 0.99}),
        Method("peanut", _of_peft("PeanutConfig"), {"r": RANK}),
        Method("oft", _of_peft("OFTConfig"), {"oft_block_size": 32}),
        Method("miss", _of_peft("MissConfig"), {"r": 2 * RANK}),
        Method("scatter", _scatter, sparse=True),
        Method("mask", _mask, writes_base=True, sparse=True),
        Method("mask-compact", _mask_compact, writes_base=True, sparse=True),
        Method("full", _full, writes_base=True),
    )
}
"""By name. "frozen" is the limit: forward and backward, nothing trained. Sparse ones get their k from the caller; of
NEAT, whose layers count 2·I·R values, a rank more than LoRA's gives as many over a block of Llama; "neuroada" keeps its
supports swapped in between optimiser steps, as training does."""


def choose_methods(names: Iterable[str], per_neuron: Iterable[int]) -> list[Method]:
    """The methods of these names, the frozen limit first, sparse ones once for each k.

    Raises:
        ConfigError: an unknown name; the message lists the known ones.
    """
    chosen = []
    for name in dict.fromkeys([FROZEN, *names]):
        if name not in METHODS:
            raise ConfigError(f"method {name!r}", "not a known benchmark method", near(name, METHODS))
        chosen += with_settings(METHODS[name], per_neuron)
    return chosen


def with_settings(method: Method, per_neuron: Iterable[int]) -> list[Method]:
    """A sparse method once for each k; any other as it is."""
    if not method.sparse:
        return [method]
    fields = {"wrap": method.wrap, "writes_base": method.writes_base, "sparse": True}
    return [Method(method.name, settings={**method.settings, "k": k}, **fields) for k in dict.fromkeys(per_neuron)]


def wrap_copy(method: Method, base: nn.Module) -> Trainee:
    """The method on a copy of a frozen model, which shares the base's tensors unless the method writes to them.

    Raises:
        NotAvailableError: the method, or a package that it needs, is not installed, or it refuses this model.
    """
    model = copy.deepcopy(base) if method.writes_base else _sharing_copy(base)
    if isinstance(model, PreTrainedModel):
        model.enable_input_require_grads()  # the same gradient reaches the same place with every method
    try:
        return method.wrap(model, adapted_names(model), method.settings)
    except ImportError as error:
        raise NotAvailableError(f"{type(error).__name__}: {error}") from error


def _sharing_copy(base: nn.Module) -> nn.Module:
    tensors = itertools.chain(base.parameters(), base.buffers())
    return copy.deepcopy(base, {id(tensor): tensor for tensor in tensors})


def require_fitting(methods: Iterable[Method], model: nn.Module) -> None:
    """Raise ConfigError if a method asks for more entries of a neuron than the narrowest adapted layer has."""
    widths = [(cast(nn.Linear, model.get_submodule(name)).in_features, name) for name in adapted_names(model)]
    width, narrowest = min(widths)
    for method in methods:
        per_neuron = method.settings.get("k", 1)
        if not 1 <= per_neuron <= width:
            found = f"the narrowest layer, {narrowest}, has {width} inputs a neuron"
            raise ConfigError(f"--k {per_neuron}", found, f"Give 1 to {width}")
