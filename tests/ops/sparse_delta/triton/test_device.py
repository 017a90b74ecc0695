"""Whether the Triton kernels can be used, and what they are counted to cost."""

import ast
import builtins
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import neuroada

from .kernels import DEVICE, INTERPRETED, triton, triton_launch

available = triton.available.__wrapped__
GPU = {"is_available": True, "get_device_capability": (9, 0), "get_device_name": "NVIDIA H200", "current_device": 0}


@pytest.fixture
def machine(monkeypatch):
    """Sets what torch says of the GPU, and that kernels are compiled."""
    monkeypatch.setattr(triton_launch, "INTERPRETED", False)
    monkeypatch.setattr(triton_launch, "trial", lambda device: None)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    def set_up(**facts):
        for name, value in (GPU | facts).items():
            monkeypatch.setattr(torch.cuda, name, lambda value=value: value)

    return set_up


def test_here_they_can_be_used():
    usable, reason = available()
    assert usable, reason
    assert ("interpreted on the CPU" in reason) == INTERPRETED


def test_a_gpu_that_fits(machine):
    machine()
    usable, reason = available()
    assert usable
    assert reason.endswith("on NVIDIA H200")


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"is_available": False}, "PyTorch sees no CUDA device"),
        (
            {"get_device_capability": (7, 5), "get_device_name": "Tesla T4"},
            "Tesla T4 has compute capability 7.5, and 8.0 or newer is needed",
        ),
    ],
)
def test_a_gpu_that_does_not_fit(machine, facts, reason):
    machine(**facts)
    assert available() == (False, reason)


def test_a_trial_that_fails_gives_its_reason(machine, monkeypatch):
    def fail(device):
        raise RuntimeError("Failed to find C compiler")

    machine()
    monkeypatch.setattr(triton_launch, "trial", fail)
    usable, reason = available()
    assert not usable
    assert reason.endswith("cannot launch a kernel on NVIDIA H200 (RuntimeError: Failed to find C compiler)")


def test_interpreting_asked_for_too_late(machine, monkeypatch):
    machine()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert available() == (False, "TRITON_INTERPRET was set after the kernels had been loaded")


def test_no_triton(monkeypatch):
    load = builtins.__import__

    def without_triton(name, *arguments):
        if name == "triton":
            raise ModuleNotFoundError("No module named 'triton'")
        return load(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_triton)
    assert available() == (False, "triton cannot be imported (No module named 'triton')")


@pytest.mark.parametrize(("version", "old"), [("2.3.1", True), ("3.1.0", True), ("3.2.0", False), ("10.0", False)])
def test_an_old_triton(version, old, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=version))
    usable, reason = available()
    assert (reason == f"triton is {version}, and 3.2 or newer is needed") == old
    assert not (usable and old)


def test_the_trial_launches_a_kernel(monkeypatch):
    triton_launch.trial(DEVICE)
    monkeypatch.setattr(triton_launch, "launch", lambda *arguments: None)
    with pytest.raises(RuntimeError, match="doubles 21 gave 21"):
        triton_launch.trial(DEVICE)


def test_kernels_are_imported_where_they_are_used_only():
    """At the top of a file, by other kernels' files alone: importing neuroada imports no triton."""
    kernels = sorted(
        path for path in Path(triton.__file__).parent.glob("*.py") if path.stem not in ("__init__", "device")
    )
    assert [path.stem for path in kernels] == ["launch", "product", "swap", "swap_plan"]
    inside = {f"neuroada.ops.sparse_delta.backends.triton.{path.stem}" for path in kernels}
    for path in Path(neuroada.__file__).parent.rglob("*.py"):
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {
            f"{getattr(node, 'module', '')}.{alias.name}".removeprefix(".") for node in top for alias in node.names
        }
        found = {name for name in names if name.split(".")[0] == "triton" or name.startswith(tuple(inside))}
        assert not found or path in kernels, f"{path} imports {found}"


@pytest.mark.parametrize("entries", [1, 2, 3, 4, 5, 8, 20, 512])
def test_blocks_are_powers_of_two_that_hold_the_entries(entries):
    neurons, wide = triton.entry_block(entries)
    assert {neurons & (neurons - 1), wide & (wide - 1)} == {0}
    assert wide >= min(entries, 8)
    assert neurons * wide in (64, 128)


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 255, 512, 4096, 4099])
@pytest.mark.parametrize(("neurons", "entries"), [(1, 1), (14336, 1), (14336, 20), (128256, 512)])
@pytest.mark.parametrize("size", [2, 4])
def test_a_split_sum_covers_every_panel_once(tokens, neurons, entries, size):
    parts, length = triton.split(tokens, neurons, entries, size)
    panels = -(-tokens // (128 // size))
    assert (parts - 1) * length < panels <= parts * length
    assert parts == 1 or length >= triton.SPLIT_ABOVE
    assert parts == 1 or parts * neurons * entries <= triton.PROGRAMS * 128


def test_the_products_meet_where_their_times_do():
    """By the bandwidth and the FLOPs that the constants assume, within the rounding to a power of two."""
    for size, flops in ((2, 600e12), (4, 45e12)):
        assert 0.7 < triton.DENSE_ABOVE[size] / (2 * 5e12 / (size * flops)) < 1.4
