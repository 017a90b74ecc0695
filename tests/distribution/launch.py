"""Start the worker in two processes that talk over gloo, and end it if it hangs."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from .courses import Course

PROCESSES = 2
SECONDS = 300
"""After so long the workers print where they are and end; a choice, ten times what they take on two busy cores."""
GRACE = 60


def launch(kind: str, folder: Path, courses: list[Course]) -> str:
    """Run the worker's part `kind` on some courses under torchrun; its output.

    torchrun itself binds a free port, and its workers use the store there. Fails with their output.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "courses.json").write_text(json.dumps([asdict(course) for course in courses]))
    tests = Path(__file__).parents[1]
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command = [*run, f"--nproc-per-node={PROCESSES}", "-m", "distribution.worker", kind, str(folder), str(SECONDS)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tests), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    environment.pop("ACCELERATE_USE_FSDP", None)
    log = folder / "output.txt"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=folder)
        try:
            code = process.wait(SECONDS + GRACE)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:  # torchrun ends its workers when it is asked to end
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(GRACE)
                except subprocess.TimeoutExpired:
                    process.kill()
    output = log.read_text()
    assert code == 0, f"{kind} workers ended with {code}:\n{output[-20_000:]}"
    return output
