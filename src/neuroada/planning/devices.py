"""Devices by name, and how much memory they have."""

from __future__ import annotations

import re
from dataclasses import dataclass

import psutil

from neuroada.errors import ConfigError, near

CUDA_RUNTIME = 1_000_000_000
"""Bytes that the CUDA context and the libraries' workspaces take. An assumption: no GPU was at hand to measure it."""

_GB = 1_000_000_000
DEVICES = {
    "h200": 141 * _GB,
    "h100": 80 * _GB,
    "a100-80": 80 * _GB,
    "a100-40": 40 * _GB,
    "l40s": 48 * _GB,
    "rtx-4090": 24 * _GB,
    "t4": 16 * _GB,
}
"""Bytes by name, as the vendor states them."""
WITHOUT_FLASH = ("t4",)
"""Older than Ampere: no flash attention, and no arithmetic in bfloat16."""

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_BINARY_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True)
class Device:
    """A device to plan for.

    memory: bytes it has. runtime: bytes taken before the first tensor. cuda: it computes as CUDA devices do.
    """

    name: str
    memory: int
    runtime: int
    cuda: bool

    @property
    def flash(self) -> bool:
        """Whether it has flash attention; a GPU known by its memory alone is taken for one that has."""
        return self.cuda and self.name not in WITHOUT_FLASH

    @property
    def granularity(self) -> int:
        """Its allocator hands out multiples of so many bytes: 512 are PyTorch's on CUDA."""
        return 512 if self.cuda else 1


def find_device(name: str) -> Device:
    """A device by a name in DEVICES, "cpu" for this machine, or by its memory, such as "24GiB" (taken as a GPU).

    Raises:
        ConfigError: neither; the message lists the known names.
    """
    lower = name.lower()
    if lower == "cpu":
        return Device("cpu", psutil.virtual_memory().total, psutil.Process().memory_info().rss, cuda=False)
    memory = DEVICES.get(lower) or _bytes_of(lower)
    if not memory:
        found = "neither a known device nor an amount of memory"
        raise ConfigError(f"--device {name}", found, f"{near(lower, [*DEVICES, 'cpu'])}, or bytes such as 24GiB")
    return Device(lower if lower in DEVICES else name, memory, CUDA_RUNTIME, cuda=True)


def _bytes_of(text: str) -> int:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?", text)
    if match is None:
        return 0
    number, unit, binary = match.groups()
    if binary and not unit:
        return 0
    return int(float(number) * (_BINARY_UNITS if binary else _UNITS)[unit])
