"""Training in several processes: every one of them must have the same support, and it must not be sent about.

DistributedDataParallel sends all buffers from one process to the others before each forward pass; of indices, which
never change, that would be N·K integers a layer each time. So it is told to leave them alone, and the processes
compare their choices once instead.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers.integrations import is_fsdp_enabled

from neuroada.errors import WeightError
from neuroada.layers import NeuroAdaLinear

LEAVE_ALONE = "_ddp_params_and_buffers_to_ignore"
"""Attribute in which DistributedDataParallel looks for names of tensors that are none of its business."""

_COMPARED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def index_names(model: nn.Module) -> list[str]:
    """Names of the indices and neurons in a model, and what the model itself wants to have left alone."""
    own = [name for name, _ in model.named_buffers() if ".neuroada_" in f".{name}"]
    return [*cast("Iterable[str]", getattr(model, LEAVE_ALONE, ())), *own]


def compare_once(model: nn.Module) -> None:
    """Inside a forward pass of DistributedDataParallel, the first with it: see that all processes chose alike.

    Raises:
        WeightError: they did not; in every process.
    """
    if torch.compiler.is_compiling():
        return
    replicas: Any = getattr(DistributedDataParallel, "_active_ddp_module", None)
    if replicas is None or replicas in _COMPARED:
        return
    layers = [module for module in model.modules() if isinstance(module, NeuroAdaLinear)]
    named = [(layer, name) for layer in layers for name in layer.neuroada_indices]
    if not named:
        _COMPARED.add(replicas)
        return
    digests = [_digest(layer, name) for layer, name in named]
    digests = torch.stack([digest.to(digests[0].device) for digest in digests])
    bounds = torch.stack([digests, -digests])
    dist.all_reduce(bounds, dist.ReduceOp.MAX, replicas.process_group)
    different = (bounds[0] != -bounds[1]).nonzero().flatten().tolist()
    if different:
        example = named[different[0]][0].name
        raise WeightError(
            "Training in several processes",
            f"they chose other inputs for {len(different)} of {len(named)} weights, such as {example}",
            "Make the base model the same everywhere before adapting it: set the same seed before layers are "
            "initialised anew, and choose by the same data",
        )
    _COMPARED.add(replicas)


def _digest(layer: NeuroAdaLinear, name: str) -> Tensor:
    """int64 []: sums of the places and of the entries, each with a weight of its own; on the layer's device."""
    parts = [layer.neuroada_indices[name].flatten()]
    if name in layer.neuroada_neurons:
        parts.append(layer.neuroada_neurons[name])
    entries = torch.cat(parts).long() + 1
    return (entries * torch.arange(1, len(entries) + 1, device=entries.device)).sum()


def has_weights() -> bool:
    """Whether this process has the base weights: under FSDP with `cpu_ram_efficient_loading` the first alone need have
    loaded them, and the models of the others may hold anything."""
    return not is_fsdp_enabled() or dist.get_node_local_rank(0) == 0


def is_sharded() -> bool:
    """Whether this is one of several processes under FSDP, by the variable that Accelerate and its launcher set."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP") and PartialState().num_processes > 1


def share_indices(layers: Iterable[NeuroAdaLinear], adapter_name: str) -> None:
    """Where the first process alone need have the base weights, give the others the support that it chose.

    Accelerate sends its parameters to them later, but stops at buffers in a state dict. So indices and neurons are sent
    here, and stay outside it.
    """
    if not is_fsdp_enabled():
        return
    layers = [layer for layer in layers if adapter_name in layer.neuroada_indices]
    sent = [(layer.neuroada_indices[adapter_name], layer.neurons_of(adapter_name)) for layer in layers]
    dist.broadcast_object_list(sent, src=0)
    for layer, (indices, neurons) in zip(layers, sent, strict=True):
        layer.resize(adapter_name, indices.shape, covers_all=neurons is None)
        layer.keep_outside_state_dict(adapter_name, indices, neurons)
