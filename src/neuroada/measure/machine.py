"""The provenance that every record carries."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import torch

from neuroada.errors import ConfigError
from neuroada.measure.record import Machine
from neuroada.run_folder.environment import environment


def provenance(device: torch.device, seed: int) -> dict[str, Any]:
    """The fields of a `Record` that all rows of one call share: run, created, commit, seed, machine."""
    return provenance_in(environment(device, seed))


def provenance_in(found: Mapping[str, Any]) -> dict[str, Any]:
    """The same fields from an environment that was written down, such as a run folder's."""
    machine = {name: found[name] for name in Machine.model_fields}
    shared = {name: found[name] for name in ("created", "commit", "seed")}
    return {"run": uuid.uuid4().hex[:12], **shared, "machine": Machine(**machine)}


def find_device(name: str) -> torch.device:
    """The device of that name, which must be there.

    Raises:
        ConfigError: no such kind of device, or this machine has none.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name}", "not a device that PyTorch knows", "Give cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}", "benchmarks run on cpu and cuda alone", "Give cpu, cuda or cuda:1")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = f"PyTorch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices"
        raise ConfigError(f"--device {name}", found, "Give another device, such as cpu")
    return device
