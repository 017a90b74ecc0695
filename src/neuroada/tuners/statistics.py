"""Statistics of layers over calibration batches: gradients of their weights, and norms of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate.utils import send_to_device
from peft import PeftModel
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from neuroada.errors import ConfigError, WeightError
from neuroada.layers import NeuroAdaLinear

MAX_MEMORY = 1 << 28
"""Bytes of gradients held at a time unless the caller says otherwise: a choice."""

IGNORED = -100
"""The label of what is not in the loss, as Transformers has it."""

Batches = Sequence[Mapping[str, Any]]

Summed = Callable[[Sequence[NeuroAdaLinear]], "list[Sums]"]


def as_batches(batches: Any, asked: str) -> Batches:
    """What can be gone through more than once, or ConfigError."""
    do = "Give dicts that the model takes, labels included, in a list or a DataLoader, or [] where none is needed"
    if isinstance(batches, Mapping | Tensor | str) or not isinstance(batches, Iterable):
        raise ConfigError(asked, f"batches are a {type(batches).__name__}, not several dicts", do)
    found = list(batches)
    for batch in found:
        if not isinstance(batch, Mapping):
            raise ConfigError(asked, f"a batch is a {type(batch).__name__}, not a dict", do)
    return found


@contextmanager
def gathering(
    model: PeftModel,
    name: str,
    layers: Sequence[NeuroAdaLinear],
    needs: Set[str],
    batches: Batches,
    *,
    together: bool = False,
    twice: bool = False,
    max_memory: int = MAX_MEMORY,
    progress: bool = False,
) -> Iterator[tuple[list[list[NeuroAdaLinear]], Summed]]:
    """Groups of layers whose gradients fit into `max_memory`, and what sums the statistics of one over the batches.

    layers: all that have the adapter `name`. needs: of "gradient" and "inputs". together: over the batches of all
    processes. twice: whether each of several groups will be summed twice, which the bar must know.
    """
    if not isinstance(max_memory, int) or max_memory < 1:
        raise ConfigError(f"max_memory={max_memory!r}", "no gradient fits into it", f"Give bytes, such as {MAX_MEMORY}")
    needs = needs & {"gradient", "inputs"}
    groups = list(_groups(layers, max_memory)) if "gradient" in needs else [list(layers)]
    passes = len(groups) * max(1, len(batches)) * (2 if twice and len(groups) > 1 else 1)
    bars = Progress(console=Console(stderr=True), transient=True) if progress else nullcontext()
    with bars as bar:
        task = bar.add_task("Choosing inputs", total=passes) if bar else None

        def summed(group: Sequence[NeuroAdaLinear]) -> list[Sums]:
            sums = [Sums(layer, needs) for layer in group]
            for batch in batches if needs else ():
                _add_batch(model, name, layers, sums, batch)
                if bar is not None and task is not None:
                    bar.advance(task)
            for each in sums:
                if together:
                    each.sum_over_processes()
                each.require_found()
            return sums

        yield groups, summed


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


class Padding:
    """Which tokens of a batch are real, for each layer: a decoder beside an encoder has tokens of its own."""

    def __init__(self, model: PeftModel, batch: Mapping[str, Any]):
        """By the batch's masks [B, T], 0 on padding; a decoder's is made of the labels if there is none."""
        self.source = self.target = batch.get("attention_mask")
        self.encoder: nn.Module | None = None
        self.reading: frozenset[nn.Module] = frozenset()
        self.encoded = 0
        base: Any = model.base_model.model
        if getattr(getattr(base, "config", None), "is_encoder_decoder", False):
            labels = batch.get("labels")
            self.target = batch.get("decoder_attention_mask", None if labels is None else labels != IGNORED)
            self.encoder = base.get_encoder()
            self.reading = frozenset(self.encoder.modules())

    def note(self, encoder: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A forward hook of the encoder: where its output is, which the decoder's cross-attention reads."""
        self.encoded = output[0].data_ptr()

    def mask(self, layer: nn.Module, x: Tensor) -> Tensor | None:
        """Of a layer's input [B, T, I] or [B·T, I], shaped like it without I; None where all of it counts."""
        reads_source = layer in self.reading or x.data_ptr() == self.encoded
        mask = self.source if reads_source else self.target
        if mask is not None and x.dim() == 2:
            mask = mask.flatten()
        return mask if mask is not None and mask.shape == x.shape[:-1] else None


class Sums:
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

    def see(self, padding: Padding, layer: NeuroAdaLinear, args: tuple[Tensor, ...], output: Tensor) -> None:
        """A forward hook."""
        x = args[0].detach()
        rows = x.reshape(-1, x.shape[-1])
        if self.squares is not None:
            mask = padding.mask(layer, x)
            real = rows if mask is None else x[mask.bool()]
            self.squares += real.float().square().sum(dim=0)
        if self.gradient is not None and output.requires_grad:
            output.register_hook(partial(self.add, rows, rows._version))

    def add(self, x: Tensor, version: int, dy: Tensor) -> None:
        """A hook on the output's gradient."""
        assert self.gradient is not None
        if x._version != version:
            raise WeightError(
                f"Choosing inputs of {self.layer.name} by gradients",
                "the model wrote to the layer's input after the layer had used it",
                "Choose by the weights alone, or leave the layer out with exclude_modules",
            )
        self.gradient.addmm_(dy.reshape(-1, dy.shape[-1]).T.float(), x.float())

    def sum_over_processes(self) -> None:
        """Those of all processes of a training."""
        for tensor in (self.gradient, self.squares):
            if tensor is not None:
                dist.all_reduce(tensor)

    def require_found(self) -> None:
        """Raise WeightError if a statistic is wanted and there is nothing in it."""
        if self.squares is not None and not self.squares.any():
            raise WeightError(
                f"Choosing inputs of {self.layer.name} by their norms",
                "no token of the batches reaches it",
                "Give batches in which the layer takes part, or leave it out with exclude_modules",
            )
        if self.gradient is not None and not self.gradient.any():
            raise WeightError(
                f"Choosing inputs of {self.layer.name} by gradients",
                "the batches give it none",
                "Give batches in which the layer takes part in the loss, or leave it out with exclude_modules",
            )


def _add_batch(
    model: PeftModel, name: str, layers: Sequence[NeuroAdaLinear], sums: Sequence[Sums], batch: Mapping[str, Any]
) -> None:
    """One batch forward, and backward down to the first of the layers whose gradient is wanted."""
    batch = cast("Mapping[str, Any]", send_to_device(dict(batch), next(model.parameters()).device))
    wants_gradient = sums[0].gradient is not None
    padding = Padding(model, batch)
    wanted = [each.layer.neuroada_deltas[name] for each in sums]
    handles = [each.layer.register_forward_hook(partial(each.see, padding)) for each in sums]
    if padding.encoder is not None:
        handles.append(padding.encoder.register_forward_hook(padding.note))
    try:
        with _prepared(model, name, layers, wanted), torch.set_grad_enabled(wants_gradient):
            outputs = model(**batch)
            if wants_gradient:
                loss = _loss_in(outputs)
                if loss.requires_grad:
                    torch.autograd.grad(loss, wanted, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()


def _loss_in(outputs: Any) -> Tensor:
    """Where Trainer looks for it: by name, and first in a tuple."""
    found = outputs[0] if isinstance(outputs, tuple) and outputs else outputs
    loss = found.get("loss") if isinstance(found, Mapping) else getattr(found, "loss", found)
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss
    raise ConfigError(
        "Choosing inputs by gradients",
        f"a batch gives no loss in the model's {type(outputs).__name__}",
        "Put labels into it, and let the model return its loss by that name, or first",
    )


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
