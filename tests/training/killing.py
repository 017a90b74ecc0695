"""Train a recipe in processes that are killed, one after the other, each going on where the last one was stopped.

`python killing.py FILE`, FILE in JSON: the recipe, the run folder, and for each process the moment of its death. Prints
how each process ended, in JSON. Everything is imported once and each process is a fork, because a start takes seconds.
"""

import json
import os
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft.peft_model
import torch
from transformers import Trainer, TrainerState

import neuroada.run_folder.folder
import neuroada.training.train
from neuroada_cli.main import app


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def die_in(seconds: float) -> None:
    """At any place in the code, as a kill from outside does."""
    threading.Timer(seconds, die).start()


def cut(path: Path) -> None:
    """A file as a write leaves it that was interrupted half-way."""
    os.truncate(path, path.stat().st_size // 2)


def around(owner: Any, name: str, before: Callable | None = None, after: Callable | None = None) -> None:
    """Call something before or after a function of another module, with the function's arguments."""
    function = getattr(owner, name)

    def wrapped(*arguments, **options):
        if before is not None:
            before(*arguments, **options)
        result = function(*arguments, **options)
        if after is not None:
            after(*arguments, **options)
        return result

    setattr(owner, name, wrapped)


def in_file(part: str) -> Callable:
    """Dies half-way through the first file whose path has `part` in it; the path is the second argument."""

    def after(_: object, path: Any, *__: object, **___: object) -> None:
        if part in str(path):
            cut(Path(path))
            die()

    return after


def at_beginning(seconds: float) -> None:
    die_in(seconds)


def at_step(number: int, seconds: float) -> None:
    """So long after the beginning of the n-th step of this process."""
    steps = []

    def before(*_: object, **__: object) -> None:
        steps.append(1)
        if len(steps) == number:
            die_in(seconds)

    around(Trainer, "training_step", before)


def at_creation() -> None:
    """When the run folder exists, but not yet its recipe."""
    around(neuroada.run_folder.folder, "write_text", lambda path, _: path.name == "recipe.yaml" and die())


def at_adapter(part: str) -> None:
    around(peft.peft_model, "safe_save_file", after=in_file(part))


def at_pickle(part: str) -> None:
    around(torch, "save", after=in_file(part))


def at_state() -> None:
    """Half-way through what Trainer writes last."""
    around(TrainerState, "save_to_json", after=in_file("trainer_state.json"))


def at_removal() -> None:
    """When all of an older checkpoint is gone but what Trainer wrote last."""

    def before(path: Any, *_: object, **__: object) -> None:
        if Path(path).name.startswith("checkpoint-"):
            for file in Path(path).iterdir():
                if file.name != "trainer_state.json":
                    file.unlink()
            die()

    around(shutil, "rmtree", before)


def at_summary() -> None:
    around(neuroada.run_folder.folder, "write_text", lambda path, _: path.name == "summary.json" and die())


def on_full_disk(size: int) -> None:
    """No file may grow beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def run(recipe: str, output: Path, moment: dict[str, Any]) -> None:
    """In a process of its own: go on with the run if there is one, else begin it."""
    log = os.open(f"{output}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    code = 1
    try:
        if moment:
            globals()[moment["at"]](*moment.get("with", []))
        resume = ["--resume"] if (output / "recipe.yaml").exists() else []
        app(["train", recipe, "--output", str(output), *resume], standalone_mode=False)
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main() -> None:
    """Run all processes that the file names."""
    asked = json.loads(Path(sys.argv[1]).read_text())
    endings = []
    for moment in asked["moments"]:
        process = os.fork()
        if process == 0:
            run(asked["recipe"], Path(asked["output"]), moment)
        endings.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
    print(json.dumps(endings))


if __name__ == "__main__":
    main()
