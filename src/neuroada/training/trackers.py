"""Where a run reports while it trains besides its records: TensorBoard, W&B and Trackio, inside the run folder.

Trainer's own callbacks do the reporting. They are made here, because by themselves they write into the working
directory or the home directory, and what they log before and after training goes elsewhere again.
"""

import copy
import importlib.util
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from neuroada.errors import ConfigError, MissingInputError
from neuroada.run_folder.folder import RunFolder, write_text

PROJECT = "neuroada"
"""Of W&B, unless WANDB_PROJECT names another, and of Trackio."""


def check_trackers(names: Sequence[str], folder: RunFolder) -> None:
    """Fail where `trackers` would, before anything is loaded.

    Raises:
        MissingInputError: the package of one is not installed.
        ConfigError: one can report into one folder a process, and this process has begun with another.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingInputError(f"report_to {name}", f"package {name} is not installed", f"pip install {name}")
    begun = getattr(sys.modules.get("trackio.utils"), "TRACKIO_DIR", None)
    if "trackio" in names and begun is not None and begun != Path(_trackio_dir(folder)):
        found = f"this process has begun to log into {begun}, and Trackio keeps to one folder a process"
        raise ConfigError("report_to trackio", found, "Train in a new process, or set TRACKIO_DIR before")


@contextmanager
def trackers(
    names: Sequence[str], recipe: dict[str, Any], folder: RunFolder, step: int = 0
) -> Iterator[list[TrainerCallback]]:
    """Trainer's callbacks for the trackers of these names; what they have open is closed at the end.

    recipe: resolved. step: the last one that an interrupted run keeps; what was reported after it is done again. Only
    the first of several processes reports.

    Raises:
        MissingInputError, ConfigError: as `check_trackers`.
    """
    check_trackers(names, folder)
    with ExitStack() as stack:
        yield [stack.enter_context(_TRACKERS[name](recipe, folder, step)) for name in names if folder.writes]


def tracker_text(names: Sequence[str], folder: RunFolder) -> str | None:
    """A line of the header: where reports go, and how to look at them."""
    known = {
        "tensorboard": f"TensorBoard (tensorboard --logdir {_tensorboard_dir(folder)})",
        "wandb": f"W&B, {_wandb_text(folder)}",
        "trackio": f"Trackio (TRACKIO_DIR={_trackio_dir(folder)} trackio show --project {PROJECT})",
    }
    return "; ".join(known[name] for name in names) or None


@contextmanager
def _tensorboard(recipe: dict[str, Any], folder: RunFolder, step: int) -> Iterator[TrainerCallback]:
    from torch.utils.tensorboard import SummaryWriter

    directory = _tensorboard_dir(folder)
    callback = TensorBoardCallback(SummaryWriter(directory, purge_step=step + 1 if step else None))
    callback.logging_dir = directory  # for what is logged after training, when Trainer has closed the writer
    try:
        yield callback
    finally:
        if callback.tb_writer is not None:
            callback.tb_writer.close()


@contextmanager
def _wandb(recipe: dict[str, Any], folder: RunFolder, step: int) -> Iterator[TrainerCallback]:
    """Into the run that the caller has begun, or else into a new one, which is not sent unless WANDB_MODE says so."""
    import wandb

    if wandb.run is not None:
        yield WandbCallback()
        return
    with _environment(WANDB_CACHE_DIR=os.environ.get("WANDB_CACHE_DIR") or str(folder.path / "wandb" / "cache")):
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", folder.path.name),
            dir=_wandb_dir(folder),
            mode=None if os.environ.get("WANDB_MODE") else "offline",
            id=_wandb_id(folder),
            resume="allow" if step else None,
            config={"recipe": recipe},
            settings=wandb.Settings(quiet=True, console="off"),
        )
    try:
        yield WandbCallback()
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


class _Trackio(TrackioCallback):
    """Begins again under the same name what Trainer ends before the closing evaluation."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def setup(self, args, state, model, **kwargs):
        named = copy.copy(args)
        named.project, named.run_name = PROJECT, self.name
        super().setup(named, state, model, **kwargs)


@contextmanager
def _trackio(recipe: dict[str, Any], folder: RunFolder, step: int) -> Iterator[TrainerCallback]:
    """Trackio reads its folder when it is imported, and keeps it for the whole process."""
    with _environment(TRACKIO_DIR=_trackio_dir(folder)):
        import trackio

    callback = _Trackio(folder.path.name)
    try:
        yield callback
    finally:
        if trackio.context_vars.current_run.get() is not None:
            trackio.finish()


_TRACKERS: dict[str, Callable[..., Any]] = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _tensorboard_dir(folder: RunFolder) -> str:
    return os.environ.get("TENSORBOARD_LOGGING_DIR") or str(folder.path / "tensorboard")


def _wandb_dir(folder: RunFolder) -> str:
    return os.environ.get("WANDB_DIR") or str(folder.path)


def _wandb_id(folder: RunFolder) -> str:
    """The same each time that an interrupted run goes on."""
    path = folder.path / "wandb" / "run-id"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, uuid.uuid4().hex[:8])
    return path.read_text(encoding="utf-8")


def _wandb_text(folder: RunFolder) -> str:
    mode = os.environ.get("WANDB_MODE", "offline")
    if mode != "offline":
        return f"{mode}, as WANDB_MODE says"
    return f"not sent (wandb sync {_wandb_dir(folder)}/wandb/offline-run-*, or WANDB_MODE=online before training)"


def _trackio_dir(folder: RunFolder) -> str:
    return os.environ.get("TRACKIO_DIR") or str(folder.path.absolute() / "trackio")
