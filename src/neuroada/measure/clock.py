"""How long a call takes, and how much memory it needs: the two places where CPU and CUDA differ."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from neuroada.run_folder.environment import peak_memory

STATUS = Path("/proc/self/status")


def seconds(call: Callable[[], object], device: torch.device, repeat: int = 1) -> float:
    """Wall time of a call on the CPU; on CUDA the time between two events around it, with the queue empty at first.

    With `repeat`, that of one of so many calls in a row: on CUDA their launches then overlap with their work.
    """
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(repeat):
            call()
        return (time.perf_counter() - began) / repeat
    torch.cuda.synchronize(device)
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeat):
        call()
    stop.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(stop) / 1000 / repeat


def free(device: torch.device) -> None:
    """Give back memory that nothing uses any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class PeakMemory:
    """Memory while a context lasts, of one device, in bytes.

    On CUDA what the allocator handed out, on the CPU what the process has resident; `of` says which, and whether the
    system could forget an earlier peak, without which `peak` is that of the whole process so far.
    """

    before: int
    peak: int
    of: str

    def __init__(self, device: torch.device) -> None:
        """Of this device."""
        self.device = device

    def __enter__(self) -> PeakMemory:
        free(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before, self.of = torch.cuda.memory_allocated(self.device), "tensors on the GPU"
            return self
        _return_freed_pages()
        self.forgot = _forget_peak()
        self.before = psutil.Process().memory_info().rss
        self.of = "resident, in this context" if self.forgot else "resident, whole process so far"
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cpu" and self.forgot:
            found = re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text())
            assert found is not None
            self.peak = int(found[1]) * 1024
        else:
            self.peak, _of = peak_memory(self.device)


def _forget_peak() -> bool:
    """Set the peak resident size that Linux keeps to the present one; False where that cannot be done."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return "VmHWM" in STATUS.read_text()


def _return_freed_pages() -> None:
    """Without this, memory that building the model freed would hide what a step allocates."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)


def return_large_blocks() -> None:
    """Let glibc give freed blocks of 64 KiB and more back at once.

    Its own limit grows to 32 MiB as such blocks are freed, and what it then keeps for later is resident, not in use.
    """
    mmap_threshold = -3  # M_MMAP_THRESHOLD of malloc.h
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(mmap_threshold, 1 << 16)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
