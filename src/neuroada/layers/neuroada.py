"""NeuroAda on a linear layer: k trainable deltas for each neuron (arXiv 2510.18940, Section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import onload_layer
from torch import Tensor, nn

from neuroada.config import NeuroAdaConfig
from neuroada.config.criteria import OWN, waits_for_data
from neuroada.errors import ConfigError, WeightError
from neuroada.layers.base import AdapterLayer, buffer_dict
from neuroada.layers.saved_inputs import InputGroup
from neuroada.ops.sparse_delta import (
    FrozenWeight,
    Support,
    combine,
    entries,
    flat,
    is_contended,
    positions,
    traced_linear,
)
from neuroada.ops.sparse_delta.mode import resolve_mode
from neuroada.selection import Criterion, covered_neurons, score_steps, select


class NeuroAdaLinear(AdapterLayer):
    """A linear layer with weight [O, I] whose N covered neurons have K trainable deltas each.

    Per adapter: neuroada_deltas [N, K] float32 or bfloat16, the trained part; neuroada_indices [N, K] int32 in
    [0, I), ascending along each row; neuroada_neurons [N] int32 in [0, O), ascending, only where coverage < 1.
    """

    product = "auto"
    """How the deltas' gradient is computed: "auto", or "sparse" or "dense" to pin it (see `sparse_delta_linear`)."""

    adapter_layer_names = ("neuroada_deltas",)
    other_param_names = ("neuroada_indices", "neuroada_neurons", "mode", "awaiting")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: NeuroAdaConfig, name: str):
        super().__init__(base_layer, name)
        self.neuroada_deltas = nn.ParameterDict()
        self.neuroada_indices = buffer_dict(persistent=True)
        self.neuroada_neurons = buffer_dict(persistent=True)
        self.mode: dict[str, str] = {}
        self.awaiting: dict[str, str] = {}
        """Adapters whose criterion has not got the data, or is a function that has not come; so long they have the
        largest weights."""
        self._resolved: tuple[tuple[Any, ...], str] = (), ""
        self.saved_input = config.saved_input
        self.input_group = InputGroup([self])
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: NeuroAdaConfig) -> None:
        """Add an adapter: choose its inputs from the base weight and give them zero deltas.

        On the meta device (a base without weights, or PEFT's `low_cpu_mem_usage`) nothing is chosen, and a file is
        expected to bring the indices.
        """
        per_neuron = config.entries_per_neuron(self.in_features, self.name)
        neurons = covered_neurons(self.out_features, config.coverage, config.seed, self.name)
        shape = (self.out_features if neurons is None else len(neurons), per_neuron)
        make = torch.zeros if config.init_weights else torch.randn
        self.neuroada_deltas[adapter_name] = nn.Parameter(make(shape, dtype=getattr(torch, config.delta_dtype)))
        self.mode[adapter_name] = config.mode
        selection = config.selection
        if waits_for_data(selection):
            self.awaiting[adapter_name], selection = selection, "magnitude"
        with onload_layer(self):
            if self.neuroada_deltas[adapter_name].is_meta or self.stored_weight.is_meta:
                self.neuroada_deltas[adapter_name] = nn.Parameter(
                    self.neuroada_deltas[adapter_name].detach().to("meta")
                )
                self.neuroada_indices[adapter_name] = torch.empty(shape, dtype=torch.int32, device="meta")
            else:
                weight = self._pretrained_weight()
                self.neuroada_indices[adapter_name] = select(
                    weight, per_neuron, selection, config.seed, self.name, neurons
                )
            self._move_adapter_to_device_of_base_layer(adapter_name)
        if neurons is not None:
            self.neuroada_neurons[adapter_name] = neurons.to(self.neuroada_indices[adapter_name].device, torch.int32)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def chosen_anew(
        self,
        adapter_name: str,
        selection: str | Criterion,
        seed: int,
        gradient: Tensor | None = None,
        inputs: Tensor | None = None,
        per_neuron: int | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """int32 [N, K], K = `per_neuron` or as now: what a criterion chooses of the pretrained weight, with statistics
        of data (see `select`). kept: bool [N, K], the present inputs that stay in any case."""
        per_neuron = per_neuron or self.neuroada_deltas[adapter_name].shape[1]
        stay = None if kept is None else (self.neuroada_indices[adapter_name], kept)
        neurons, data = self.neurons_of(adapter_name), {"gradient": gradient, "inputs": inputs}
        with onload_layer(self):
            weight = self._pretrained_weight()
            return select(weight, per_neuron, selection, seed, self.name, neurons, **data, kept=stay)

    def score_steps(
        self,
        adapter_name: str,
        selection: str | Criterion,
        seed: int,
        gradient: Tensor | None = None,
        inputs: Tensor | None = None,
    ) -> Tensor:
        """float64 [I - 1]: where K rises as a threshold falls through the scores (see `selection.score_steps`)."""
        neurons, data = self.neurons_of(adapter_name), {"gradient": gradient, "inputs": inputs}
        with onload_layer(self):
            return score_steps(self._pretrained_weight(), selection, seed, self.name, neurons, **data)

    def replace_indices(self, adapter_name: str, indices: Tensor) -> None:
        """Give zero deltas other inputs, int32 [N, K], ascending along each row."""
        self.resize(adapter_name, indices.shape, covers_all=adapter_name not in self.neuroada_neurons)
        self.neuroada_indices[adapter_name] = indices.to(self.neuroada_indices[adapter_name].device)
        self.awaiting.pop(adapter_name, None)

    def resize(self, adapter_name: str, shape: torch.Size, covers_all: bool) -> None:
        """Make room for zero deltas and indices [N, K] of another shape, which are about to come.

        The parameter stays the same object, so that an optimiser that has not stepped yet goes on to train it.
        """
        deltas, indices = self.neuroada_deltas[adapter_name], self.neuroada_indices[adapter_name]
        if deltas.shape != shape:
            deltas.grad = None
            deltas.data = torch.zeros(shape, dtype=deltas.dtype, device=deltas.device)
            self.neuroada_indices[adapter_name] = torch.zeros(shape, dtype=indices.dtype, device=indices.device)
        if covers_all:
            if adapter_name in self.neuroada_neurons:
                del self.neuroada_neurons[adapter_name]
        elif adapter_name not in self.neuroada_neurons or len(self.neuroada_neurons[adapter_name]) != shape[0]:
            self.neuroada_neurons[adapter_name] = torch.zeros(shape[0], dtype=torch.int32, device=indices.device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """As any module; indices that were chosen for an adapter that waits for its own end the waiting."""
        for name in list(self.awaiting):
            indices, deltas = (state_dict.get(f"{prefix}neuroada_{kind}.{name}") for kind in ("indices", "deltas"))
            if indices is None or deltas is None:
                continue
            present = self.neuroada_indices[name]
            as_before = indices.shape == present.shape and torch.equal(indices.to(present.device), present)
            if not as_before or deltas.any():
                self.resize(name, indices.shape, covers_all=f"{prefix}neuroada_neurons.{name}" not in state_dict)
                del self.awaiting[name]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def support(self, names: list[str]) -> Support:
        """The deltas of these adapters, at least one, together."""
        return combine([self._support(name) for name in names], self.in_features)

    def _support(self, name: str) -> Support:
        deltas = self.neuroada_deltas[name]
        return Support(self.neuroada_indices[name], deltas, self.neurons_of(name), (deltas,))

    def indices_read(self) -> Tensor | None:
        """[N, K] of the one active adapter, or None where there is none, or more than one."""
        names = [] if self.disable_adapters or self.merged else self.present(self.active_adapters)
        return self.neuroada_indices[names[0]] if len(names) == 1 else None

    def neurons_of(self, name: str) -> Tensor | None:
        """[N] of an adapter, or None where it covers all neurons."""
        return self.neuroada_neurons[name] if name in self.neuroada_neurons else None  # noqa: SIM401 (it has no get)

    def keep_outside_state_dict(self, name: str, indices: Tensor, neurons: Tensor | None) -> None:
        """Give an adapter these indices [N, K] and neurons [N], and leave both out of state dicts from now on."""
        kept: tuple[tuple[Any, Tensor | None], ...] = (self.neuroada_indices, indices), (self.neuroada_neurons, neurons)
        for container, tensor in kept:
            container.persistent = False
            if tensor is not None:
                container[name] = tensor

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The deltas of one adapter as a dense matrix in their own dtype, laid out as the base weight is stored."""
        support = self.support([adapter])
        deltas = support.deltas
        dense = deltas.new_zeros(self.out_features, self.in_features)
        rows = torch.arange(len(deltas), device=deltas.device) if support.neurons is None else support.neurons.long()
        dense = dense.index_put((rows[:, None].expand(deltas.shape), support.indices.long()), deltas)
        return dense.T if self.transposed else dense

    def _adapted_forward(self, x: Tensor, weight: FrozenWeight, bias: Tensor | None, names: list[str]) -> Tensor:
        support = self.support(names) if names else None
        self._require_chosen(names)
        return self.kind.apply(x, weight, support, bias, self.product, partial(self.input_group.keep, self))

    def _traced_forward(self, x: Tensor, names: list[str]) -> Tensor:
        weight, bias = self.stored_weight, self.bias
        rest = self.transposed, self._traced_mode(), self.product
        if not names:  # what is held in the weight must be lifted all the same, when the graph runs
            none = weight.new_empty(0, 1)
            return traced_linear(x, weight, bias, none.int(), none, none.int().flatten(), *rest)
        self._require_chosen(names)
        (name,) = names
        indices, deltas = self.neuroada_indices[name], self.neuroada_deltas[name]
        return traced_linear(x, weight, bias, indices, deltas, self.neurons_of(name), *rest)

    def _require_chosen(self, names: list[str]) -> None:
        """Refuse to train deltas whose places are not the ones that were asked for."""
        if not self.awaiting or not (self.training and torch.is_grad_enabled()):
            return
        for name in names:
            if self.neuroada_deltas[name].requires_grad:
                self.require_chosen(name, "Training")

    def require_chosen(self, name: str, asked: str) -> None:
        """Raise ConfigError while an adapter waits for the data or the function that chooses its inputs."""
        if name in self.awaiting:
            selection = self.awaiting[name]
            what = "function" if selection == OWN else "data"
            raise ConfigError(
                f"{asked} with selection={selection!r}",
                f"the inputs of {self.name} wait for the {what} to choose them by",
                "Call neuroada.reselect(model, batches, criterion) before",
            )

    @torch.compiler.assume_constant_result
    def _traced_mode(self) -> str:
        return self.resolved_mode()[0]

    def resolved_mode(self, names: list[str] | None = None) -> tuple[str, str]:
        """(mode, reason) that a forward pass with these adapters, or the active ones, uses now."""
        names = self.present(self.active_adapters) if names is None else names
        parameter = self.parameter
        return resolve_mode(
            self._requested_mode(names),
            quantized=parameter is None,
            writable=parameter is None or FrozenWeight(parameter).writable(),
            shared=self.shared,
            contended=parameter is not None and is_contended(parameter),
        )

    def frozen_weight(self, names: list[str]) -> FrozenWeight:
        """The base weight as the operation on these adapters takes it, with the mode that they ask for."""
        weight = self.parameter
        if weight is None:
            return self.kind.weight(self.base_layer, self.resolved_mode(names)[0])
        decides = self._requested_mode(names), self.shared, is_contended(weight), weight.stride()
        if self._resolved[0] != decides or weight.is_inference():
            self._resolved = decides, self.resolved_mode(names)[0]
        return self.kind.weight(self.base_layer, self._resolved[1])

    def _merged_entries(self, weight: Tensor, names: list[str]) -> tuple[dict[str, Tensor], Tensor]:
        support = self.support(names)
        _, originals, merged = entries(weight, support)
        record = {"indices": support.indices, "originals": originals, "merged": merged}
        return record if support.neurons is None else record | {"neurons": support.neurons}, merged

    def _where(self, weight: Tensor, record: Mapping[str, Tensor]) -> tuple[Tensor, Any]:
        neurons = record["neurons"] if "neurons" in record else None  # noqa: SIM401 (PEFT's has no get)
        return flat(weight), positions(weight, record["indices"], neurons)

    def _witness(self, weight: Tensor, record: Mapping[str, Tensor]) -> Tensor:
        alias, where = self._where(weight, record)
        return alias.take(where)

    def _requested_mode(self, names: list[str]) -> str:
        requested = {self.mode[name] for name in names} - {"auto"}
        return "transient" if "transient" in requested else next(iter(requested), "auto")

    def _replicate_for_data_parallel(self) -> NeuroAdaLinear:
        if self._is_held():
            raise WeightError(
                f"Replicating {self.name} with torch.nn.DataParallel",
                "its adapter is swapped in by neuroada.held(...), and the replicas would add it again",
                "Leave that context, or use DistributedDataParallel",
            )
        replica = super()._replicate_for_data_parallel()
        replica.input_group = InputGroup([replica])
        return replica
