"""Which backend computes, and why: pure decisions, printed in run headers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec

import torch

from neuroada.errors import ConfigError

BACKENDS = ("auto", "triton", "numba", "torch")

_COMPILED: dict[str, tuple[str, tuple[torch.dtype, ...]]] = {
    "triton": ("cuda", (torch.float32, torch.bfloat16, torch.float16)),
    "numba": ("cpu", (torch.float32, torch.bfloat16)),
}
"""For each compiled backend the device type and the dtypes it computes with."""

_pinned = os.environ.get("NEUROADA_BACKEND", "auto")


def resolve_backend(
    requested: str, *, device: str, dtype: torch.dtype, missing: Mapping[str, str | None]
) -> tuple[str, str]:
    """What computes the deltas' gradient, and on a GPU writes the supports.

    Args:
        requested: "auto", "triton", "numba" or "torch".
        device: type of the device that the tensors are on.
        dtype: of the activations.
        missing: for each compiled backend, why it cannot run on this machine, or None.

    Returns:
        (backend, reason): "triton", "numba" or "torch", and a phrase that says why.

    Raises:
        ConfigError: unknown, or asked for where it cannot run; the message names those that can.
    """
    if requested not in BACKENDS:
        raise ConfigError(f"backend={requested!r}", "not a known backend", f"Known: {', '.join(BACKENDS)}")
    obstacles = {name: _obstacle(name, device, dtype, missing.get(name)) for name in _COMPILED}
    possible = [name for name, obstacle in obstacles.items() if obstacle is None] + ["torch"]
    if requested in possible:
        return requested, "as asked"
    if requested != "auto":
        raise ConfigError(
            f"backend={requested!r}",
            str(obstacles[requested]),
            f"Backends that can run here: {', '.join(possible)}, or 'auto'",
        )
    if possible[0] != "torch":
        return possible[0], f"compiled for {device}"
    made_for = [name for name, (type_, _) in _COMPILED.items() if type_ == device]
    return "torch", "; ".join(str(obstacles[name]) for name in made_for) or f"nothing faster exists for {device}"


def _obstacle(name: str, device: str, dtype: torch.dtype, missing: str | None) -> str | None:
    made_for, dtypes = _COMPILED[name]
    if device != made_for:
        return f"{name} runs on {made_for}, and the tensors are on {device}"
    if dtype not in dtypes:
        return f"{name} does not compute in {str(dtype).removeprefix('torch.')}"
    return missing


def set_backend(name: str) -> None:
    """Pin what computes the deltas' gradient in this process; "auto" lets device and dtype decide.

    The environment variable NEUROADA_BACKEND does the same from outside.

    Raises:
        ConfigError: not a known backend. One that cannot run is an error when a layer first needs it.
    """
    global _pinned
    if name not in BACKENDS:
        raise ConfigError(f"backend={name!r}", "not a known backend", f"Known: {', '.join(BACKENDS)}")
    _pinned = name


def backend_for(device: str, dtype: torch.dtype, per_neuron: int | None = None) -> tuple[str, str]:
    """(backend, reason) for tensors of this device type and dtype, as pinned or by what is installed.

    per_neuron: K, where it is known: a single delta a neuron is not worth Numba's import on a CPU.
    """
    would_be_numba = device == "cpu" and dtype in _COMPILED["numba"][1] and _pinned == "auto"
    if per_neuron == 1 and would_be_numba and find_spec("numba") is not None:
        return "torch", "with one delta a neuron it is about as fast as numba, whose import takes 80 MiB of memory"
    return _resolved(_pinned, device, dtype)


def uses_kernels(tensor: torch.Tensor) -> bool:
    """Whether supports are written to this weight by Triton kernels."""
    return tensor.is_cuda and backend_for("cuda", torch.float32)[0] == "triton"


@lru_cache
def _resolved(requested: str, device: str, dtype: torch.dtype) -> tuple[str, str]:
    missing = {name: check() for name, check in _CHECKS.items() if _COMPILED[name][0] == device}
    return resolve_backend(requested, device=device, dtype=dtype, missing=missing)


def _triton_missing() -> str | None:
    from neuroada.ops.sparse_delta.backends.triton import device as triton

    usable, reason = triton.available()
    if usable and triton.is_interpreted():
        return "TRITON_INTERPRET is set, and interpreted kernels run on the CPU"
    return None if usable else reason


def _numba_missing() -> str | None:
    if find_spec("numba") is None:
        return 'numba is not installed (it comes with neuroada\'s extra "cpu")'
    try:
        import_module("neuroada.ops.sparse_delta.backends.numba")
    except Exception as error:  # too new a NumPy, no folder for its cache: whatever it is, it is told
        return f"numba cannot be used ({type(error).__name__}: {error})"
    return None


_CHECKS = {"triton": _triton_missing, "numba": _numba_missing}
