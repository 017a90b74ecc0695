"""Mask-based tuning in a recipe: which entries of the base weights are trained, and with which optimiser states."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn

from neuroada.baselines import wrap_compact_mask, wrap_mask
from neuroada.config import NeuroAdaConfig
from neuroada.config.criteria import COMPARABLE, waits_for_data
from neuroada.config.shared import require_known
from neuroada.errors import ConfigError
from neuroada.layers import NeuroAdaLinear
from neuroada.ops.sparse_delta import FrozenWeight, Support
from neuroada.selection import CRITERIA, TopEntries, draw_entries, scores_of
from neuroada.tuners import reselect
from neuroada.tuners.processes import is_sharded
from neuroada.tuners.statistics import gathering

STATES = ("full", "support")
SCOPES = ("neuron", "layer", "block", "model")
NAME = "default"
"""Of the adapter that chooses."""


@dataclass
class MaskConfig(NeuroAdaConfig):
    """NeuroAda's settings, by which the entries are chosen, and two more.

    Raises:
        ConfigError: as NeuroAdaConfig; a scope with which the selection or the coverage has no meaning.
    """

    state: str = field(
        default="full",
        metadata={"help": "Optimiser states for whole weights, as the paper describes it, or for the 'support' alone."},
    )
    scope: str = field(
        default="neuron",
        metadata={
            "help": "What the entries compete in: each neuron, layer, transformer block, or the whole model. There are "
            "as many of them in all as with 'neuron'."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        require_known("mask.state", self.state, STATES)
        require_known("mask.scope", self.scope, SCOPES)
        if not self.init_weights:
            raise ConfigError(
                "mask.init_weights=false", "a mask trains the pretrained values themselves", "Leave it out"
            )
        if self.budget_scope != "weight":
            found = "a budget for the model is spread over weights, and a mask may choose over the model itself"
            raise ConfigError(f"mask.budget_scope={self.budget_scope}", found, "Set mask.scope=model instead")
        if self.scope == "neuron":
            return
        if self.coverage < 1:
            found = "coverage is a share of the neurons, and entries beyond a neuron compete with all others"
            raise ConfigError(f"mask.scope={self.scope} with coverage={self.coverage}", found, "Leave coverage out")
        if self.selection not in COMPARABLE:
            found = "its scores compare inputs of one neuron only"
            raise ConfigError(f"mask.scope={self.scope} with selection={self.selection}", found, "Choose another one")


class Mask:
    """A base model on its way to mask-based training.

    Until `settle` it has a NeuroAda adapter on it, which is only there to choose. head: what of a base model is
    trained beside the mask.
    """

    def __init__(self, model: nn.Module, config: MaskConfig, head: Callable[[nn.Module], list[nn.Parameter]]) -> None:
        """Put the adapter on the model; its entries are chosen later."""
        if is_sharded():
            found = "a mask is for whole weights and their gradients, and they are sharded over processes"
            raise ConfigError(
                "method 'mask' under FSDP", found, "Train with DistributedDataParallel, or without a mask"
            )
        self.config, self.head = config, head
        self.trained = sum(parameter.numel() for parameter in head(model))
        self.wrapped: Any = get_peft_model(model, config)
        self.layers = {
            name.removeprefix("base_model.model."): layer
            for name, layer in self.wrapped.named_modules()
            if isinstance(layer, NeuroAdaLinear)
        }
        self.trained += sum(map(_entries, self.layers.values()))

    @property
    def waits(self) -> bool:
        """Whether `settle` needs batches."""
        return waits_for_data(self.config.selection)

    def settle(self, batches: Sequence[Mapping[str, Any]] = (), progress: bool = False) -> str:
        """Choose the entries and make them, and the head, what is trained of the base model.

        Returns a digest of the entries.
        """
        selection = self.config.selection
        if self.config.scope == "neuron":
            if self.waits:
                reselect(self.wrapped, batches, selection, progress=progress)
            supports = {name: layer.support([NAME]) for name, layer in self.layers.items()}
        elif selection == "random":
            supports = self._drawn()
        else:
            supports = self._best(batches, progress)
        model = self.wrapped.unload()
        wrap = wrap_compact_mask if self.config.state == "support" else wrap_mask
        wrap(model, supports=supports)
        for parameter in self.head(model):
            parameter.requires_grad_(True)
        return _digest(supports)

    def _drawn(self) -> dict[str, Support]:
        supports = {}
        for scope, names in self._scopes().items():
            members = [self.layers[name] for name in names]
            sizes = [layer.in_features * layer.out_features for layer in members]
            chosen = draw_entries(sizes, sum(map(_entries, members)), self.config.seed, scope)
            supports |= {name: _support(self.layers[name], places) for name, places in zip(names, chosen, strict=True)}
        return supports

    def _best(self, batches: Sequence[Mapping[str, Any]], progress: bool) -> dict[str, Support]:
        scopes = self._scopes()
        top = {scope: TopEntries(sum(_entries(self.layers[name]) for name in names)) for scope, names in scopes.items()}
        scope_of = {self.layers[name]: scope for scope, names in scopes.items() for name in names}
        selection, seed = self.config.selection, self.config.seed
        layers, needs = list(self.layers.values()), CRITERIA[selection].needs
        with gathering(self.wrapped, NAME, layers, needs, batches, progress=progress) as (groups, summed):
            for group in groups:
                for each in summed(group):
                    layer = each.layer
                    weight = FrozenWeight(layer.stored_weight, layer.transposed).alias()
                    top[scope_of[layer]].see(scores_of(weight, selection, seed, layer.name, each.gradient, each.inputs))
        return {
            name: _support(self.layers[name], places)
            for scope, names in scopes.items()
            for name, places in zip(names, top[scope].positions(), strict=True)
        }

    def _scopes(self) -> dict[str, list[str]]:
        """Names of the layers whose entries compete, by a name for all of them."""
        scopes = defaultdict(list)
        for name in self.layers:
            scopes[{"layer": name, "block": block_of(name), "model": "model"}[self.config.scope]].append(name)
        return scopes


def block_of(name: str) -> str:
    """The transformer block that a layer is in: its name up to the first number; all of it where there is none."""
    parts = name.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[: number + 1])


def _digest(supports: Mapping[str, Support]) -> str:
    found = hashlib.sha256()
    for name, support in supports.items():
        found.update(name.encode())
        for places in (support.indices, support.neurons):
            found.update(b"" if places is None else places.cpu().numpy().tobytes())
    return found.hexdigest()


def _entries(layer: NeuroAdaLinear) -> int:
    return layer.neuroada_indices[NAME].numel()


def _support(layer: NeuroAdaLinear, places: Tensor) -> Support:
    """Entries of a weight [O, I] at ascending places in it flattened: N = their number, K = 1."""
    indices = (places % layer.in_features)[:, None].int()
    return Support(indices, torch.zeros(indices.shape, device=places.device), (places // layer.in_features).int())
