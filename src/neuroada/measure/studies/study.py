"""A study: its cells trained, here or on several machines at once, and what they scored."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from rich.console import Console

from neuroada.measure.bars import counting
from neuroada.measure.machine import provenance
from neuroada.measure.process import call_in_fresh_process, stop_fresh_processes
from neuroada.measure.record import Record, best_rate
from neuroada.measure.rounds import Row
from neuroada.measure.studies.grid import Cell, GridRow, Study, load_study, rows_of
from neuroada.measure.studies.run import run_fields, run_record
from neuroada.recipe.schema import Recipe
from neuroada.run_folder.complete import complete_summary
from neuroada.run_folder.folder import RunFolder

LOCKS = ".locks"
"""Folder, in that of the cells, of the locks on cells that are being trained."""

TRAINING = ".training"
"""End of the name of the lock that the training process itself has: it may outlive the study that started it."""

PATIENCE = 5.0
"""Seconds that a cell which another process is training is waited for, before the next cell is looked at."""


@dataclass
class _Progress:
    """How far a row has come. scored: by learning rate what its first seed reached, None where it failed."""

    row: GridRow
    scored: dict[float, float | None] = field(default_factory=dict)

    def others(self) -> list[Cell]:
        """The cells of the best rate with the other seeds; none if every rate failed."""
        best = best_rate({rate: value for rate, value in self.scored.items() if value is not None})
        return [] if best is None else [self.row.cell(best, seed) for seed in self.row.study.seeds[1:]]


def run_study(
    path: Path,
    output: Path,
    values: Mapping[str, Any],
    console: Console,
    threads: int | None = None,
    processes: int = 1,
    keep: Callable[[Record], None] = lambda _: None,
) -> list[Record]:
    """Train every cell that `output` does not have yet; one record for each cell, failures too.

    Cells that were interrupted go on. Several calls, on several machines too, may share an `output`: each cell is
    locked while it is trained, and all of them end with all cells.

    Args:
        path: of the study file.
        output: folder of the cells' run folders.
        values: dotted keys set in every recipe, such as data.data_dir.
        console: for the bar.
        threads: of each cell's process; None for PyTorch's own.
        processes: how many cells are trained at a time.
        keep: called with each record as soon as its cell ends.
    """
    study = load_study(path)
    rows = [_Progress(row) for row in rows_of(study, values)]
    waiting = deque((each, cell) for each in rows for cell in _first_cells(each.row))
    total = len(waiting) + len(rows) * (len(study.seeds) - 1)
    running: dict[Future[Record | None], tuple[_Progress, Cell]] = {}
    records = []
    with counting(console, "Cells", total) as advance, ThreadPoolExecutor(processes) as pool, _stopping():
        while waiting or running:
            while waiting and len(running) < processes:
                place = waiting.popleft()
                advance(place[1].name, 0)
                running[pool.submit(_attempt, place[1], _fields(study, path, place[1]), output, threads)] = place
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                each, cell = running.pop(future)
                record = future.result()
                if record is None:
                    waiting.append((each, cell))
                    continue
                records.append(record)
                keep(record)
                advance("", 1)
                if cell.recipe.seed != study.seeds[0]:
                    continue
                each.scored[cell.learning_rate] = (
                    record.measurements["selection"].p50 if record.status == "ok" else None
                )
                if len(each.scored) == len(each.row.learning_rates):
                    others = each.others()
                    waiting.extendleft((each, other) for other in reversed(others))
                    advance("", 0 if others else len(study.seeds) - 1)
    return records


@contextmanager
def _stopping() -> Iterator[None]:
    """An interrupt ends the cells too; they go on the next time."""
    try:
        yield
    except KeyboardInterrupt:
        stop_fresh_processes()
        raise


def _first_cells(row: GridRow) -> Iterator[Cell]:
    for rate in row.learning_rates:
        yield row.cell(rate, row.study.seeds[0])


def _attempt(cell: Cell, fields: Mapping[str, Any], output: Path, threads: int | None) -> Record | None:
    """Train a cell, or read what it reached, under any label; None while another process trains it.

    fields: those of its record that the study tells.
    """
    row = Row(cell.label)
    locks = output / LOCKS
    locks.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(locks / cell.digest, timeout=PATIENCE):
            with FileLock(locks / f"{cell.digest}{TRAINING}", timeout=PATIENCE):
                pass  # a process whose study was killed may still train it
            record = row.attempt(partial(_train, cell, fields, _folder_of(cell, output), threads))
    except Timeout:
        return None
    if record is not None and "selection" not in record.measurements:
        row.fail("failed", "its score on the held-out part is not a finite number")
    return record if row.status == "ok" else _failure(cell, fields, row)


def _folder_of(cell: Cell, output: Path) -> Path:
    """Where the cell is, under whatever label, or is to be: a complete one first, then the one of its own name."""
    found = [*output.glob(f"*-{cell.digest}")] or [output / cell.name]
    return min(found, key=lambda path: (not RunFolder(path).summary.is_file(), path.name != cell.name, path.name))


def _train(cell: Cell, fields: Mapping[str, Any], output: Path, threads: int | None) -> Record:
    folder = RunFolder(output)
    if folder.summary.is_file():
        complete_summary(cell.recipe, folder)
    else:
        arguments = {"recipe": cell.recipe, "output": output, "digest": cell.digest, "threads": threads}
        call_in_fresh_process(train_cell, arguments, threads)
    return run_record(folder, fields)


def train_cell(recipe: Recipe, output: Path, digest: str, threads: int | None) -> dict[str, Any]:
    """The summary of a run that is complete, or is completed now, with the cell of this digest locked.

    Raises:
        MergeError: its merged model is not the adapted one, although its method promises that.
    """
    from neuroada.training.train import train

    if threads is not None:
        torch.set_num_threads(threads)
    folder = RunFolder(output)
    locks = output.parent / LOCKS
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{digest}{TRAINING}"):
        if not folder.summary.is_file():
            train(recipe, output, Console(quiet=True), resume=folder.recipe.is_file())
        return complete_summary(recipe, folder)


def _fields(study: Study, path: Path, cell: Cell) -> dict[str, Any]:
    """Those of a cell's record that its study tells."""
    point = {} if cell.point is None else {"point": cell.point}
    axis = {} if study.axis is None else {"axis": study.axis.name}
    about = {"study": path.stem, "recipe": study.recipe, "cell": cell.name, "content": cell.row_content}
    rates = sorted(rate for change in study.changes(cell.label, cell.point) for rate in change.learning_rates)
    tried = {"seeds": ", ".join(map(str, study.seeds)), "learning_rates": ", ".join(map(str, rates))}
    return {
        "kind": "study",
        "method": cell.label,
        "settings": {"learning_rate": cell.learning_rate, **point},
        "notes": {**about, **tried, **axis},
    }


def _failure(cell: Cell, fields: Mapping[str, Any], row: Row) -> Record:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    failure = {"status": row.status, "reason": row.reason}
    return Record(**provenance(device, cell.recipe.seed), **run_fields(cell.recipe), **fields, **failure)
