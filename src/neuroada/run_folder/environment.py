"""What a run depended on besides its recipe."""

import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

PACKAGES = (
    "neuroada",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "safetensors",
    "triton",
    "numba",
)
"""Those that change what is computed, or with what."""
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Features of a processor that decide which matrix product is called."""


def environment(device: torch.device, seed: int) -> dict[str, Any]:
    """Versions, machine, device, seed, and the source's commit where it is run from a repository."""
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": _installed(),
        "platform": platform.platform(),
        "device": describe_device(device),
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "instructions": instructions(),
        "seed": seed,
        "commit": source_commit(),
    }


def describe_device(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    return f"{device.type}, {torch.get_num_threads()} threads, {platform.machine()}"


def cpu_model() -> str:
    """Name of the processor, as the system tells it."""
    return _cpu_info().get("model name") or platform.processor() or platform.machine()


def instructions() -> dict[str, bool | None]:
    """Whether the processor has each of INSTRUCTIONS; None where the system does not tell."""
    flags = _cpu_info().get("flags")
    return {name: None if flags is None else name in flags.split() for name in INSTRUCTIONS}


def source_commit() -> str | None:
    """Commit of the repository that this file belongs to, "-dirty" if the package has changed since; or None."""
    here = Path(__file__)
    if _git("ls-files", "--error-unmatch", here.name) is None:
        return None
    commit = _git("rev-parse", "HEAD")
    return commit if _git("diff", "--quiet", "HEAD", "--", "..") is not None else f"{commit}-dirty"


def peak_memory(device: torch.device) -> tuple[int, str]:
    """Highest memory so far in bytes, and of what: the device's tensors, or the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "tensors on the GPU"
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset, "resident, whole process"
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "resident, whole process"


def _installed() -> dict[str, str]:
    """Versions of PACKAGES; those not installed are left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@lru_cache(maxsize=1)
def _cpu_info() -> Mapping[str, str]:
    """The first processor's fields in /proc/cpuinfo; empty where there is none."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
