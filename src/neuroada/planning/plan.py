"""What fine-tuning a model would train, write and need, without its weights."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from peft import get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from transformers import PretrainedConfig, PreTrainedModel

from neuroada.baselines import wrap_mask
from neuroada.errors import ConfigError, near
from neuroada.layers import NeuroAdaLinear
from neuroada.ops.processor import as_on_a_gpu
from neuroada.planning.attention import CudaAttention, unpacked
from neuroada.planning.devices import Device
from neuroada.planning.simulate import Memory, Tracker, extrapolated, materialise, train_step
from neuroada.planning.skeleton import Skeleton, block_numbers
from neuroada.recipe.methods import ADAPTERS, build_config

LABELS = {"neuroada": "NeuroAda", "lora": "LoRA", "mask": "mask-based", "full": "full"}
"""The methods that are planned, by name."""

DTYPES = ("bfloat16", "float16", "float32")
FEWEST_BLOCKS = 3
"""Simulated in place of more equal ones, together with one more: first, last and one between."""


@dataclass(frozen=True)
class Request:
    """What to plan for.

    k: deltas a neuron, and entries that the mask lets through. rank: of LoRA. checkpointing: what the peak counts.
    k_pattern: k of some modules by the end of their names, as in NeuroAdaConfig.
    """

    config: PretrainedConfig
    device: Device
    dtype: str = "bfloat16"
    k: int = 1
    rank: int = 8
    batch: int = 1
    sequence: int = 1024
    checkpointing: bool = False
    k_pattern: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        least = {"--k": self.k, "--rank": self.rank, "--batch": self.batch, "--seq": self.sequence}
        for name, value in least.items():
            if value < 1:
                raise ConfigError(f"{name} {value}", "less than 1", "Give a whole number of at least 1")
        if self.dtype not in DTYPES:
            raise ConfigError(f"--dtype {self.dtype}", "not a known one", near(self.dtype, DTYPES))

    @cached_property
    def skeleton(self) -> Skeleton:
        """The model to train."""
        skeleton = Skeleton.of(self.config, getattr(torch, self.dtype))
        skeleton.require_length(self.sequence)
        return skeleton

    @property
    def unit(self) -> str:
        """What a batch has several of."""
        size = self.skeleton.image_size
        return f"{self.sequence:,} tokens" if size is None else f"{size[0]} × {size[1]} pixels"

    @cached_property
    def uniform(self) -> bool:
        """Whether all blocks are alike, with their deltas, so that some of them tell what all need."""
        if not self.k_pattern or not self.skeleton.uniform:
            return self.skeleton.uniform
        model = _applied(self, "neuroada", self.skeleton.build())
        numbers = block_numbers(model, self.skeleton.blocks)
        shapes = defaultdict(list)
        for name, parameter in model.named_parameters():
            if name in numbers:
                shapes[numbers[name]].append(parameter.shape)
        return all(each == shapes[0] for each in shapes.values())


@dataclass(frozen=True)
class MethodPlan:
    """One method's numbers; memory in bytes.

    trainable: values that training changes. total: values of the base model. file: what is written at the end, the
    adapter or all weights that training writes to. parts: each part when it is largest, as asked but for `activations`
    (without checkpointing) and `activations_checkpointed`. peak: the largest sum, reached in the phase `peak_phase`,
    runtime not included. largest_batch: the largest that fits the device beside the runtime, 0 if none does.
    """

    method: str
    trainable: int
    total: int
    file: int
    parts: dict[str, int]
    peak: int
    peak_phase: str
    largest_batch: int


def plan(
    request: Request, methods: Iterable[str] = tuple(LABELS), say: Callable[[str], None] = lambda _: None
) -> list[MethodPlan]:
    """Plan each of these methods; `say` is told what is going on.

    Raises:
        ConfigError: an unknown method, a model of another kind, or more tokens than it has positions.
    """
    methods = list(methods)
    for method in methods:
        require_known(method)
    return [_plan_one(request, method, say) for method in methods]


def require_known(method: str) -> None:
    """Raise ConfigError unless plans cover the method; the message lists those that they do."""
    if method not in LABELS:
        raise ConfigError(f"--method {method}", "not a method that plans cover", near(method, LABELS))


def _plan_one(request: Request, method: str, say: Callable[[str], None]) -> MethodPlan:
    label = LABELS[method]
    say(f"{label}: counting")
    trainable, total, file = count(request, method)
    simulators = {on: Simulator(request, method, on) for on in (False, True)}
    say(f"{label}: a step")
    memories = {on: simulators[on].memory(request.batch) for on in (False, True)}
    chosen = simulators[request.checkpointing]
    phase, at_peak = memories[request.checkpointing].peak()
    parts = dict(memories[request.checkpointing].most())
    parts["activations"] = memories[False].most()["activations"]
    parts["activations_checkpointed"] = memories[True].most()["activations"]
    say(f"{label}: the largest batch")
    fits = largest_fitting(chosen.peak, request.device.memory - request.device.runtime, request.batch)
    return MethodPlan(method, trainable, total, file, parts, at_peak.total(), phase, fits)


def _applied(request: Request, method: str, model: PreTrainedModel) -> nn.Module:
    """The model wrapped by a PEFT method; as it is for masked and full fine-tuning, which need no wrapper."""
    if method not in ADAPTERS:
        return model
    settings = {"neuroada": {"k": request.k, "k_pattern": dict(request.k_pattern)}, "lora": {"r": request.rank}}[method]
    return get_peft_model(model, build_config(method, settings, request.skeleton.task))


def _adapted(request: Request, blocks: int | None = None) -> dict[str, NeuroAdaLinear]:
    """The layers that "all-linear" means, by name."""
    wrapped = _applied(request, "neuroada", request.skeleton.build(blocks))
    named = ((name.removeprefix("base_model.model."), module) for name, module in wrapped.named_modules())
    return {name: module for name, module in named if isinstance(module, NeuroAdaLinear)}


def count(request: Request, method: str) -> tuple[int, int, int]:
    """(values that training changes, values of the base model, bytes of the file)."""
    base = request.skeleton.build()
    total = sum(parameter.numel() for parameter in base.parameters())
    if method == "full":
        return total, total, safetensors_size(dict(base.named_parameters()))
    if method in ADAPTERS:
        model = _applied(request, method, base)
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        return trainable, total, safetensors_size(get_peft_model_state_dict(model))
    layers = _adapted(request)
    entries = sum(deltas.numel() for layer in layers.values() for deltas in layer.neuroada_deltas.values())
    weights = {f"{name}.weight": layer.stored_weight for name, layer in layers.items()}
    return entries, total, safetensors_size(weights)


def safetensors_size(tensors: dict[str, Tensor]) -> int:
    """Bytes of a .safetensors file with these tensors, header included; meta tensors will do."""
    names = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        kind = names.get(tensor.dtype, f"U{8 * tensor.element_size()}")
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + -(-length // 8) * 8 + end


class Simulator:
    """One method's training step for any batch size."""

    def __init__(self, request: Request, method: str, checkpointing: bool) -> None:
        """checkpointing: whether blocks are computed again in backward."""
        self.request, self.method, self.checkpointing = request, method, checkpointing
        self._memories: dict[int, Memory] = {}

    def memory(self, batch: int) -> Memory:
        """Of a step with this batch, simulated once; on a few blocks where all are alike."""
        if batch not in self._memories:
            skeleton = self.request.skeleton
            if skeleton.blocks > FEWEST_BLOCKS + 1 and self.request.uniform:
                few, more = (self._simulated(FEWEST_BLOCKS + extra, batch) for extra in (0, 1))
                self._memories[batch] = extrapolated(few, more, FEWEST_BLOCKS, skeleton.blocks)
            else:
                self._memories[batch] = self._simulated(None, batch)
        return self._memories[batch]

    def peak(self, batch: int) -> int:
        """Bytes of a step with this batch at its peak."""
        return self.memory(batch).peak()[1].total()

    def _simulated(self, blocks: int | None, batch: int) -> Memory:
        request, skeleton = self.request, self.request.skeleton
        base = skeleton.build(blocks)
        own = {id(tensor) for tensor in (*base.parameters(), *base.buffers())}
        with _quiet():
            names = _adapted(request, blocks) if self.method == "mask" else ()
            model = _applied(request, self.method, base)
        fake, products = FakeTensorMode(allow_non_fake_inputs=True), _products(request.device)
        with _quiet(), fake, unpacked(), products, _attention(request.device):
            numbers = block_numbers(model, skeleton.blocks if blocks is None else blocks)
            tracker = Tracker(request.device.granularity)
            for name, before, tensor in materialise(model):
                tracker.know(tensor, "weights" if before in own else "adapter", numbers.get(name))
            if self.checkpointing:
                base.config.use_cache = False
                again = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), _attention(request.device))}
                base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=again)
            if self.method == "full":
                base.requires_grad_(True)
            if self.method == "mask":
                with tracker.setting_up("adapter"):
                    wrap_mask(base, names, 1)  # as many bytes for any k
            originals = [torch.empty_like(deltas, dtype=skeleton.dtype) for deltas in _deltas(model)]
            for kept in originals:  # a run holds the deltas in the weights and these beside them
                tracker.know(kept, "adapter", None)
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            try:
                return train_step(model, skeleton.inputs(batch, request.sequence), trained, tracker)
            except (DataDependentOutputException, DynamicOutputShapeException) as error:
                raise ConfigError(
                    f"Planning for a model of type {skeleton.config.model_type!r}",
                    f"what it computes depends on values ({error.func}), and a plan has none",
                    "Plan for a model without such steps, such as a dense one of the same size",
                ) from error


def _deltas(model: nn.Module) -> Iterator[Tensor]:
    return (
        deltas
        for layer in model.modules()
        if isinstance(layer, NeuroAdaLinear)
        for deltas in layer.neuroada_deltas.values()
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Warnings belong to the whole model, which is built once outside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _attention(device: Device) -> AbstractContextManager[object]:
    return CudaAttention(device.flash) if device.cuda else nullcontext()


def _products(device: Device) -> AbstractContextManager[object]:
    return as_on_a_gpu() if device.cuda else nullcontext()


def largest_fitting(peak: Callable[[int], int], room: int, known: int) -> int:
    """The largest batch whose peak is at most `room`; 0 if none is. Itself among those that `peak` was called for.

    peak: bytes by batch, never falling, and convex, as the largest of several affine functions is: the line through two
    batches is a lower bound beyond them. known: a batch to begin with.
    """
    if peak(1) > room:
        return 0
    fits, fails, probe = 1, None, max(known, 2)
    while fails is None or fails > fits + 1:
        more, needed = peak(probe) - peak(fits), peak(probe)
        reach = fits + (room - peak(fits)) * (probe - fits) // more if more else None
        if needed > room:
            fails = probe
            probe = min(max(reach or 0, fits + 1), fails - 1)
        elif reach is None:
            fits, probe = probe, 2 * probe
        else:
            fits, fails, probe = probe, reach + 1, reach
    return fits
