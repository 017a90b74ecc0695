"""NEAT on a linear layer: a small network of the frozen weight makes its update (arXiv 2410.01870, Section 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import onload_layer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from neuroada.config import NeatConfig
from neuroada.layers.base import AdapterLayer
from neuroada.ops.neat import (
    ACTIVATIONS,
    Network,
    Theta,
    delta_weight,
    multiplied_input,
    multiplied_output,
    traced_update,
    updated,
)
from neuroada.ops.sparse_delta import FrozenWeight, Support, read
from neuroada.ops.sparse_delta.entries import shifted


def _uniform(*shape: int) -> Tensor:
    """float32, as torch.nn.Linear starts a weight [out, in] of this shape."""
    bound = 1 / math.sqrt(shape[-1])
    return torch.empty(shape, dtype=torch.float32).uniform_(-bound, bound)


class NeatLinear(AdapterLayer):
    """A linear layer whose weight [O, I] is updated by what a network of R × R layers makes of it.

    Per adapter, float32: neat_in [R, D]; neat_hidden [depth - 2, R, R], only where depth > 2; neat_out [D, R]; D is I
    on side "input", O on side "output". For "nonlinear_lora" neat_in is [R, O] and [R, I] instead. See `ops.neat`.
    """

    adapter_layer_names = ("neat_in", "neat_hidden", "neat_out")
    other_param_names = ("networks", "dropout")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: NeatConfig, name: str):
        super().__init__(base_layer, name)
        self.neat_in = nn.ParameterDict()
        self.neat_hidden = nn.ParameterDict()
        self.neat_out = nn.ParameterDict()
        self.networks: dict[str, Network] = {}
        self.dropout: dict[str, float] = {}
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: NeatConfig) -> None:
        """Add an adapter: random layers, the last one zero unless the configuration says otherwise."""
        width, other = self.in_features, self.out_features
        if config.side == "output":
            width, other = other, width
        self.neat_in[adapter_name] = nn.Parameter(
            _uniform(config.r, other if config.variant == "nonlinear_lora" else width)
        )
        if config.depth > 2:
            self.neat_hidden[adapter_name] = nn.Parameter(_uniform(config.depth - 2, config.r, config.r))
        last = torch.zeros(width, config.r) if config.init_weights else _uniform(width, config.r)
        self.neat_out[adapter_name] = nn.Parameter(last.float())
        activation = ACTIVATIONS.get(config.activation) or ACT2FN[config.activation].forward
        self.networks[adapter_name] = Network(config.side, config.variant, activation, config.scaling)
        self.dropout[adapter_name] = config.dropout
        with onload_layer(self):
            self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def theta(self, name: str) -> Theta:
        """What is trained of an adapter."""
        hidden = self.neat_hidden.get(name)
        return Theta(self.neat_in[name], hidden, self.neat_out[name])

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The update that one adapter makes of the pretrained weight, dense, laid out as the base weight is stored."""
        delta = delta_weight(self._pretrained_weight(), self.theta(adapter), self.networks[adapter])
        return delta.T if self.transposed else delta

    def reads_weight(self, name: str) -> bool:
        """Whether an adapter's update is a function of the pretrained weight, so that nobody else may change it."""
        return self.networks[name].variant != "nonlinear_lora"

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """True: the update is a matrix of rank R."""
        return True

    def sample(self) -> Support:
        """One entry of each neuron, spread over the inputs, by which a weight is recognised; its deltas are dummies."""
        rows = torch.arange(self.out_features)
        return Support((rows * self.in_features // self.out_features)[:, None], torch.zeros(self.out_features, 1))

    def _dropped(self, x: Tensor, name: str) -> Tensor:
        share = self.dropout[name]
        return F.dropout(x, share) if share and self.training else x

    def _adapted_forward(self, x: Tensor, weight: FrozenWeight, bias: Tensor | None, names: list[str]) -> Tensor:
        seen = {name: self._dropped(x, name) for name in names}
        if len(names) == 1 and self.networks[names[0]].variant == "multiplicative_lora":
            (name,) = names
            theta, network = self.theta(name), self.networks[name]
            if network.side == "input":
                return self._base_output(multiplied_input(x, seen[name], theta, network), weight, bias)
            if seen[name] is x and bias is None:
                return multiplied_output(self._base_output(x, weight, None), theta, network)
        output = self._base_output(x, weight, bias)
        for name in names:
            output = updated(output, seen[name], weight, self.stored_weight, self.theta(name), self.networks[name])
        return output

    def _base_output(self, x: Tensor, weight: FrozenWeight, bias: Tensor | None) -> Tensor:
        if weight.parameter is None:  # a quantised layer has a product of its own
            return self.kind.compute(self.base_layer, x)
        return self.kind.apply(x, weight, None, bias)

    def _traced_forward(self, x: Tensor, names: list[str]) -> Tensor:
        output = self.base_layer(x)
        weight = self.stored_weight.T if self.transposed else self.stored_weight
        for name in names:
            output = traced_update(output, self._dropped(x, name), weight, self.theta(name), self.networks[name])
        return output

    @torch.no_grad()
    def _merged_entries(self, weight: Tensor, names: list[str]) -> tuple[dict[str, Tensor], Tensor]:
        first, *rest = (delta_weight(weight, self.theta(name), self.networks[name]) for name in names)
        merged = shifted(weight, sum(rest, first))
        return {"originals": weight.clone(), "merged": self._witness(merged, {})}, merged

    def _where(self, weight: Tensor, record: Mapping[str, Tensor]) -> tuple[Tensor, Any]:
        return weight, ...

    def _witness(self, weight: Tensor, record: Mapping[str, Tensor]) -> Tensor:
        return read(weight, self.sample().to(weight.device))
