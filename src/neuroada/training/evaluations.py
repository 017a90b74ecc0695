"""The evaluations of a run before and after its training: each is recorded in the run folder, and not made again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from accelerate import PartialState
from rich.progress import Progress
from transformers import Trainer

from neuroada.errors import ConfigError
from neuroada.run_folder.folder import RunFolder
from neuroada.training.callbacks import HELD_OUT, held_out_values
from neuroada.training.divergence import diverged
from neuroada.training.prepared import Prepared


@dataclass(frozen=True)
class Evaluations:
    """The held-out loss and the tests, "before" and "after" training. All processes of a run call them alike."""

    prepared: Prepared
    trainer: Trainer
    folder: RunFolder
    progress: Progress

    def held_out(self, when: str) -> dict[str, float]:
        """Held-out loss, and score where the task has one for it."""
        PartialState().wait_for_everyone()
        recorded = [record for record in self.folder.records("evaluate") if record["when"] == when]
        if not recorded:
            recorded = [held_out_values(self.trainer.evaluate(), self.prepared.data.metric_name)]
            self._require_finite(recorded[0], when)
            self.folder.record("evaluate", when=when, **recorded[0])
        return {name: recorded[0][name] for name in HELD_OUT if name in recorded[0]}

    def _require_finite(self, values: Mapping[str, float], when: str) -> None:
        lost = [
            f"the held-out {name} {when} training is {value}" for name, value in values.items() if not isfinite(value)
        ]
        if lost and when == "after":
            raise diverged(lost[0], self.trainer.args.learning_rate, self.folder.last_checkpoint())
        if lost:
            do = "Choose another model.dtype or other data; with evaluation.before=false it is not looked at"
            raise ConfigError("evaluating the base model", lost[0], do)

    def tests(self, when: str) -> list[dict[str, Any]]:
        """Scores of the task's tests, if it has any; in the first process, for which the others wait."""
        PartialState().wait_for_everyone()
        tests = self.prepared.data.tests
        scores = [record["scores"] for record in self.folder.records("scores") if record["when"] == when]
        if tests is not None and not scores and self.folder.writes:
            bar = self.progress.add_task("Tests", total=tests.records, loss="")
            scored = tests.score(
                self.prepared.model,
                self.prepared.processor,
                lambda test, done: self.progress.update(bar, advance=done, loss=test),
            )
            self.folder.write_answers(when, scored.answers)
            self.folder.record("scores", when=when, scores=scored.plain())
            scores = [scored.plain()]
        PartialState().wait_for_everyone()
        return scores[0] if scores else []
