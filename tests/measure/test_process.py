"""A function in a process of its own: its answer, its end, and its being stopped."""

import os
import runpy
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from neuroada.measure.process import ProcessDiedError, call_in_fresh_process, stop_fresh_processes
from neuroada.measure.rounds import Row


def in_fresh_process(folder: Path, source: str):
    script = folder / "script.py"
    script.write_text(source)
    return call_in_fresh_process(runpy.run_path, {"path_name": str(script)}, threads=1)


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL")
def test_a_killed_process_counts_as_out_of_memory(tmp_path: Path):
    with pytest.raises(MemoryError, match="killed"):
        in_fresh_process(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")


def test_a_process_that_breaks_says_why(tmp_path: Path):
    with pytest.raises(ProcessDiedError, match="ValueError: seven"):
        in_fresh_process(tmp_path, "raise ValueError('seven')")


def test_a_process_answers():
    assert call_in_fresh_process(os.getenv, {"key": "OMP_NUM_THREADS"}, threads=3) == "3"


def test_a_row_names_the_error_once(tmp_path: Path):
    row = Row("method")
    row.attempt(lambda: in_fresh_process(tmp_path, "raise ValueError('seven')"))
    assert (row.status, row.reason) == ("failed", "ValueError: seven")


def test_processes_that_threads_wait_for_can_be_stopped(tmp_path: Path):
    started = tmp_path / "started"
    source = f"import pathlib, time; pathlib.Path({str(started)!r}).touch(); time.sleep(600)"
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(in_fresh_process, tmp_path, source)
        while not started.exists():
            time.sleep(0.05)
        stop_fresh_processes()
        with pytest.raises(ProcessDiedError):
            waiting.result(timeout=60)
