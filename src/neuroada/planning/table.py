"""How a plan is printed."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from neuroada.planning.plan import LABELS, MethodPlan, Request
from neuroada.run_folder.summary import bytes_text

PARTS = {
    "weights": "base weights",
    "adapter": "added to them",
    "gradients": "their gradients",
    "optimiser": "optimiser states",
    "activations": "kept for backward",
    "activations_checkpointed": "- checkpointed",
    "logits": "logits and loss",
    "working": "temporary",
}
PHASES = {"start": "before the blocks", "forward": "forward", "head": "in the loss", "backward": "backward"}
PHASES |= {"end": "backward", "step": "in the optimiser's step"}


def print_plan(console: Console, request: Request, name: str, plans: list[MethodPlan]) -> None:
    """A table with a column for each method, and what it assumes."""
    device = request.device
    kept = "checkpointing" if request.checkpointing else "no checkpointing"
    console.print(f"\n[bold]{name}[/], {plans[0].total:,} parameters in {request.dtype}")
    console.print(f"batch {request.batch} × {request.unit}, {kept}, on {device.name}\n")
    table = Table(box=None, padding=(0, 1))
    table.add_column(no_wrap=True)
    for plan in plans:
        table.add_column(_heading(request, plan.method), justify="right")
    for label, cells in _rows(request, plans):
        table.add_row(Text(label), *map(Text, cells))
    console.print(table)
    if request.k_pattern:
        console.print("\n* " + ", ".join(f"{name} k={k}" for name, k in request.k_pattern.items()))
    console.print("\n" + " ".join(_assumptions(request)))


def plan_as_dict(request: Request, name: str, plans: list[MethodPlan]) -> dict[str, Any]:
    """The same as plain types, bytes and counts unrounded."""
    size = request.skeleton.image_size
    length = ("sequence",) if size is None else ()
    asked = ("dtype", "k", "k_pattern", "rank", "batch", *length, "checkpointing")
    device = dataclasses.asdict(request.device)
    settings = {key: getattr(request, key) for key in asked} | ({} if size is None else {"image_size": size})
    return {"model": name, "device": device, **settings, "methods": [dataclasses.asdict(plan) for plan in plans]}


def _heading(request: Request, method: str) -> str:
    k = f" k={request.k}" + "*" * bool(request.k_pattern)
    size = {"neuroada": k, "mask": k, "lora": f" r={request.rank}"}
    return LABELS[method] + size.get(method, "")


def _rows(request: Request, plans: list[MethodPlan]) -> list[tuple[str, list[str]]]:
    rows = [
        ("values trained", [f"{plan.trainable:,}" for plan in plans]),
        ("share of all", [f"{plan.trainable / plan.total:.3%}" for plan in plans]),
        ("file", [bytes_text(plan.file) for plan in plans]),
        ("", []),
    ]
    rows += [(label, [bytes_text(plan.parts.get(part, 0)) for plan in plans]) for part, label in PARTS.items()]
    rows += [
        ("peak of the sum", [bytes_text(plan.peak) for plan in plans]),
        ("reached", [PHASES[plan.peak_phase.partition(" ")[0]] for plan in plans]),
        ("fixed", [bytes_text(request.device.runtime)] * len(plans)),
        ("total", [bytes_text(plan.peak + request.device.runtime) for plan in plans]),
        (f"fits in {bytes_text(request.device.memory)}", [_fits(request, plan) for plan in plans]),
        ("largest batch", [f"{plan.largest_batch:,}" for plan in plans]),
    ]
    return rows


def _fits(request: Request, plan: MethodPlan) -> str:
    return "yes" if plan.peak + request.device.runtime <= request.device.memory else "no"


def _assumptions(request: Request) -> list[str]:
    device = request.device
    attention = ("the device's attention", "flash attention")[device.flash]
    lines = [
        "Each part is shown at its own largest: they are not all there at once, and the peak is less than their sum.",
        f"Assumed: AdamW, fused, its states in the type of what is trained; no padding; {attention}; for NeuroAda that",
        "inputs are kept whole (of how many columns its deltas read the weights decide); for mask-based tuning a file",
        "of the adapted weights. Fixed (libraries, context) is",
        "an assumption, not measured." if device.cuda else "what this process has resident now.",
    ]
    if not device.cuda:
        lines += ["glibc's malloc keeps freed blocks besides, unless MALLOC_MMAP_THRESHOLD_=65536 is set."]
    return lines
