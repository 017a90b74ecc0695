"""What every operation on a frozen weight looks to: autocast is off inside it, and backward sees the same weight."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from neuroada.errors import WeightError
from neuroada.ops.sparse_delta.support import FrozenWeight, version_of

State = tuple[torch.dtype, int] | None


def is_autocast(device: str) -> bool:
    """Whether autocast is on for a type of device."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def without_autocast(device: str) -> AbstractContextManager[object]:
    """A context in which operations keep the dtypes of their inputs."""
    return torch.autocast(device, enabled=False) if is_autocast(device) else nullcontext()


def state_of(weight: FrozenWeight) -> State:
    """What `require_unchanged` compares; None for a weight that is made afresh each time."""
    parameter = weight.parameter
    return None if parameter is None else (parameter.dtype, version_of(parameter))


def require_unchanged(weight: FrozenWeight, before: State, device: torch.device) -> None:
    """Raise WeightError if a weight was written to, cast or moved since the forward pass that used it.

    device: that of the gradient.
    """
    parameter = weight.parameter
    if parameter is None or before is None:
        return
    if parameter.device != device:
        found = f"the frozen weight moved to {parameter.device} while its gradient is on {device}"
    elif parameter.dtype != before[0]:
        found = f"the frozen weight was cast from {before[0]} to {parameter.dtype} after the forward pass that used it"
    elif state_of(weight) != before:
        found = "the frozen weight was written to after the forward pass that used it"
    else:
        return
    raise WeightError("Backward through an adapted layer", found, "Move or load base weights between steps instead")
