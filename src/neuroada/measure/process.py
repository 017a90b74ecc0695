"""Call a function in a process of its own."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CALL = """
import pickle, sys
function, arguments = pickle.load(open(sys.argv[1], "rb"))
answer = function(**arguments)
pickle.dump(answer, open(sys.argv[2], "wb"))
"""


_running: set[subprocess.Popen[str]] = set()


class ProcessDiedError(RuntimeError):
    """The process ended without an answer."""


def stop_fresh_processes() -> None:
    """End those that threads of this process wait for: an interrupt reaches the main thread alone."""
    for process in [*_running]:
        process.terminate()


def call_in_fresh_process(function: Callable[..., Any], arguments: dict[str, Any], threads: int | None = None) -> Any:
    """`function(**arguments)` in a new Python process; function and arguments must be importable and picklable.

    threads: of the process, from its start; None leaves the environment as it is.

    Raises:
        MemoryError: the system killed the process, as Linux does when memory runs out.
        ProcessDiedError: it ended in any other way without an answer; the message ends with what it printed.
    """
    environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "asked"), Path(folder, "answered")
        asked.write_bytes(pickle.dumps((function, arguments)))
        command = [sys.executable, "-c", _CALL, str(asked), str(answered)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as done:
            _running.add(done)
            try:
                _, errors = done.communicate()
            except BaseException:
                done.kill()
                raise
            finally:
                _running.discard(done)
        if done.returncode == 0:
            return pickle.loads(answered.read_bytes())
    if sys.platform != "win32" and done.returncode == -signal.SIGKILL:
        raise MemoryError("the system killed the process")
    raise ProcessDiedError((errors.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
