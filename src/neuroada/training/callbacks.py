"""Trainer callbacks of a run: bars for the person who waits, records for later."""

import time
from collections.abc import Mapping
from contextlib import ExitStack

from rich.progress import Progress, TaskID
from transformers import TrainerCallback

from neuroada.layers import held
from neuroada.run_folder.environment import peak_memory
from neuroada.run_folder.folder import RunFolder
from neuroada.tasks.images.pixels import ImageRows
from neuroada.tuners.processes import is_sharded

HELD_OUT = ("loss", "score")
"""What evaluations of the held-out part give; the score where the task has one for it."""


def held_out_values(metrics: Mapping[str, float], metric_name: str | None) -> dict[str, float]:
    """Those of HELD_OUT among the metrics of Trainer's evaluation; metric_name: of the task's score."""
    names = (
        {"loss": "eval_loss"}
        if metric_name in (None, "loss")
        else {"loss": "eval_loss", "score": f"eval_{metric_name}"}
    )
    return {name: metrics[metric] for name, metric in names.items() if metric in metrics}


class Bars(TrainerCallback):
    """One bar for training and one for each evaluation."""

    def __init__(self, progress: Progress):
        """Draw on `progress`, which the caller starts and stops."""
        self.progress = progress
        self.running: dict[str, TaskID] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        """Begin where a resumed run goes on."""
        self.running["train"] = self.progress.add_task(
            "Training", total=state.max_steps, completed=state.global_step, loss=""
        )

    def on_step_end(self, args, state, control, **kwargs):
        """Advance by a step."""
        self.progress.update(self.running["train"], completed=state.global_step)

    def on_log(self, args, state, control, **kwargs):
        """Show the latest loss."""
        if "loss" in kwargs["logs"]:
            self.progress.update(self.running["train"], loss=f"loss {float(kwargs['logs']['loss']):.3f}")

    def on_prediction_step(self, args, state, control, **kwargs):
        """Advance by an evaluation batch."""
        if "evaluate" not in self.running:
            total = len(kwargs["eval_dataloader"])
            self.running["evaluate"] = self.progress.add_task("Held-out loss", total=total, loss="")
        self.progress.advance(self.running["evaluate"])

    def on_evaluate(self, args, state, control, **kwargs):
        """Leave the finished bar with its result."""
        self.progress.update(self.running.pop("evaluate"), loss=f"loss {kwargs['metrics']['eval_loss']:.3f}")


class HoldSupports(TrainerCallback):
    """Keeps the deltas in the base weights from the first step on: then a layer costs what its base layer costs."""

    def __init__(self, context: ExitStack):
        """Hold until `context` is left, which the caller does."""
        self.context = context

    def on_train_begin(self, args, state, control, **kwargs):
        """Hold, now that Trainer has put the model where it trains; not where it shards the model."""
        if not is_sharded() and not args.deepspeed:
            self.context.enter_context(held(kwargs["model"]))


class Records(TrainerCallback):
    """Writes training records into the run folder, and adds up what the steps cost that led to the result.

    steps, seconds, peak_memory (bytes): of the whole training, those before a resumed one's checkpoint included.
    """

    def __init__(self, folder: RunFolder, done: int = 0):
        """Write into `folder`. done: steps that its newest checkpoint has, before which its records tell the cost."""
        self.folder = folder
        saved = [record for record in folder.records("saved") if record["step"] <= done]
        self.steps = saved[-1]["step"] if saved else 0
        self.seconds = saved[-1]["seconds"] if saved else 0.0
        self.peak_memory = max((record["peak_memory"] for record in saved), default=0)
        self.counted, self.began = done, time.perf_counter()

    def _count(self, step: int) -> None:
        now = time.perf_counter()
        self.steps, self.seconds = self.steps + step - self.counted, self.seconds + now - self.began
        self.counted, self.began = step, now

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the clock."""
        self.began = time.perf_counter()

    def on_save(self, args, state, control, **kwargs):
        """Keep what it has cost so far, beside the checkpoint."""
        self._count(state.global_step)
        self.peak_memory = max(self.peak_memory, peak_memory(args.device)[0])
        cost = {"seconds": self.seconds, "peak_memory": self.peak_memory}
        self.folder.record("saved", step=state.global_step, **cost)

    def on_log(self, args, state, control, **kwargs):
        """Keep what Trainer logs of a step."""
        if "loss" in kwargs["logs"]:
            values = {name: float(value) for name, value in kwargs["logs"].items()}
            self.folder.record("train", step=state.global_step, **values)

    def on_evaluate(self, args, state, control, **kwargs):
        """Keep what a training that evaluates at its start finds there, and leave that out of its time."""
        if args.eval_on_start and state.global_step == 0:
            self.folder.record(
                "evaluate", when="before", **held_out_values(kwargs["metrics"], args.metric_for_best_model)
            )
            self.began = time.perf_counter()

    def on_train_end(self, args, state, control, **kwargs):
        """Stop the clock."""
        self._count(state.global_step)


class Epochs(TrainerCallback):
    """Tells rows which epoch begins, so that their augmentation is the same in a resumed training."""

    def __init__(self, rows: ImageRows):
        """Tell `rows`."""
        self.rows = rows

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Where a training goes on inside an epoch, it is that one."""
        self.rows.epoch = int(state.epoch or 0)
