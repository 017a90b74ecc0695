"""The provenance that every record carries."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from neuroada.errors import ConfigError
from neuroada.measure.record import Machine
from neuroada.runs.environment import describe_device, environment

PACKAGES = ("triton", "numba")
"""Those that change what is computed with, beside the ones of every run."""
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def provenance(device: torch.device, seed: int) -> dict[str, Any]:
    """The fields of a `Record` that all rows of one call share: run, created, commit, seed, machine."""
    found = environment(device, seed)
    return {
        "run": uuid.uuid4().hex[:12],
        "created": found["created"],
        "commit": found["commit"],
        "seed": seed,
        "machine": Machine(
            device=describe_device(device),
            cpu=cpu_model(),
            threads=torch.get_num_threads(),
            instructions=instructions(),
            platform=found["platform"],
            python=found["python"],
            packages=found["packages"] | _installed(PACKAGES),
        ),
    }


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


@lru_cache(maxsize=1)
def _cpu_info() -> Mapping[str, str]:
    """The first processor's fields in /proc/cpuinfo; empty where there is none."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def cpu_model() -> str:
    """Name of the processor, as the system tells it."""
    return _cpu_info().get("model name") or platform.processor() or platform.machine()


def instructions() -> dict[str, bool | None]:
    """Whether the processor has each of INSTRUCTIONS; None where the system does not tell."""
    flags = _cpu_info().get("flags")
    return {name: None if flags is None else name in flags.split() for name in INSTRUCTIONS}


def _installed(names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
