"""Switching between two adapters on one base model, against loading one from disk."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from rich.console import Console
from torch import Tensor

from neuroada.config import NeuroAdaConfig
from neuroada.errors import ConfigError
from neuroada.inputs.models import SMOLLM2
from neuroada.layers import held
from neuroada.measure.bars import counting
from neuroada.measure.clock import seconds
from neuroada.measure.machine import find_device, provenance
from neuroada.measure.pretrained import described, load_frozen
from neuroada.measure.record import Measurement, Record

NAMES = ("first", "second")
TOKENS = 16
"""Of the input whose outputs are compared; processors without bfloat16 are slow at more."""
SCALE = 0.01
"""Standard deviation of the random deltas: enough to change outputs."""


@dataclass(frozen=True)
class SwitchPlan:
    """What to measure. loads, switches: how often. model: a directory, a hub id or a name of inputs.models."""

    model: str = SMOLLM2
    k: int = 20
    dtype: str = "bfloat16"
    loads: int = 3
    switches: int = 20
    device: str = "cpu"
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("k", self.k), ("loads", self.loads), ("switches", self.switches)):
            if value < 1:
                raise ConfigError(f"--{name} {value}", "less than 1", "Give at least 1")


@dataclass
class _Switching:
    """Two adapters on one model, and the times of what is done with them."""

    plan: SwitchPlan
    device: torch.device
    model: Any
    ids: Tensor
    times: dict[str, list[float]] = field(default_factory=dict)

    def time(self, name: str, call: Callable[[], object]) -> None:
        """Add the time of a call to those of that name."""
        self.times.setdefault(name, []).append(seconds(call, self.device))

    @torch.no_grad()
    def logits(self) -> Tensor:
        """Outputs with the active adapter."""
        return self.model(input_ids=self.ids).logits

    def load(self, folder: Path, quick: bool) -> None:
        """Load an adapter a third time under another name, and forget it again."""
        options = {"low_cpu_mem_usage": True} if quick else {}
        name = "load_without_choosing" if quick else "load"
        self.time(name, lambda: self.model.load_adapter(folder / NAMES[0], "loaded", **options))
        self.model.delete_adapter("loaded")

    def switch(self, name: str, expected: Tensor) -> bool:
        """Switch to an adapter; whether the outputs are those it had at first, bit for bit."""
        self.time("switch", lambda: self.model.set_adapter(name))
        outputs: list[Tensor] = []
        self.time("first_forward", lambda: outputs.append(self.logits()))
        self.time("next_forward", lambda: outputs.append(self.logits()))
        return all(torch.equal(output, expected) for output in outputs)

    def switch_held(self, holding: ExitStack, name: str, expected: Tensor) -> bool:
        """The same while supports are held in the weights: take them out, switch, put the other's in."""

        def change() -> None:
            holding.close()
            self.model.set_adapter(name)
            holding.enter_context(held(self.model))

        self.time("switch_held", change)
        return torch.equal(self.logits(), expected)


def run_switch(plan: SwitchPlan, console: Console | None = None) -> list[Record]:
    """One record: times of switching and of loading, and whether outputs came back bit for bit."""
    device = find_device(plan.device)
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    shared = provenance(device, plan.seed)
    with counting(console, "Switching", 3 + 2 * plan.loads + 2 * plan.switches) as advance:
        switching = _prepared(plan, device, advance)
        with tempfile.TemporaryDirectory() as folder:
            switching.model.save_pretrained(folder)
            size = sum(file.stat().st_size for file in Path(folder, NAMES[0]).glob("*.safetensors"))
            for quick in (False, True):
                for _ in range(plan.loads):
                    advance("loading", 0)
                    switching.load(Path(folder), quick)
                    advance("", 1)
        exact = _switch_back_and_forth(switching, advance)
    return [_record(plan, switching, shared, exact, size)]


def _prepared(plan: SwitchPlan, device: torch.device, advance: Callable[[str, int], None]) -> _Switching:
    advance("loading the model", 0)
    base = load_frozen(plan.model, plan.dtype, device)
    generator = torch.Generator().manual_seed(plan.seed)
    ids = torch.randint(base.config.vocab_size, (1, TOKENS), generator=generator).to(device)
    advance("choosing inputs", 1)
    config = NeuroAdaConfig(k=plan.k, task_type="CAUSAL_LM")
    model: Any = get_peft_model(base, config, adapter_name=NAMES[0]).eval()
    advance("", 1)
    model.add_adapter(NAMES[1], config)
    advance("", 1)
    for name, parameter in model.named_parameters():
        if "neuroada_deltas" in name:
            parameter.data.copy_(SCALE * torch.randn(parameter.shape, generator=generator))
    return _Switching(plan, device, model, ids)


def _switch_back_and_forth(switching: _Switching, advance: Callable[[str, int], None]) -> str | None:
    """Time switches; None if outputs came back bit for bit each time, else what happened."""
    expected = {}
    for name in NAMES:
        switching.model.set_adapter(name)
        expected[name] = switching.logits()
    if torch.equal(*expected.values()):
        return "both adapters give the same outputs, so that nothing is shown"
    exact = True
    for number in range(switching.plan.switches):
        advance("switching", 0)
        exact &= switching.switch(NAMES[number % 2], expected[NAMES[number % 2]])
        advance("", 1)
    with ExitStack() as holding:
        for number in range(switching.plan.switches):
            advance("switching while held", 0)
            exact &= switching.switch_held(holding, NAMES[number % 2], expected[NAMES[number % 2]])
            advance("", 1)
    return None if exact else "outputs after a switch differ from those before"


def _record(
    plan: SwitchPlan, switching: _Switching, shared: dict[str, Any], wrong: str | None, file_bytes: int
) -> Record:
    measurements = {name: Measurement.of(times, "s") for name, times in switching.times.items()}
    for load in ("load", "load_without_choosing") if wrong is None else ():
        ratio = measurements["switch"].p50 / measurements[load].p50
        measurements[f"switch_to_{load}"] = Measurement.count(ratio, "x")
    measurements["adapter_file"] = Measurement.count(file_bytes, "bytes")
    return Record(
        **shared,
        kind="switch",
        method="neuroada",
        settings={"k": plan.k},
        notes={
            "load": "load_adapter of a file that is in the system's cache",
            "load_without_choosing": "the same with low_cpu_mem_usage=True, which chooses no inputs for the file's",
            "outputs": wrong or "equal, bit for bit, after each switch",
        },
        shape=described(plan.model, switching.model.config),
        batch=1,
        sequence=TOKENS,
        dtype=plan.dtype,
        status="ok" if wrong is None else "failed",
        reason=wrong,
        measurements=measurements,
    )
