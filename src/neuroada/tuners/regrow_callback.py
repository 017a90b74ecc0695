"""`regrow` every so many steps of a training with Trainer."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from neuroada.config.shared import is_whole
from neuroada.errors import ConfigError
from neuroada.selection import Criterion, ScoreFunction
from neuroada.tuners.regrow import DROP_FRACTION, regrow, require_fraction, trained_layers
from neuroada.tuners.reselect import adapter_of, known_criterion
from neuroada.tuners.statistics import MAX_MEMORY

STOP_AFTER = 0.75
"""Share of a training's steps: RigL's default."""

Batches = Iterable[Mapping[str, Any]]


class RegrowCallback(TrainerCallback):
    """Drops and grows inputs during a training with Trainer, TRL's trainers included.

    A resumed training chooses what an uninterrupted one does: calibration records and random scores depend on the seed
    and the step alone. FSDP and DeepSpeed shard deltas or their optimiser, and are refused when training begins.

    Args:
        every: optimiser steps.
        drop_fraction, criterion, adapter_name, max_memory: as in `regrow`.
        stop_after: no more once this share of the training's steps is done, in (0, 1].
        records: of the training data, drawn anew each time, for a criterion that needs data.
        batch_size: of them at a time; None for as many as the training takes. Gradient checkpointing is off meanwhile.
        batches: in place of records drawn: a function of the step, for each process its own. The loss is what the model
            returns.
        notify: called with the step and how many inputs are new.
    """

    def __init__(
        self,
        *,
        every: int = 100,
        drop_fraction: float = DROP_FRACTION,
        criterion: str | Criterion | ScoreFunction = "gradient",
        stop_after: float = STOP_AFTER,
        records: int = 128,
        batch_size: int | None = None,
        batches: Callable[[int], Batches] | None = None,
        adapter_name: str | None = None,
        max_memory: int = MAX_MEMORY,
        notify: Callable[[int, int], object] = lambda step, changed: None,
    ):
        for name, value in (("every", every), ("records", records), ("batch_size", batch_size)):
            if not is_whole(value, 1) and not (name == "batch_size" and value is None):
                raise ConfigError(f"{name}={value!r}", "it is not a positive whole number", "Give one, such as 100")
        require_fraction("drop_fraction", drop_fraction)
        require_fraction("stop_after", stop_after)
        self.wants_data = known_criterion(criterion, True).needs_data
        self.every, self.stop_after, self.records, self.batches = every, stop_after, records, batches
        self.batch_size, self.adapter_name, self.notify = batch_size, adapter_name, notify
        self.settings: dict[str, Any] = {
            "criterion": criterion,
            "drop_fraction": drop_fraction,
            "adapter_name": adapter_name,
            "max_memory": max_memory,
        }

    def on_train_begin(self, args, state, control, **kwargs):
        """Refuse what would fail at the first time."""
        if args.deepspeed:
            found = "it trains copies of the deltas that it keeps in an order of its own"
            do = "Train with DistributedDataParallel, or without regrowing"
            raise ConfigError("Regrowing inputs under DeepSpeed", found, do)
        if self.every >= self.stop_after * state.max_steps:
            warnings.warn(
                f"RegrowCallback(every={self.every}) never regrows in the first {self.stop_after:.0%} of "
                f"{state.max_steps} steps: give a smaller `every`",
                stacklevel=2,
            )
        model = kwargs["model"]
        trained_layers(model, adapter_of(model, self.adapter_name, "Regrowing inputs"), kwargs["optimizer"])

    def on_step_end(self, args, state, control, **kwargs):
        """After the optimiser's step, and before a checkpoint is written."""
        step = state.global_step
        if step % self.every or step >= self.stop_after * state.max_steps:
            return
        numbers = random.Random(f"{args.seed}/{step}")
        seed = numbers.getrandbits(32)
        batches: Batches = ()
        if self.batches is not None:
            batches = self.batches(step)
        elif self.wants_data:
            batches = self._drawn(args, numbers, kwargs["train_dataloader"])
        self.notify(step, regrow(kwargs["model"], kwargs["optimizer"], batches, seed=seed, **self.settings))

    def _drawn(self, args: Any, numbers: random.Random, loader: Any) -> Batches:
        """Of records for all processes, this one's share."""
        data, size = loader.dataset, self.batch_size or args.per_device_train_batch_size
        if isinstance(data, IterableDataset) or not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
            raise ConfigError(
                "Drawing calibration records from the training data",
                f"{type(data).__name__} is a stream",
                "Give RegrowCallback batches=..., a function of the step",
            )
        drawn = numbers.sample(range(len(data)), min(max(self.records, args.world_size), len(data)))
        own = drawn[args.process_index :: args.world_size]
        return [
            loader.collate_fn([data[row] for row in own[start : start + size]]) for start in range(0, len(own), size)
        ]
