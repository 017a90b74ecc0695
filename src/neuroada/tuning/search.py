"""Search a recipe's values: propose, train, judge by the held-out part, and write out the best."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from neuroada.errors import ConfigError, DamagedRunError, DivergedError, MissingInputError, RunFolderError
from neuroada.recipe.loading import to_yaml
from neuroada.recipe.schema import Recipe
from neuroada.run_folder.folder import write_text
from neuroada.run_folder.summary import print_pairs
from neuroada.tuning import storage as storing
from neuroada.tuning.objective import Objective, Search
from neuroada.tuning.space import check_space
from neuroada.tuning.table import best_text, best_trial, folder_of, header, trials_table
from neuroada.tuning.trial import (
    Advance,
    Judge,
    StoppedError,
    describe,
    holds,
    train_here,
    train_in_fresh_process,
)

Outcome = tuple[TrialState, float | None, dict[str, Any]]
"""State and value of a trial, and what to note of it."""


def tune(
    search: Search,
    console: Console,
    *,
    trials: int = 20,
    storage: str | None = None,
    name: str | None = None,
    prune: bool = False,
    in_process: bool = False,
) -> optuna.Study:
    """Train up to `trials` trials, those of earlier calls and of other machines with the same storage among them.

    Each is a run folder trial-NNNN in the search's output; the best recipe is written there as best.yaml.
    storage: as `open_study`. name: of the study in it; by default the recipe's. prune: stop trials that are behind the
    median of the others. in_process: train in this process, and not in a new one for each trial.

    Raises:
        ConfigError: the space does not fit the recipe, or the storage holds another search.
        MissingInputError, RunFolderError: the model or data is not there, or the disk is not, for any trial.
    """
    if trials < 1:
        raise ConfigError(f"--trials {trials}", "a search needs at least one", "Give a number above 0")
    check_space(search.space, search.file, search.overrides, search.values or {})
    objective = Objective.of(search.first.data.task)
    asked = {"recipe": search.first.resolved(), "space": search.space.plain, "seed": search.seed}
    study = storing.open_study(
        storage,
        name or search.file.name,
        search.output,
        maximise=objective.maximise,
        prune=prune,
        asked=asked,
    )
    print_pairs(console, "Search", header(search, study, objective, trials, storage))
    train = partial(train_here, console=Console(quiet=True)) if in_process else train_in_fresh_process
    with _bars(console) as progress:
        worker = _Worker(study, search, objective, train, prune, progress)
        bar = progress.add_task("Trials", total=trials, what="")
        while left := worker.left(trials):
            progress.update(bar, completed=trials - left, what=best_text(study, objective))
            worker.run_one()
            _write_best(study, search)
        progress.update(bar, completed=trials, what=best_text(study, objective))
    console.print(trials_table(study, search.space, objective))
    return study


@dataclass(frozen=True)
class _Worker:
    """What one process does for a study."""

    study: optuna.Study
    search: Search
    objective: Objective
    train: Callable[[Recipe, Path, Advance, Judge | None], dict[str, Any]]
    prune: bool
    progress: Progress

    def left(self, trials: int) -> int:
        """How many of `trials` nobody has begun; 0 also where all combinations of a space have been tried."""
        storing.requeue_dead(self.study)
        known = self.study.get_trials(deepcopy=False)
        begun = [each for each in known if each.state is TrialState.RUNNING or "outcome" in each.user_attrs]
        combinations = {str(sorted(each.params.items())) for each in begun}
        if self.search.space.size is not None and len(combinations) >= self.search.space.size:
            return 0
        return max(0, trials - len(begun))

    def run_one(self) -> None:
        """Propose, train and note one trial; an interrupted one is queued again."""
        trial = self.study.ask()
        self.study.sampler = storing.sampler(self.search.seed, trial.number)
        bar, began = self.progress.add_task(f"Trial {trial.number}", total=None, what=""), time.perf_counter()
        try:
            with storing.alive(trial):
                state, value, notes = self._outcome(trial, bar)
                for key, note in {**notes, "seconds": time.perf_counter() - began}.items():
                    trial.set_user_attr(key, note)
        except BaseException:
            storing.requeue(self.study, self.study.trials[trial.number])
            raise
        finally:
            self.progress.remove_task(bar)
        self.study.tell(trial, value, state=state, skip_if_finished=True)  # others may have taken it for dead

    def _outcome(self, trial: optuna.Trial, bar: TaskID) -> Outcome:
        """A trial that diverged counts as pruned: the sampler keeps away from pruned ones, and forgets failed ones."""
        chosen = self.search.space.suggest(trial)
        twin = self._twin(trial)
        if twin is not None:
            return TrialState.COMPLETE, twin.value, {"outcome": "known", "reason": f"the same as {folder_of(twin)}"}

        def advance(step: int, steps: int) -> None:
            self.progress.update(bar, completed=step, total=steps)

        def judge(look: int, value: float) -> bool:
            trial.report(value, look)
            return trial.should_prune()

        try:
            recipe = self.search.recipe(chosen)
            folder = self._folder(trial, recipe)
            summary = self.train(recipe, folder, advance, judge if self.prune else None)
            return TrialState.COMPLETE, self.objective.value(summary), {"outcome": "trained"}
        except DivergedError as error:
            return TrialState.PRUNED, None, {"outcome": "diverged", "reason": error.found}
        except StoppedError as error:
            return TrialState.PRUNED, None, {"outcome": "stopped", "reason": str(error)}
        except DamagedRunError as error:  # of this trial alone
            return TrialState.FAIL, None, {"outcome": "failed", "reason": describe(error)}
        except (MissingInputError, RunFolderError):  # of every trial alike
            raise
        except Exception as error:  # of whatever kind: the search goes on without it
            return TrialState.FAIL, None, {"outcome": "failed", "reason": describe(error)}

    def _folder(self, trial: optuna.Trial, recipe: Recipe) -> Path:
        """A trial that is tried again goes on in its first folder, if that is at hand and looks the same from here."""
        first = trial.user_attrs.get("folder")
        own = storing.folder_name(trial.number)
        name = first if first is not None and holds(self.search.output / first, recipe) else own
        trial.set_user_attr("folder", name)
        return self.search.output / name

    def _twin(self, trial: optuna.Trial) -> FrozenTrial | None:
        """A finished trial with the same values; training is deterministic, so its result is this one's too."""
        finished = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return next((each for each in finished if each.params == trial.params), None)


def _write_best(study: optuna.Study, search: Search) -> None:
    best = best_trial(study)
    if best is not None:
        chosen = search.space.kept | {
            key: each.value_of(best.params[key]) for key, each in search.space.searched.items()
        }
        search.output.mkdir(parents=True, exist_ok=True)
        write_text(search.output / "best.yaml", to_yaml(search.recipe(chosen)))


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[what]}"),
        console=console,
        transient=True,
    )
