"""What a search prints: its header, its trials and the best of them."""

from __future__ import annotations

from functools import partial
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table
from rich.text import Text

from neuroada.tuning.objective import Objective, Search
from neuroada.tuning.space import Space
from neuroada.tuning.storage import folder_name

SHOWN = 20
"""Rows of the closing table; a choice."""


def header(
    search: Search, study: Study, objective: Objective, trials: int, storage: str | None
) -> list[tuple[str, str | None]]:
    """Names and values of what a search is about to do."""
    size = search.space.size
    known = sum("outcome" in trial.user_attrs for trial in study.get_trials(deepcopy=False))
    return [
        ("recipe", str(search.file)),
        *((key, each.text) for key, each in search.space.searched.items()),
        ("kept", ", ".join(f"{key}={_shown(value)}" for key, value in search.space.kept.items()) or None),
        ("combinations", None if size is None else f"{size:,}"),
        ("judged by", objective.text),
        ("trials", f"{trials:,}" + (f", of which {known:,} are done" if known else "")),
        ("seed", str(search.seed)),
        ("storage", None if storage is None else storage.split("@")[-1]),
        ("folder", str(search.output)),
    ]


def trials_table(study: Study, space: Space, objective: Objective) -> Table:
    """The trials that have ended, best first."""
    table = Table(box=None, padding=(0, 1), title=f"Trials by {objective.text}", title_justify="left")
    for title in ("run", objective.metric, *(_short(key, space) for key in space.searched), "time", ""):
        table.add_column(title, overflow="fold")
    ended = [trial for trial in study.get_trials(deepcopy=False) if "outcome" in trial.user_attrs]
    ended.sort(key=partial(_rank, maximise=objective.maximise))
    for trial in ended[:SHOWN]:
        value = f"{trial.value:.4f}" if trial.state is TrialState.COMPLETE else "-"
        chosen = [_shown(trial.params.get(key, "-")) for key in space.searched]
        took, why = f"{trial.user_attrs.get('seconds', 0.0):.0f} s", _why(trial)
        table.add_row(*map(Text, (folder_of(trial), value, *chosen, took, why)))
    if len(ended) > SHOWN:
        table.caption = f"and {len(ended) - SHOWN:,} more"
    return table


def best_trial(study: Study) -> FrozenTrial | None:
    """The best one that was trained to its end, if any was."""
    return study.best_trial if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) else None


def best_text(study: Study, objective: Objective) -> str:
    """The best so far, for the bar."""
    best = best_trial(study)
    return "" if best is None else f"best {objective.metric} {best.value:.4f} ({folder_of(best)})"


def folder_of(trial: FrozenTrial) -> str:
    """Name of the run folder of a trial."""
    return trial.user_attrs.get("folder", folder_name(trial.number))


def _rank(trial: FrozenTrial, maximise: bool) -> tuple[bool, float, int]:
    if trial.state is not TrialState.COMPLETE or trial.value is None:
        return True, 0.0, trial.number
    return False, -trial.value if maximise else trial.value, trial.number


def _why(trial: FrozenTrial) -> str:
    outcome = trial.user_attrs["outcome"]
    reason = trial.user_attrs.get("reason")
    return "" if reason is None else f"{outcome}: {reason}"


def _short(key: str, space: Space) -> str:
    last = key.split(".")[-1]
    return key if sum(each.split(".")[-1] == last for each in space.searched) > 1 else last


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
