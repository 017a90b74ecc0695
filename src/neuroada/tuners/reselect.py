"""Choosing inputs by data: gradients and input norms over calibration batches, a few layers at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from accelerate.utils import send_to_device
from peft import PeftModel
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from neuroada.errors import ConfigError, MergeError, WeightError, near
from neuroada.layers import NeuroAdaLinear
from neuroada.ops.sparse_delta import is_held
from neuroada.selection import CRITERIA, Criterion, ScoreFunction

MAX_MEMORY = 1 << 28
"""Bytes of gradients held at a time unless the caller says otherwise: a choice."""


def reselect(
    model: PeftModel,
    batches: Iterable[Mapping[str, Any]] = (),
    criterion: str | ScoreFunction = "gradient",
    *,
    adapter_name: str | None = None,
    max_memory: int = MAX_MEMORY,
    progress: bool = True,
) -> None:
    """Choose the inputs of a NeuroAda adapter anew, by calibration data; its deltas have to be zero still.

    "gradient" takes for each neuron the inputs of largest |Σ dL/dW| over the batches, exactly, as the published code
    does (Section 4, Question 2); only the gradients of a few layers are held at a time, and the batches are passed
    through the model once for each such group. The model is in evaluation mode meanwhile.

    Args:
        model: with the adapter active, unmerged and not held.
        batches: what the model takes, labels included where the criterion needs gradients.
        criterion: a name in `neuroada.selection.CRITERIA`, or a function of rows of a weight [rows, I] and their
            `Statistics` (gradient and inputs, if there are batches) that returns scores [rows, I].
        adapter_name: the active one if None.
        max_memory: bytes of float32 gradients that may be held at a time; a larger weight is a group of its own.
        progress: whether to show a bar.

    Raises:
        ConfigError: an unknown criterion, one that needs data without any, batches without a loss, no such adapter.
        MergeError: the adapter is merged, or held in the weights.
        WeightError: deltas are not zero; a layer gets no gradient from the batches; or scores are NaN. The adapter is
            as it was.
    """
    name = adapter_name or str(model.active_adapter)
    batches = list(batches)
    chosen = _criterion(criterion, bool(batches))
    if chosen.needs_data and not batches:
        raise ConfigError(f"Choosing inputs by {criterion!r}", "it needs data, and no batch is given", "Give batches")
    layers = _layers(model, name)
    config: Any = model.peft_config[name]
    indices: dict[NeuroAdaLinear, Tensor] = {}
    for each in _summed(model, name, layers, chosen.needs, batches, max_memory, progress):
        indices[each.layer] = each.layer.chosen_anew(
            name, chosen if callable(criterion) else criterion, config.seed, each.gradient, each.inputs
        )
    for layer, found in indices.items():
        layer.replace_indices(name, found)
    if isinstance(criterion, str):
        config.selection = criterion


def statistics(
    model: PeftModel,
    batches: Sequence[Mapping[str, Any]],
    criterion: str,
    *,
    max_memory: int = MAX_MEMORY,
    progress: bool = True,
) -> Iterator[tuple[NeuroAdaLinear, Tensor | None, Tensor | None]]:
    """(layer, Σ dL/dW float32 [O, I], input norms float32 [I]) for each layer of the active adapter, as far as a
    criterion needs them; found and refused as by `reselect`."""
    name = str(model.active_adapter)
    needs = _criterion(criterion, bool(batches)).needs
    for each in _summed(model, name, _layers(model, name), needs, batches, max_memory, progress):
        yield each.layer, each.gradient, each.inputs


def _summed(
    model: PeftModel,
    name: str,
    layers: Sequence[NeuroAdaLinear],
    needs: Set[str],
    batches: Sequence[Mapping[str, Any]],
    max_memory: int,
    progress: bool,
) -> Iterator[_Sums]:
    """What is needed of each layer, summed over the batches; those that were yielded before are given up."""
    needs = needs & {"gradient", "inputs"}
    groups = list(_groups(layers, max_memory)) if "gradient" in needs else [list(layers)]
    bars = Progress(console=Console(stderr=True), transient=True) if progress else nullcontext()
    with bars as bar:
        task = bar.add_task("Choosing inputs", total=len(groups) * max(1, len(batches))) if bar else None
        for group in groups:
            sums = [_Sums(layer, needs) for layer in group]
            for batch in batches if needs else ():
                _pass(model, name, layers, sums, batch)
                if bar is not None and task is not None:
                    bar.advance(task)
            for each in sums:
                each.require_gradient()
                yield each


def _criterion(criterion: str | ScoreFunction, with_data: bool) -> Criterion:
    if not isinstance(criterion, str):
        return Criterion(criterion, frozenset({"gradient", "inputs"} if with_data else ()))
    if criterion not in CRITERIA:
        raise ConfigError(f"criterion={criterion!r}", "not a known one", near(criterion, CRITERIA))
    return CRITERIA[criterion]


def _layers(model: PeftModel, name: str) -> list[NeuroAdaLinear]:
    layers = [layer for layer in model.modules() if isinstance(layer, NeuroAdaLinear) and layer.present([name])]
    asked = f"Choosing inputs of adapter {name!r} anew"
    if not layers:
        raise ConfigError(asked, "no layer has a NeuroAda adapter of that name", near(name, model.peft_config))
    for layer in layers:
        if layer.merged or (layer.quantization_backend is None and is_held(layer.stored_weight)):
            raise MergeError(asked, f"deltas are in the weight of {layer.name}", "Unmerge, or leave neuroada.held")
        if layer.disable_adapters or name not in layer.active_adapters:
            raise ConfigError(asked, f"it is not active on {layer.name}", f"Call model.set_adapter({name!r})")
        if layer.neuroada_deltas[name].any():
            found = f"deltas of {layer.name} are not zero"
            raise WeightError(asked, found, "Choose before training, or train a new adapter")
    return layers


def _groups(layers: Sequence[NeuroAdaLinear], max_memory: int) -> Iterator[list[NeuroAdaLinear]]:
    """Neighbours whose float32 gradients fit into `max_memory` together, at least one each."""
    group: list[NeuroAdaLinear] = []
    room = max_memory
    for layer in layers:
        size = 4 * layer.in_features * layer.out_features
        if group and size > room:
            yield group
            group, room = [], max_memory
        group.append(layer)
        room -= size
    yield group


class _Sums:
    """Statistics of one layer, summed over batches: gradient float32 [O, I], squares of inputs float32 [I]."""

    def __init__(self, layer: NeuroAdaLinear, needs: Iterable[str]):
        """Zero, on the layer's device."""
        device = layer.stored_weight.device
        self.layer, self.seen = layer, False
        self.gradient: Tensor | None = None
        self.squares: Tensor | None = None
        if "gradient" in needs:
            self.gradient = torch.zeros(layer.out_features, layer.in_features, device=device)
        if "inputs" in needs:
            self.squares = torch.zeros(layer.in_features, device=device)

    @property
    def inputs(self) -> Tensor | None:
        """Norms [I]."""
        return None if self.squares is None else self.squares.sqrt()

    def see(self, mask: Tensor | None, layer: NeuroAdaLinear, args: tuple[Tensor, ...], output: Tensor) -> None:
        """A forward hook. mask: [B, T], 0 on padding."""
        x = args[0].detach()
        if self.squares is not None:
            real = x[mask.bool()] if mask is not None and mask.shape == x.shape[:-1] else x.reshape(-1, x.shape[-1])
            self.squares += real.float().square().sum(dim=0)
        if self.gradient is not None and output.requires_grad:
            output.register_hook(partial(self.add, x.reshape(-1, x.shape[-1])))

    def add(self, x: Tensor, dy: Tensor) -> None:
        """A hook on the output's gradient."""
        assert self.gradient is not None
        self.gradient.addmm_(dy.reshape(-1, dy.shape[-1]).T.float(), x.float())
        self.seen = True

    def require_gradient(self) -> None:
        """Raise WeightError if a gradient is wanted and there is none."""
        if self.gradient is not None and not (self.seen and self.gradient.any()):
            raise WeightError(
                f"Choosing inputs of {self.layer.name} by gradients",
                "the batches give it none",
                "Give batches in which the layer takes part in the loss, or leave it out with exclude_modules",
            )


def _pass(
    model: PeftModel, name: str, layers: Sequence[NeuroAdaLinear], sums: Sequence[_Sums], batch: Mapping[str, Any]
) -> None:
    """One batch forward, and backward down to the first of the layers whose gradient is wanted."""
    batch = cast("Mapping[str, Any]", send_to_device(dict(batch), next(model.parameters()).device))
    wants_gradient = sums[0].gradient is not None
    mask = batch.get("attention_mask")
    wanted = [each.layer.neuroada_deltas[name] for each in sums]
    handles = [each.layer.register_forward_hook(partial(each.see, mask)) for each in sums]
    try:
        with _prepared(model, name, layers, wanted), torch.set_grad_enabled(wants_gradient):
            loss = getattr(model(**batch), "loss", None)
            if wants_gradient:
                if loss is None:
                    raise ConfigError("Choosing inputs by gradients", "a batch gives no loss", "Put labels into it")
                torch.autograd.grad(loss, wanted, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _prepared(
    model: PeftModel, name: str, layers: Sequence[NeuroAdaLinear], wanted: Sequence[Tensor]
) -> Iterator[None]:
    """Evaluation mode, and gradients for the wanted deltas alone; all as it was at the end."""
    modes = [(module, module.training) for module in model.modules()]
    deltas = [layer.neuroada_deltas[name] for layer in layers]
    required = [(parameter, parameter.requires_grad) for parameter in deltas]
    model.eval()
    ids = {id(parameter) for parameter in wanted}
    try:
        for parameter in deltas:
            parameter.requires_grad_(id(parameter) in ids)
        yield
    finally:
        for parameter, requires in required:
            parameter.requires_grad_(requires)
        for module, training in modes:
            module.training = training
