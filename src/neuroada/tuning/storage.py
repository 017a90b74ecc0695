"""Where a search keeps its trials, and which of them have lost the process that trained them."""

import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
import psutil
import yaml
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from neuroada.errors import ConfigError, RunFolderError
from neuroada.recipe.data import PLACES

HEARTBEAT = 60.0
"""Seconds between signs of life of a trial; a choice: a line of the journal a minute."""

SILENCE = 600.0
"""Seconds without a sign of life after which another machine's trial counts as dead; a choice, far above HEARTBEAT."""

RETRIES = 3
"""How often a trial whose process died is tried again; a choice: settings that exhaust a machine would do so again."""


def open_study(
    storage: str | None, name: str, output: Path, *, maximise: bool, prune: bool, asked: Mapping[str, Any]
) -> optuna.Study:
    """The study `name` in `storage`: an Optuna URL, a journal file, or by default a journal file in `output`.

    asked: what is searched; trials of anything else cannot go into the same study.

    Raises:
        ConfigError: the storage cannot be opened, or its study of that name searches something else.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=_open_storage(storage, output),
        study_name=name,
        direction="maximize" if maximise else "minimize",
        pruner=MedianPruner() if prune else NopPruner(),
        load_if_exists=True,
    )
    known = study.user_attrs.get("asked")
    if known is None:
        study.set_user_attr("asked", dict(asked))
    elif _comparable(known) != _comparable(asked):
        raise ConfigError(
            f"search {name!r} in {storage or output}",
            f"it was begun with something else; now: {_difference(known, asked)}",
            "Give the same recipe and options, or another --output or --name",
        )
    return study


def sampler(seed: int, number: int) -> TPESampler:
    """Proposes the values of one trial: the same ones wherever and whenever the trials before it ended the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(seed=(seed * 1_000_003 + number) % 2**32, constant_liar=True)


@contextmanager
def alive(trial: optuna.Trial) -> Iterator[None]:
    """Signs of life in the storage for as long as the trial trains here."""
    me = psutil.Process()
    trial.set_user_attr("worker", {"host": socket.gethostname(), "pid": me.pid, "began": me.create_time()})
    trial.set_user_attr("alive", time.time())
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT):
            with suppress(Exception):  # a storage out of reach for a moment: the next sign may arrive
                trial.set_user_attr("alive", time.time())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def requeue_dead(study: optuna.Study) -> list[int]:
    """Fail the trials whose process has died, and queue their values again; numbers of those that were dead."""
    dead = [each for each in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)) if _is_dead(each)]
    return [trial.number for trial in dead if requeue(study, trial, died=True)]


def requeue(study: optuna.Study, trial: FrozenTrial, *, died: bool = False) -> bool:
    """Fail a trial that was not finished, and queue its values, unless its processes died too often.

    Returns whether it was this call that failed it.
    """
    try:
        study.tell(trial.number, state=TrialState.FAIL)
    except (ValueError, optuna.exceptions.UpdateFinishedTrialError):  # another machine did it first
        return False
    retries = trial.user_attrs.get("retries", 0) + died
    if retries <= RETRIES:
        folder = trial.user_attrs.get("folder", folder_name(trial.number))
        study.enqueue_trial(trial.params, user_attrs={"retries": retries, "folder": folder})
    return True


def folder_name(number: int) -> str:
    """Of the run folder of a trial."""
    return f"trial-{number:04d}"


def _is_dead(trial: FrozenTrial) -> bool:
    worker = trial.user_attrs.get("worker")
    if worker is not None and worker["host"] == socket.gethostname():
        try:
            return psutil.Process(worker["pid"]).create_time() != worker["began"]
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False
    began = trial.datetime_start.timestamp() if trial.datetime_start else time.time()
    return time.time() - trial.user_attrs.get("alive", began) > SILENCE


def _open_storage(storage: str | None, output: Path) -> BaseStorage:
    if storage is not None and "://" in storage:
        asked = f"--storage {storage.partition('://')[0]}://..."
        try:
            return RDBStorage(storage, engine_kwargs={"pool_pre_ping": True})
        except Exception as error:  # whatever the database's driver raises
            found = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(asked, found, "Give a URL that SQLAlchemy opens, such as sqlite:///trials.db") from error
    path = output / "trials.journal" if storage is None else Path(storage).expanduser()
    asked = f"journal of trials {path}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = JournalFileOpenLock(str(path)) if sys.platform == "win32" else None
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except OSError as error:
        raise RunFolderError(asked, error.strerror or str(error), "Choose one that can be written") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(asked, "it is no journal of Optuna's, or a damaged one", "Choose another file") from error


def _comparable(asked: Mapping[str, Any]) -> dict[str, Any]:
    recipe = dict(asked["recipe"])
    recipe["data"] = {key: value for key, value in recipe["data"].items() if key not in PLACES}
    return {**asked, "recipe": recipe}


def _difference(known: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    before, now = (yaml.safe_dump(_comparable(each), sort_keys=False).splitlines() for each in (known, asked))
    changed = [line.strip() for line in now if line not in before]
    return "; ".join(changed) or "fewer keys"
