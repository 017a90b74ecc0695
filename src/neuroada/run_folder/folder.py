"""The folder of a run: the resolved recipe, the environment, records, checkpoints, and the adapter."""

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from neuroada.errors import ConfigError, DamagedRunError, NeuroAdaError, RunFolderError
from neuroada.recipe.data import PLACES
from neuroada.recipe.loading import load_recipe
from neuroada.recipe.methods import ADAPTERS
from neuroada.run_folder.strict_json import to_json

LOCK = ".lock"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RunFolder:
    """Paths of a run folder and the only code that writes there, except for Trainer's checkpoints."""

    def __init__(self, path: Path, writes: bool = True):
        """Name the folder; nothing is read or written yet. writes: false in all processes of a run but the first."""
        self.path, self.writes = path, writes
        self.recipe = path / "recipe.yaml"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.summary = path / "summary.json"
        self.checkpoints = path / "checkpoints"
        self.adapter = path / "adapter"
        self.model = path / "model"

    def check_fresh(self) -> None:
        """Fail unless `create` can make this folder: it is new or empty, and can be written."""
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"run folder {self.path}", "it is a file", "Choose another --output")
        if self.path.is_dir() and not all(self._is_left_over(path) for path in self.path.iterdir()):
            found = "it exists already and is not empty"
            unfinished = self.recipe.is_file() and not self.summary.exists()
            do = "Choose another --output" + (", or continue that run with --resume" if unfinished else "")
            raise RunFolderError(f"run folder {self.path}", found, do)
        parent = next(p for p in [self.path, *self.path.absolute().parents] if p.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            found = f"{parent} is {'not writable' if parent.is_dir() else 'a file, not a folder'}"
            raise RunFolderError(f"run folder {self.path}", found, "Choose an --output that can be written")

    def _is_left_over(self, path: Path) -> bool:
        """Whether `create` was killed when it had written this, and not yet the recipe."""
        before_recipe = self.environment.name, f".{self.environment.name}.", f".{self.recipe.name}."
        return path.name.startswith(before_recipe) and not self.recipe.exists()

    def require_begun(self) -> None:
        """Fail unless a run was begun in this folder."""
        if not self.recipe.is_file():
            asked, do = f"--resume in {self.path}", "Leave --resume out, or name the run's folder"
            raise RunFolderError(asked, "there is no run in it", do)

    def check_resumable(self, recipe: str) -> None:
        """Fail unless this folder holds an unfinished run of this resolved recipe; its data may lie elsewhere now."""
        asked = f"--resume in {self.path}"
        self.require_begun()
        if self.summary.exists():
            do = "Begin another one without --resume: a complete run is not trained longer"
            raise RunFolderError(asked, "that run is complete", do)
        changed = self.changed_since(recipe)
        if changed:
            found = f"the run was begun with another recipe; now: {changed}"
            raise ConfigError(asked, found, "Give the same recipe and options, or begin a new run")

    def changed_since(self, recipe: str) -> str:
        """Lines of a resolved recipe that the run was not begun with, "" if none; its data may lie elsewhere now."""
        before, now = load_recipe(self.recipe).resolved(), yaml.safe_load(recipe)
        for each in before, now:  # keys that recipes did not have when the run was begun have their defaults in both
            for place in PLACES:
                each["data"].pop(place, None)
        if before == now:
            return ""
        old, new = (yaml.safe_dump(each, sort_keys=False).splitlines() for each in (before, now))
        return "; ".join(line.strip() for line in new if line not in old) or "fewer keys"

    def check_same_course(self, course: Mapping[str, Any]) -> None:
        """Fail if what a run's course depends on beside its recipe is not what `create` wrote into the environment."""
        began = self._read_environment("what it was begun with")
        changed = {name: value for name, value in course.items() if began.get(name, value) != value}
        if changed:
            found = "; ".join(f"begun with {name} = {began[name]}, now {value}" for name, value in changed.items())
            do = "Use as many processes, the same data and the same kind of machine as before, or begin a new run"
            raise ConfigError(f"--resume in {self.path}", found, do)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in this folder, which is there. Processes that do not write pass.

        Raises:
            RunFolderError: one does already.
        """
        if not self.writes:
            yield
            return
        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            do = "Wait for it, or stop it before you resume"
            raise RunFolderError(f"run folder {self.path}", "another process is training in it", do) from None
        try:
            yield
        finally:
            (self.path / LOCK).unlink(missing_ok=True)
            lock.release()

    @contextmanager
    def saying_what_is_full(self) -> Iterator[None]:
        """A disk without space becomes a RunFolderError; what was complete before stays."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            if getattr(error, "errno", None) not in NO_SPACE and not re.search(r"os error (28|122|27)\b", str(error)):
                raise
            do = f"Make room, and go on with neuroada train --resume --output {self.path}"
            raise RunFolderError(f"run folder {self.path}", "there is no space left to write to", do) from error

    def create(self, recipe: str, environment: dict[str, Any]) -> None:
        """Make the folder, with the resolved recipe and the environment in it."""
        if not self.writes:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(self.environment, to_json(environment, indent=2) + "\n")
            write_text(self.recipe, recipe)
        except OSError as error:
            do = "Choose an --output that can be written"
            raise RunFolderError(f"run folder {self.path}", error.strerror or str(error), do) from error

    def read_labels(self) -> list[str]:
        """Names of the classes that the run's data had, label 0 first, of a task whose data tells them.

        Raises:
            RunFolderError: they are not in the folder, or cannot be read.
        """
        what = "which classes it was trained on"
        labels = self._read_environment(what).get("labels")
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise self._incomplete(what, f"labels: {labels}")
        return labels

    def _read_environment(self, what: str) -> dict[str, Any]:
        try:
            content = json.loads(self.environment.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._incomplete(what, str(error)) from error
        if not isinstance(content, dict):
            raise self._incomplete(what, "it is not a mapping")
        return content

    def _incomplete(self, what: str, why: str) -> RunFolderError:
        found = f"{self.environment.name} does not say {what} ({why})"
        return RunFolderError(f"run folder {self.path}", found, "Copy the whole folder again")

    def record(self, event: str, **values: Any) -> None:
        """Append one record to metrics.jsonl."""
        if not self.writes:
            return
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(to_json({"event": event, **values}) + "\n")

    def records(self, event: str) -> list[dict[str, Any]]:
        """The records of one kind so far, oldest first."""
        return [record for record in self._all_records() if record["event"] == event]

    def rewind(self, step: int) -> None:
        """Drop the records of what a resumed run does again: steps after `step`, and the closing evaluation; and half a
        record that was being written when the run was killed."""
        if not self.writes:
            return
        kept = [r for r in self._all_records() if r.get("step", 0) <= step and r.get("when") != "after"]
        write_text(self.metrics, "".join(to_json(record) + "\n" for record in kept))

    def best_checkpoint(self, newest: Path) -> Path:
        """The one that Trainer loads at the end: of the best evaluation if there were any, or else the newest."""
        step = json.loads((newest / "trainer_state.json").read_text(encoding="utf-8")).get("best_global_step")
        best = newest.with_name(f"checkpoint-{step}")
        return best if _is_complete(best) else newest

    def last_checkpoint(self) -> Path | None:
        """The newest complete checkpoint of Trainer's, if there is one."""
        found = [path for path in self.checkpoints.glob("checkpoint-*") if _is_complete(path)]
        return max(found, key=lambda path: int(path.name.split("-")[1]), default=None)

    def trained(self, method: str) -> Path:
        """Where a method's result is saved: an adapter, or a whole model where base weights were trained."""
        return self.adapter if method in ADAPTERS else self.model

    def write_answers(self, when: str, answers: list[dict[str, Any]]) -> None:
        """Keep what the model answered to the tests, "before" or "after" training, a record a line."""
        lines = [to_json(answer, ensure_ascii=False) + "\n" for answer in answers]
        write_text(self.path / f"answers-{when}.jsonl", "".join(lines))

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary: from here on the run counts as complete."""
        if self.writes:
            write_text(self.summary, to_json(summary, indent=2) + "\n")

    def read_summary(self) -> dict[str, Any]:
        """What `finish` wrote; a held-out value that was not finite is NaN again."""
        read = json.loads(self.summary.read_text(encoding="utf-8"))
        if not isinstance(read, dict):
            raise TypeError(f"{self.summary.name} is not a mapping")
        lost = [name for name, value in read.items() if value is None and name.startswith("held_out_")]
        return read | dict.fromkeys(lost, math.nan)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """What goes wrong as a complete run is read becomes a DamagedRunError: a file or a part of it is missing."""
        try:
            yield
        except NeuroAdaError:
            raise
        except (OSError, AttributeError, LookupError, TypeError, ValueError) as error:
            found = f"its run is complete, but cannot be read ({type(error).__name__}: {error})"
            do = "Copy the whole folder again, or delete it and train again"
            raise DamagedRunError(f"run folder {self.path}", found, do) from error

    def _all_records(self) -> list[dict[str, Any]]:
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]


def _is_complete(checkpoint: Path) -> bool:
    """Whether Trainer came to the end of writing it: trainer_state.json is the last file."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def write_text(path: Path, content: str) -> None:
    """Write beside, then rename: readers see the old file or the new one, never a part."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(content, encoding="utf-8")
    beside.replace(path)


def require_place(file: Path, asked: str) -> None:
    """Make the folder of a file that is to be written, or replaced, later.

    Raises:
        ConfigError: no file can be written there. asked: what named it.
    """
    do = "Name a file that can be written"
    if file.is_dir():
        raise ConfigError(f"{asked} {file}", "it is a folder", do)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{asked} {file}", error.strerror or str(error), do) from error
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{asked} {file}", "its folder cannot be written to", do)


@contextmanager
def whole_folder(path: Path, *, keep_existing: bool = False) -> Iterator[Path]:
    """A folder to fill beside `path`, which takes its place at the end, or is removed after an exception.

    With `keep_existing`, a `path` that another process made meanwhile stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        yield beside
        if not keep_existing:
            shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            beside.rename(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
