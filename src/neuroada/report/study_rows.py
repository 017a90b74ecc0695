"""Records of studies brought together: rows, each with the cells of its best learning rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean, stdev

from neuroada.measure.record import Record, RecordedScore, best_rate

RowKey = tuple[str, float | None]
Key = tuple[str, float | None, float, int]

FEW = 3
"""As many tests are shown one by one; of more, their average alone."""


@dataclass(frozen=True)
class StudyRow:
    """A method, at a point if the study has an axis. cells: all of its trainings. first_seed: the one that chooses the
    learning rate; that of the first cell if None."""

    method: str
    point: float | None
    cells: Sequence[Record]
    first_seed: int | None = None

    @property
    def label(self) -> str:
        """Method and point."""
        return self.method if self.point is None else f"{self.method} at {self.point:g}"

    @cached_property
    def best(self) -> list[Record]:
        """Cells of the best learning rate by the held-out part with the first seed, by seed; none where all failed."""
        chosen = best_rate(self.held_out)
        return sorted((cell for cell in self._trained if _rate(cell) == chosen), key=lambda cell: cell.seed)

    @property
    def rivals(self) -> list[Record]:
        """First-seed cells of other learning rates, one of which another seed might have chosen: on the held-out part
        they reached no less than the least of the best rate's seeds."""
        chosen, least = best_rate(self.held_out), min((_selection(cell) for cell in self.best), default=0.0)
        return [cell for cell in self._choosing if _rate(cell) != chosen and _selection(cell) >= least]

    @property
    def held_out(self) -> dict[float, float]:
        """What each learning rate reached on the held-out part with the first seed, rates in ascending order."""
        return {_rate(cell): _selection(cell) for cell in sorted(self._choosing, key=_rate)}

    @property
    def _choosing(self) -> list[Record]:
        """Those of the first seed."""
        first = self.cells[0].seed if self.first_seed is None else self.first_seed
        return [cell for cell in self._trained if cell.seed == first]

    @property
    def _trained(self) -> list[Record]:
        return [cell for cell in self.cells if cell.status == "ok"]

    @property
    def tried(self) -> dict[float, bool]:
        """Learning rates in ascending order, and whether a cell of it was trained to its end."""
        rates = sorted({_rate(cell) for cell in self.cells})
        return {rate: any(_rate(cell) == rate and cell.status == "ok" for cell in self.cells) for rate in rates}

    @property
    def edge(self) -> str | None:
        """The "largest" or "smallest" of several learning rates, if that one was better than all others."""
        held_out, tried = self.held_out, list(self.tried)
        if len(held_out) < 2 or [*held_out.values()].count(max(held_out.values())) > 1:
            return None
        return {tried[0]: "smallest", tried[-1]: "largest"}.get(max(held_out, key=lambda rate: held_out[rate]))

    def values(self, test: str) -> list[float]:
        """What its best cells scored, a value a seed."""
        return _values(self.best, test)

    def rival_values(self, test: str) -> list[float]:
        """What its rivals scored, a value a learning rate."""
        return _values(self.rivals, test)

    @property
    def losses(self) -> list[float]:
        """Held-out losses of its best cells, a value a seed.

        Nats of a token, or of a classifier's record; squared error of a regression's.
        """
        return [cell.measurements["held_out_loss"].p50 for cell in self.best if "held_out_loss" in cell.measurements]

    @property
    def chosen_by_loss(self) -> bool:
        """Whether the held-out loss chose the rate, as where a task has no held-out score."""
        chosen_by = [_selection(cell) for cell in self.best]
        return bool(self.losses) and chosen_by == [-loss for loss in self.losses]

    def by_seed(self, test: str) -> dict[int, float]:
        """The same, by seed."""
        return {cell.seed: score.value for cell in self.best for score in scores_after(cell) if score.name == test}

    def mean(self, test: str) -> float | None:
        """Over seeds."""
        values = self.values(test)
        return mean(values) if values else None

    @property
    def peak_memory(self) -> float:
        """The most over seeds, of the whole process, in bytes."""
        return max(cell.measurements["peak_memory"].p50 for cell in self.best)

    def deviation(self, test: str) -> float:
        """Standard deviation over seeds; 0 for one."""
        values = self.values(test)
        return stdev(values) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class StudyResults:
    """What is recorded of one study, in the order in which its rows were first trained."""

    name: str
    rows: Sequence[StudyRow]

    @property
    def cells(self) -> list[Record]:
        """Of all rows."""
        return [cell for row in self.rows for cell in row.cells]

    @property
    def axis(self) -> str | None:
        """What its points are."""
        return self.cells[0].notes.get("axis")

    @property
    def tests(self) -> dict[str, str]:
        """Titles by name: test, metric, records; of several tests the last one is their average."""
        return {
            score.name: f"{score.name}, {score.metric} of {score.count:,}"
            for cell in self.cells
            for score in scores_after(cell)
        }

    @property
    def shown(self) -> list[str]:
        """Tests that tables have columns of; the last one is what the study is about."""
        tests = list(self.tests)
        return tests if len(tests) <= FEW else tests[-1:]

    @property
    def methods(self) -> list[str]:
        """Each once."""
        return list(dict.fromkeys(row.method for row in self.rows))

    @property
    def points(self) -> list[float]:
        """In ascending order; none without an axis."""
        return sorted({row.point for row in self.rows if row.point is not None})

    def row(self, method: str, point: float | None) -> StudyRow | None:
        """The one of this method and point."""
        return next((row for row in self.rows if (row.method, row.point) == (method, point)), None)


def studies_of(records: Iterable[Record]) -> list[StudyResults]:
    """By name, recipe, model and dtype, in the order in which their first cells were recorded; of a method's point,
    learning rate and seed the record that comes last."""
    cells: dict[tuple[str, ...], dict[Key, Record]] = {}
    newest: dict[tuple[str, ...], dict[RowKey, Record]] = {}
    for record in records:
        if record.kind == "study":
            about = record.notes["study"], record.notes["recipe"], record.shape.name, record.dtype
            key = record.method, record.settings.get("point"), _rate(record), record.seed
            cells.setdefault(about, {})[key] = record
            newest.setdefault(about, {})[key[:2]] = record
    return [StudyResults(about[0], _rows(found, newest[about])) for about, found in cells.items()]


def scores_after(cell: Record) -> list[RecordedScore]:
    """After training."""
    return [score for score in cell.scores if score.when == "after"]


def _rows(cells: Mapping[Key, Record], newest: Mapping[RowKey, Record]) -> list[StudyRow]:
    rows: dict[RowKey, list[Record]] = {}
    for (method, point, *_), cell in cells.items():
        last = newest[method, point]
        row = rows.setdefault((method, point), [])
        if _is_of(last, cell):
            row.append(cell)
    return [StudyRow(*key, row, _first_seed(newest[key])) for key, row in rows.items()]


def _is_of(last: Record, cell: Record) -> bool:
    """Whether a row has this cell by what the study's file said when the last of its records was written: it may have
    been edited since the cell was trained."""
    said = last.notes
    return (
        cell.notes.get("content") == said.get("content")
        and ("seeds" not in said or cell.seed in map(int, said["seeds"].split(", ")))
        and ("learning_rates" not in said or _rate(cell) in map(float, said["learning_rates"].split(", ")))
    )


def _first_seed(last: Record) -> int | None:
    return int(last.notes["seeds"].split(", ")[0]) if "seeds" in last.notes else None


def _rate(cell: Record) -> float:
    return float(cell.settings["learning_rate"])


def _selection(cell: Record) -> float:
    """By which learning rates are compared, larger is better."""
    return cell.measurements["selection"].p50


def _values(cells: Iterable[Record], test: str) -> list[float]:
    return [score.value for cell in cells for score in scores_after(cell) if score.name == test]
