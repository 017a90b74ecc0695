"""Choosing inputs by data: gradients and input norms over calibration batches, a few layers at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
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
    layers = active_layers(model, name, f"Choosing inputs of adapter {name!r} anew")
    _require_untrained(layers, name)
    config: Any = model.peft_config[name]
    found = choose(model, name, layers, list(batches), criterion, config.seed, max_memory=max_memory, progress=progress)
    for layer, indices in found.items():
        layer.replace_indices(name, indices)
    if isinstance(criterion, str):
        config.selection = criterion


def choose(
    model: PeftModel,
    name: str,
    layers: Sequence[NeuroAdaLinear],
    batches: Sequence[Mapping[str, Any]],
    criterion: str | ScoreFunction,
    seed: int,
    *,
    kept: Mapping[NeuroAdaLinear, Tensor] | None = None,
    together: bool = False,
    max_memory: int = MAX_MEMORY,
    progress: bool = False,
) -> dict[NeuroAdaLinear, Tensor]:
    """The inputs, int32 [N, K], that a criterion chooses for these layers; nothing is changed.

    kept: of each layer, bool [N, K]: the present inputs that stay in any case. together: statistics are summed over
    the processes of a training, each of which gives its own batches.
    """
    with_data = bool(batches)
    if together:
        everywhere: list[bool] = [with_data] * dist.get_world_size()
        dist.all_gather_object(everywhere, with_data)
        with_data = all(everywhere)
    chosen = known_criterion(criterion, with_data)
    if chosen.needs_data and not with_data:
        raise ConfigError(f"Choosing inputs by {criterion!r}", "it needs data, and no batch is given", "Give batches")
    needs = chosen.needs & {"gradient", "inputs"}
    groups = list(_groups(layers, max_memory)) if "gradient" in needs else [list(layers)]
    indices: dict[NeuroAdaLinear, Tensor] = {}
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
                if together:
                    each.sum_over_processes()
                each.require_gradient()
                indices[each.layer] = each.layer.chosen_anew(
                    name,
                    chosen if callable(criterion) else criterion,
                    seed,
                    each.gradient,
                    each.inputs,
                    None if kept is None else kept[each.layer],
                )
    return indices


def known_criterion(criterion: str | ScoreFunction, with_data: bool) -> Criterion:
    """That of a name, or ConfigError; a function is given gradients and inputs where there is data."""
    if not isinstance(criterion, str):
        return Criterion(criterion, frozenset({"gradient", "inputs"} if with_data else ()))
    if criterion not in CRITERIA:
        raise ConfigError(f"criterion={criterion!r}", "not a known one", near(criterion, CRITERIA))
    return CRITERIA[criterion]


def active_layers(model: PeftModel, name: str, asked: str) -> list[NeuroAdaLinear]:
    """Those with an adapter, which is active and unmerged on all of them, or an error about what was `asked`."""
    layers = [layer for layer in model.modules() if isinstance(layer, NeuroAdaLinear) and layer.present([name])]
    if not layers:
        raise ConfigError(asked, "no layer has a NeuroAda adapter of that name", near(name, model.peft_config))
    for layer in layers:
        if layer.merged:
            raise MergeError(asked, f"deltas are merged into the weight of {layer.name}", "Unmerge first")
        if layer.disable_adapters or name not in layer.active_adapters:
            raise ConfigError(asked, f"it is not active on {layer.name}", f"Call model.set_adapter({name!r})")
    return layers


def _require_untrained(layers: Sequence[NeuroAdaLinear], name: str) -> None:
    asked = f"Choosing inputs of adapter {name!r} anew"
    for layer in layers:
        if layer.quantization_backend is None and is_held(layer.stored_weight):
            raise MergeError(asked, f"deltas are in the weight of {layer.name}", "Leave neuroada.held")
        if layer.neuroada_deltas[name].any():
            found = f"deltas of {layer.name} are not zero"
            raise WeightError(asked, found, "Choose before training, train a new adapter, or call neuroada.regrow")


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
        self.layer = layer
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

    def sum_over_processes(self) -> None:
        """Those of all processes of a training."""
        for tensor in (self.gradient, self.squares):
            if tensor is not None:
                dist.all_reduce(tensor)

    def require_gradient(self) -> None:
        """Raise WeightError if a gradient is wanted and there is none."""
        if self.gradient is not None and not self.gradient.any():
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
