"""One trial of a search: a run trained in a process of its own, watched while it trains."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import TrainerCallback, TrainerState

from neuroada.errors import NeuroAdaError
from neuroada.recipe.loading import to_yaml
from neuroada.recipe.schema import Recipe
from neuroada.run_folder.folder import RunFolder

LOOKS = 10
"""Held-out evaluations in a trial that may be stopped early, where the recipe itself asks for none; a choice."""

Advance = Callable[[int, int], None]
"""Told how many steps are done, and of how many."""

Judge = Callable[[int, float], bool]
"""Told which evaluation of a trial this is, from 1, and its held-out value; says whether to stop."""


class StoppedError(Exception):
    """The search gave this trial up, because others were better at the same stage."""


class TrialError(Exception):
    """The training failed; the message says why."""


class Watch(TrainerCallback):
    """Tells of a training's steps, and of held-out values where there is a judge, who may end it."""

    def __init__(self, advance: Advance, judge: Judge | None = None):
        """Without a judge, held-out values are not asked for."""
        self.advance, self.judge = advance, judge
        self.training = False

    def on_train_begin(self, args, state, control, **kwargs):
        """What comes now is training, and not the evaluation before it."""
        self.training = True

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for an evaluation at each tenth, unless the recipe evaluates each epoch."""
        self.advance(state.global_step, state.max_steps)
        if self.judge and not args.load_best_model_at_end and state.global_step % _between(state) == 0:
            control.should_evaluate = state.global_step < state.max_steps

    def on_evaluate(self, args, state, control, **kwargs):
        """Ask the judge, while there is something left to save."""
        if self.judge and self.training:
            look = round(state.epoch) if args.load_best_model_at_end else state.global_step // _between(state)
            if self.judge(look, float(kwargs["metrics"][f"eval_{args.metric_for_best_model}"])):
                raise StoppedError(f"stopped at step {state.global_step:,}, behind the median of the others")

    def on_train_end(self, args, state, control, **kwargs):
        """What comes now is the closing evaluation."""
        self.training = False


def _between(state: TrainerState) -> int:
    """Steps from one look to the next."""
    return max(1, state.max_steps // LOOKS)


def train_here(recipe: Recipe, folder: Path, advance: Advance, judge: Judge | None, console: Console) -> dict[str, Any]:
    """The summary of a run that is complete, or is completed now: its tests are never looked at.

    Raises:
        RunFolderError: the folder holds something else than a run of this recipe, or one that is damaged.
        DivergedError: it left the finite numbers. StoppedError: as `Watch`.
    """
    from neuroada.run_folder.complete import complete_summary
    from neuroada.training.train import train

    run = RunFolder(folder)
    begun = holds(folder, recipe)
    if begun and run.summary.is_file():
        return complete_summary(recipe, run)
    if not run.recipe.is_file():  # killed as it made the folder
        run.environment.unlink(missing_ok=True)
    summary = train(recipe, folder, console, resume=begun, callbacks=[Watch(advance, judge)], score_tests=False)
    assert summary is not None
    return summary


def holds(folder: Path, recipe: Recipe) -> bool:
    """Whether there is a run of just this recipe in a folder."""
    path = RunFolder(folder).recipe
    return path.is_file() and path.read_text(encoding="utf-8") == to_yaml(recipe)


def train_in_fresh_process(recipe: Recipe, folder: Path, advance: Advance, judge: Judge | None) -> dict[str, Any]:
    """`train_here` in a process that ends with this one; what it prints is kept in FOLDER.log.

    Raises:
        TrialError: the training failed, or the system killed its process.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (theirs, recipe, folder, judge is not None)
    process = context.Process(target=_train_for, args=arguments, name=folder.name)
    process.start()
    theirs.close()
    try:
        while True:
            kind, *content = ours.recv()
            if kind == "step":
                advance(*content)
            elif kind == "held out" and judge is not None:
                ours.send(judge(*content))
            elif kind == "trained":
                return content[0]
            else:
                raise content[0]
    except EOFError:
        process.join()
        why = f"it was ended by signal {-process.exitcode}" if process.exitcode and process.exitcode < 0 else "it ended"
        found = f"its process gave no answer: {why}; {log_of(folder)} may say why"
        raise TrialError(found) from None
    finally:
        process.join(timeout=10)  # after Ctrl-C it has been interrupted too
        process.kill()
        process.join()
        ours.close()


def log_of(folder: Path) -> Path:
    """Where a trial's process prints."""
    return folder.with_name(f"{folder.name}.log")


def _train_for(connection: Connection, recipe: Recipe, folder: Path, judged: bool) -> None:
    """The trial's process."""
    _end_with_parent()
    _print_into(log_of(folder))

    def judge(look: int, value: float) -> bool:
        connection.send(("held out", look, value))
        return connection.recv()

    def advance(step: int, steps: int) -> None:
        connection.send(("step", step, steps))

    try:
        import neuroada  # noqa: F401 (makes the method known to PEFT)

        console = Console(width=120, highlight=False)
        summary = train_here(recipe, folder, advance, judge if judged else None, console)
        connection.send(("trained", summary))
    except KeyboardInterrupt:
        sys.exit(130)
    except (NeuroAdaError, StoppedError) as error:
        connection.send(("failed", error))
    except Exception as error:  # of whatever kind: the search goes on, and the log has the traceback
        connection.send(("failed", TrialError(describe(error))))
        raise


def describe(error: Exception) -> str:
    """An error in one line."""
    first = (str(error).strip().splitlines() or [""])[0]
    return first if isinstance(error, NeuroAdaError) else f"{type(error).__name__}: {first}".removesuffix(": ")


def _end_with_parent() -> None:
    """A trial whose search was killed must not write on: the next search may take it up again."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _print_into(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(file, stream.fileno())
    os.close(file)
