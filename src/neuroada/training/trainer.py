"""Transformers' Trainer, whose order of samples a resumed training finds again."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from neuroada.tasks.generation import longest_first


class EpochOrder(LengthGroupedSampler):
    """Samples of like length together, in an order that the seed and the epoch alone decide.

    Transformers' own takes the order from the global random state, which a resumed training does not have yet.
    """

    def __init__(self, grouped: LengthGroupedSampler, seed: int, epoch: Callable[[], int]) -> None:
        """In the place of `grouped`. epoch: tells which one begins."""
        super().__init__(grouped.batch_size, lengths=grouped.lengths)
        self.seed, self.epoch = seed, epoch

    def __iter__(self) -> Iterator[int]:
        """The order of the epoch."""
        self.generator = torch.Generator().manual_seed((self.seed << 16) + self.epoch())
        return super().__iter__()


class ResumableTrainer(Trainer):
    """Trainer with `EpochOrder` where samples are grouped by length.

    Samples to evaluate are then taken longest first, which Transformers does within a batch alone where there are fewer
    than eight batches. Only classifiers are evaluated so: their scores do not depend on it, nor on one process their
    loss; a language model's loss is a mean over each batch's tokens, and would depend on which samples share one.
    """

    def _get_train_sampler(self, *arguments: Any) -> Sampler | None:
        sampler = super()._get_train_sampler(*arguments)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        return EpochOrder(sampler, self.args.data_seed or self.args.seed, lambda: int(self.state.epoch or 0))

    def _get_eval_sampler(self, *arguments: Any) -> Sampler | list[int] | None:
        sampler = super()._get_eval_sampler(*arguments)
        if not isinstance(sampler, LengthGroupedSampler) or self.compute_metrics is None:
            return sampler
        return longest_first(sampler.lengths)
