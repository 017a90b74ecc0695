"""Drop and grow during training: the smallest deltas of a neuron give way to inputs of better score (RigL, arXiv
1911.11134)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor
from torch.optim import Optimizer

from neuroada.errors import ConfigError
from neuroada.layers import NeuroAdaLinear
from neuroada.layers.held import follow
from neuroada.selection import Criterion, ScoreFunction, kept_entries, moved, places_before
from neuroada.tuners.reselect import active_layers, adapter_of, choose
from neuroada.tuners.statistics import MAX_MEMORY, as_batches

DROP_FRACTION = 0.3
"""RigL's own default."""

Write = tuple[Tensor, Tensor]
"""A tensor, and what is to stand in it."""


def regrow(
    model: PeftModel,
    optimizer: Optimizer,
    batches: Iterable[Mapping[str, Any]] = (),
    criterion: str | Criterion | ScoreFunction = "gradient",
    *,
    drop_fraction: float = DROP_FRACTION,
    adapter_name: str | None = None,
    seed: int | None = None,
    max_memory: int = MAX_MEMORY,
    progress: bool = False,
) -> int:
    """Drop the smallest deltas of a NeuroAda adapter and grow as many inputs of the same neurons; between two steps.

    Which deltas are dropped, `neuroada.selection.kept_entries` says: a share of each neuron's, and with few of them a
    share of the layer's. The best scores among all inputs of a neuron that are not kept grow; a dropped one may be
    among them, and then stays as it was. Gradients and inputs are those of the adapted model, magnitudes those of the
    pretrained weight. Deltas, their `.grad` and the optimiser's state go along with what stays, and are zero for what
    is new. It may be called inside `neuroada.held`, which follows; outside, base weights hold their pretrained values.

    In several processes (DistributedDataParallel) all of them call it, each with its own batches: statistics are summed
    over them, and what the first one chooses holds for all.

    Args:
        model: with the adapter active and unmerged.
        optimizer: which trains the adapter's deltas. What it keeps of a parameter is of the parameter's shape, or one
            number.
        batches: what the model takes, labels included where the criterion needs gradients.
        criterion: as in `reselect`.
        drop_fraction: in (0, 1].
        adapter_name: the active one if None.
        seed: of random selection, another one each time; the configuration's if None.
        max_memory: as in `reselect`.
        progress: whether to show a bar.

    Returns:
        How many inputs are new, over all layers.

    Raises:
        ConfigError: as `reselect`; or a delta is sharded or not in the optimiser, or the optimiser keeps what cannot be
            carried over.
        MergeError: the adapter is merged.
        WeightError: a layer gets no gradient from the batches, or scores are NaN. All is as it was.
    """
    name = adapter_of(model, adapter_name, "Regrowing inputs")
    batches = as_batches(batches, "Regrowing inputs")
    require_fraction("drop_fraction", drop_fraction)
    layers = trained_layers(model, name, optimizer)
    kept = {layer: kept_entries(layer.neuroada_deltas[name], drop_fraction) for layer in layers}
    together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    config: Any = model.peft_config[name]
    found = choose(
        model,
        name,
        layers,
        batches,
        criterion,
        config.seed if seed is None else seed,
        kept=kept,
        together=together,
        max_memory=max_memory,
        progress=progress,
    )
    changed, writes = 0, []
    for layer, indices in found.items():
        if together:
            dist.broadcast(indices, src=0)
        places = places_before(layer.neuroada_indices[name], indices)
        changed += int((~places[1]).sum())
        tensors = _carried(layer.neuroada_deltas[name], optimizer)
        writes += [(layer.neuroada_indices[name], indices), *((each, moved(each, *places)) for each in tensors)]
    _write(writes, [layer.neuroada_deltas[name] for layer in layers])
    return changed


@torch.no_grad()
def _write(writes: Sequence[Write], deltas: Sequence[Tensor]) -> None:
    """All of it, whatever comes in between: half of it would put deltas to other inputs than they were trained for."""
    try:
        _copy(writes)
    except BaseException:  # finish first
        _copy(writes)
        raise
    finally:
        follow(deltas)


def _copy(writes: Sequence[Write]) -> None:
    for tensor, values in writes:
        tensor.copy_(values)


def trained_layers(model: PeftModel, name: str, optimizer: Optimizer) -> list[NeuroAdaLinear]:
    """Layers of an adapter whose deltas are trained, all of which can be moved; or the errors of `regrow`."""
    asked = f"Regrowing inputs of adapter {name!r}"
    if not hasattr(optimizer, "param_groups"):
        raise ConfigError(asked, f"{optimizer!r} is no optimiser", "Give the one that trains the deltas")
    layers = [layer for layer in active_layers(model, name, asked) if layer.neuroada_deltas[name].requires_grad]
    if not layers:
        raise ConfigError(asked, "none of its deltas is trained", f"Call model.set_adapter({name!r})")
    if isinstance(getattr(optimizer, "optimizer", optimizer), torch.optim.Adafactor):
        do = "Use an optimiser that keeps one value a delta, such as torch.optim.AdamW or SGD"
        raise ConfigError(asked, "Adafactor keeps sums of several deltas, which cannot be carried over", do)
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for layer in layers:
        deltas = layer.neuroada_deltas[name]
        if deltas.shape != layer.neuroada_indices[name].shape or hasattr(deltas, "device_mesh"):
            found = f"the deltas of {layer.name} are sharded over processes, so that none has a whole neuron's"
            raise ConfigError(asked, found, "Train with DistributedDataParallel, or without regrowing")
        if id(deltas) not in stepped:
            found = f"{_name(optimizer)} does not train the deltas of {layer.name}"
            do = "Give the optimiser that has model.parameters() themselves, not copies of them"
            raise ConfigError(asked, found, do)
        _carried(deltas, optimizer)
    return layers


def _carried(deltas: Tensor, optimizer: Optimizer) -> list[Tensor]:
    """What goes along with deltas [N, K]: themselves, their gradient, and the optimiser's state, each [N, K]."""
    found = [deltas] if deltas.grad is None else [deltas, deltas.grad]
    for key, value in optimizer.state.get(deltas, {}).items():
        if type(value) is Tensor and value.shape == deltas.shape:
            found.append(value)
        elif not _is_number(value):
            kind = f"a {type(value).__name__}" + (f" of {list(value.shape)}" if isinstance(value, Tensor) else "")
            raise ConfigError(
                f"Regrowing inputs with the state of {_name(optimizer)}",
                f"its {key!r} for deltas of shape {list(deltas.shape)} is {kind}, which cannot be carried over",
                "Use an optimiser that keeps one value a delta, such as torch.optim.AdamW or SGD",
            )
    return found


def _name(optimizer: Any) -> str:
    return type(getattr(optimizer, "optimizer", optimizer)).__name__  # Accelerate wraps it


def _is_number(value: Any) -> bool:
    return value.numel() == 1 if isinstance(value, Tensor) else value is None or isinstance(value, int | float | str)


def require_fraction(name: str, value: float) -> None:
    """Raise ConfigError unless it is in (0, 1]."""
    if not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigError(f"{name}={value!r}", "it is not a share of something", "Give a number above 0, at most 1")
