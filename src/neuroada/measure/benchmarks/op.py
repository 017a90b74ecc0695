"""Layer by layer: time against the frozen layer, dense products and saved bytes counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from neuroada.errors import ConfigError
from neuroada.measure.bars import counting
from neuroada.measure.benchmarks.methods import (
    FROZEN,
    METHODS,
    Trainee,
    choose_methods,
    require_fitting,
    with_settings,
    wrap_copy,
)
from neuroada.measure.benchmarks.product import time_products
from neuroada.measure.benchmarks.step import DTYPES
from neuroada.measure.clock import free, seconds
from neuroada.measure.machine import find_device, provenance
from neuroada.measure.record import Measurement, Record, Shape
from neuroada.measure.rounds import Rounds, Row, Timed
from neuroada.measure.shapes import adapted_names, build_model, find_shape, make_batch


@dataclass(frozen=True)
class OpPlan:
    """What to measure; fields as in `StepPlan`. parts: "layer" (methods on a layer), "product" (ours by itself)."""

    shape: str
    batch: int = 2
    sequence: int | None = None
    dtype: str = "bfloat16"
    methods: tuple[str, ...] = ("neuroada", "lora")
    per_neuron: tuple[int, ...] = (1, 20)
    parts: tuple[str, ...] = ("layer", "product")
    rounds: int = 10
    warmup: int = 2
    device: str = "cpu"
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, values, known in (("dtype", (self.dtype,), DTYPES), ("part", self.parts, ("layer", "product"))):
            for value in values:
                if value not in known:
                    raise ConfigError(f"--{name} {value}", "not a known one", f"Known: {', '.join(known)}")
        for name, value, least in (("rounds", self.rounds, 1), ("warmup", self.warmup, 0)):
            if value < least:
                raise ConfigError(f"--{name} {value}", f"fewer than {least}", f"Give at least {least}")

    @property
    def tokens(self) -> int:
        """Length of a sequence."""
        return find_shape(self.shape).sequence if self.sequence is None else self.sequence

    @property
    def turns(self) -> Rounds:
        """How calls are timed."""
        return Rounds(self.rounds, self.warmup, self.seed)


@dataclass(frozen=True)
class LayerKind:
    """Linear layers of one size in a model: the name of the first, and how many there are."""

    name: str
    out_features: int
    in_features: int
    bias: bool
    count: int


class _Layer(nn.Module):
    """One frozen linear layer in a list, as models have their blocks."""

    def __init__(self, kind: LayerKind, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        linear = nn.Linear(kind.in_features, kind.out_features, kind.bias, dtype=dtype, device=device)
        nn.init.normal_(linear.weight, std=0.02)
        self.layers = nn.ModuleList([linear])
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, I] → [B, O]."""
        return self.layers[0](x)


class LayerCall:
    """Forward and backward of a wrapped layer on x [B, I] and dy [B, O]."""

    def __init__(self, trainee: Trainee, x: Tensor, dy: Tensor) -> None:
        """x is given a gradient, as every layer but the first has to."""
        self.model, self.around, self.parameters = trainee.model, trainee.around, trainee.parameters
        self.x, self.dy = x.detach().requires_grad_(), dy

    def run(self) -> None:
        """Once, without gradients left from before."""
        for tensor in (self.x, *self.parameters):
            tensor.grad = None
        self.model(self.x).backward(self.dy)

    def seconds(self, device: torch.device) -> float:
        """With the supports already swapped in where the method keeps them so."""
        with self.around():
            return seconds(self.run, device)

    def counted(self) -> dict[str, Measurement]:
        """FLOPs in units of one dense product, and bytes saved for backward, each storage once, parameters left out."""
        own = {t.untyped_storage().data_ptr() for t in (*self.model.parameters(), *self.model.buffers())}
        saved: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            parts = (tensor._indices(), tensor._values()) if tensor.layout == torch.sparse_coo else (tensor,)
            for part in parts:
                storage = part.untyped_storage()
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with self.around(), FlopCounterMode(display=False) as flops:
            with saved_tensors_hooks(pack, lambda tensor: tensor):
                output = self.model(self.x)
            output.backward(self.dy)
        unit = 2 * self.dy.numel() * self.x.shape[-1]
        of_x = saved.pop(self.x.untyped_storage().data_ptr(), 0)
        beyond = sum(size for place, size in saved.items() if place not in own)
        return {
            "dense_products": Measurement.count(flops.get_total_flops() / unit, "dense products"),
            "saved_x": Measurement.count(of_x, "bytes"),
            "saved_beyond_x": Measurement.count(beyond, "bytes"),
        }


def layer_kinds(shape: str) -> list[LayerKind]:
    """The distinct sizes of a model's adapted layers."""
    model = build_model(find_shape(shape), torch.float32, torch.device("meta"))
    first: dict[tuple[int, int, bool], str] = {}
    counts: Counter[tuple[int, int, bool]] = Counter()
    for name in adapted_names(model):
        linear = cast(nn.Linear, model.get_submodule(name))
        size = (linear.out_features, linear.in_features, linear.bias is not None)
        first.setdefault(size, name.rsplit(".", 1)[-1])
        counts[size] += 1
    return [LayerKind(first[size], *size, count) for size, count in counts.items()]


def run_op(plan: OpPlan, console: Console | None = None) -> list[Record]:
    """Measure as planned: a record for each layer size and method; a method that fails is a record too.

    Raises:
        ConfigError: an unknown shape, method or device, k above the inputs of a layer, or a batch without tokens.
    """
    shape, device = find_shape(plan.shape), find_device(plan.device)
    methods = choose_methods(plan.methods, plan.per_neuron)
    make_batch(shape, plan.batch, plan.tokens, torch.float32, torch.device("meta"))
    asked = [*methods, *with_settings(METHODS["neuroada"], plan.per_neuron)]
    require_fitting(asked, build_model(shape, torch.float32, torch.device("meta"), 1))
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    shared, kinds, records = provenance(device, plan.seed), layer_kinds(plan.shape), []
    with counting(console, "Layers", len(kinds) * len(plan.parts)) as advance:
        for kind in kinds:
            for part in plan.parts:
                advance(f"{kind.name} [{kind.out_features}, {kind.in_features}], {part}", 0)
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(plan.seed)
                    rows = _layer_rows(plan, kind, device) if part == "layer" else _product_rows(plan, kind, device)
                records += [_record(plan, kind, row, shared) for row in rows]
                advance("", 1)
    return records


def _tensors(plan: OpPlan, kind: LayerKind, device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    dtype, tokens = getattr(torch, plan.dtype), plan.batch * plan.tokens
    x, dy = (torch.randn(tokens, width).to(device, dtype) for width in (kind.in_features, kind.out_features))
    return _Layer(kind, dtype, device), x, dy


def _layer_rows(plan: OpPlan, kind: LayerKind, device: torch.device) -> list[Row]:
    base, x, dy = _tensors(plan, kind, device)
    rows, calls = [], []
    for method in choose_methods(plan.methods, plan.per_neuron):
        row = Row(method.name, method.settings)
        rows.append(row)
        call = row.attempt(lambda method=method: LayerCall(wrap_copy(method, base), x, dy))
        counted = call and row.attempt(call.counted)
        if counted is not None:
            row.measurements.update(counted)
            calls.append(Timed(row, partial(call.seconds, device)))
    plan.turns.time(calls, lambda *_: None, lambda: free(device))
    plan.turns.note(rows, "time", {FROZEN: rows[0]})
    return rows


def _product_rows(plan: OpPlan, kind: LayerKind, device: torch.device) -> list[Row]:
    base, x, dy = _tensors(plan, kind, device)
    weight = cast(nn.Linear, base.get_submodule("layers.0")).weight
    return time_products(weight, x, dy, plan.per_neuron, plan.turns)


def _record(plan: OpPlan, kind: LayerKind, row: Row, shared: dict[str, Any]) -> Record:
    sizes = {"out_features": kind.out_features, "in_features": kind.in_features, "count": kind.count}
    return Record(
        **shared,
        kind="op",
        method=row.name,
        settings=row.settings,
        notes={"layer": kind.name, "warmup": str(plan.warmup), **row.notes},
        shape=Shape(name=plan.shape, sizes=sizes),
        batch=plan.batch,
        sequence=plan.tokens,
        dtype=plan.dtype,
        status=row.status,
        reason=row.reason,
        measurements=row.measurements,
    )
