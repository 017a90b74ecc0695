"""A plan against what training really takes: each method and batch size in a process of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import TaskType, get_peft_model
from rich.console import Console
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from neuroada.errors import ConfigError, near
from neuroada.inputs.models import SMOLLM2
from neuroada.layers import held
from neuroada.measure.bars import counting
from neuroada.measure.clock import PeakMemory, return_large_blocks
from neuroada.measure.machine import provenance
from neuroada.measure.pretrained import described, load_frozen
from neuroada.measure.process import call_in_fresh_process
from neuroada.measure.record import Measurement, Record
from neuroada.planning.devices import find_device
from neuroada.planning.plan import Request, Simulator
from neuroada.planning.skeleton import load_config
from neuroada.recipe.methods import ADAPTERS, build_config

CPU = torch.device("cpu")
MEASURED = ("neuroada", "lora", "full")
STEPS = 1
"""Counted, after a first step in which the optimiser's states come into being."""


@dataclass(frozen=True)
class PlanCheck:
    """What to compare: each method with each batch size, on the CPU. model: a directory, or a name of runs.models."""

    model: str = SMOLLM2
    methods: tuple[str, ...] = ("neuroada", "lora", "full")
    batches: tuple[int, ...] = (1, 4)
    sequence: int = 256
    dtype: str = "bfloat16"
    k: int = 1
    rank: int = 8
    checkpointing: bool = False
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in MEASURED:
                raise ConfigError(f"method {method!r}", "not one that plans are compared with", near(method, MEASURED))

    def request(self, batch: int) -> Request:
        """The plan of one batch size."""
        return Request(
            load_config(self.model),
            find_device("cpu"),
            self.dtype,
            self.k,
            self.rank,
            batch,
            self.sequence,
            self.checkpointing,
        )

    def settings(self, method: str) -> dict[str, Any]:
        """Of the method, by the names of its configuration."""
        return {"neuroada": {"k": self.k}, "lora": {"r": self.rank}}.get(method, {})


def run_plan_check(check: PlanCheck, console: Console | None = None) -> list[Record]:
    """One record for each method and batch size, with the planned and the measured peak.

    Raises:
        MissingInputError: the model is not there.
        ConfigError: something that `neuroada plan` refuses.
    """
    requests = {batch: check.request(batch) for batch in check.batches}
    for request in requests.values():
        _ = request.skeleton
    shared = provenance(CPU, check.seed)
    with counting(console, "Plans", 3 * len(check.methods) * len(check.batches)) as advance:
        records = []
        for method in check.methods:
            for batch in check.batches:
                advance(f"{method}, batch {batch}: planning", 0)
                planned = Simulator(requests[batch], method, check.checkpointing).peak(batch)
                advance(f"{method}, batch {batch}: training", 1)
                arguments = {"check": check, "method": method, "batch": batch}
                found = {}
                for at_once in (True, False):
                    returning = {"return_at_once": at_once}
                    found[at_once] = call_in_fresh_process(training_memory, arguments | returning, check.threads)
                    advance("", 1)
                records.append(_record(check, method, batch, planned, found, shared))
    return records


def training_memory(check: PlanCheck, method: str, batch: int, return_at_once: bool) -> dict[str, Any]:
    """Peak memory of training steps over what the process has before it loads the model; for a fresh process.

    A small model is trained first, so that imported and compiled code is there before. With `return_at_once`, blocks
    that are freed do not stay resident.
    """
    if check.threads is not None:
        torch.set_num_threads(check.threads)
    if return_at_once:
        return_large_blocks()
    torch.manual_seed(check.seed)
    _Training(check, method, _small_model(check.dtype)).steps(torch.zeros(2, 16, dtype=torch.long), 2)
    with PeakMemory(CPU) as before:
        pass
    training = _Training(check, method, load_frozen(check.model, check.dtype, CPU))
    ids = torch.randint(training.vocabulary, (batch, check.sequence))
    training.steps(ids, 1)
    with PeakMemory(CPU) as memory:
        training.steps(ids, STEPS)
    return {"peak": memory.peak - before.before, "of": memory.of}


def _small_model(dtype: str) -> LlamaForCausalLM:
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64}
    config = LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)
    return LlamaForCausalLM(config).to(getattr(torch, dtype))


class _Training:
    """A model wrapped by a method, with its optimiser."""

    def __init__(self, check: PlanCheck, method: str, model: Any) -> None:
        model.requires_grad_(method == "full")
        self.vocabulary = model.config.vocab_size
        if check.checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if method in ADAPTERS:
            model = get_peft_model(model, build_config(method, check.settings(method), TaskType.CAUSAL_LM))
        self.model: nn.Module = model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def steps(self, ids: torch.Tensor, count: int) -> None:
        with held(self.model):  # as runs do; nothing without NeuroAda's layers
            for _ in range(count):
                self.model(input_ids=ids, labels=ids).loss.backward()
                self.optimiser.step()
                self.optimiser.zero_grad()


def _record(
    check: PlanCheck, method: str, batch: int, planned: int, found: dict[bool, dict[str, Any]], shared: dict[str, Any]
) -> Record:
    measured = found[True]["peak"]
    return Record(
        **shared,
        kind="plan",
        method=method,
        settings={**check.settings(method), "checkpointing": check.checkpointing},
        notes={
            "memory_of": f"{found[True]['of']}, over that before the model is loaded",
            "measured": "glibc's malloc with M_MMAP_THRESHOLD=65536, which gives freed blocks back at once",
            "measured_by_default": "malloc as it is, which keeps freed blocks",
        },
        shape=described(check.model, load_config(check.model)),
        batch=batch,
        sequence=check.sequence,
        dtype=check.dtype,
        measurements={
            "planned": Measurement.count(planned, "bytes"),
            "measured": Measurement.count(measured, "bytes"),
            "measured_by_default": Measurement.count(found[False]["peak"], "bytes"),
            "planned_to_measured": Measurement.count(planned / measured, "x"),
        },
    )
