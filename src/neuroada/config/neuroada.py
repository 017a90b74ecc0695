"""NeuroAda's settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from peft import PeftType

from neuroada.config.shared import AdapterConfig, require_known
from neuroada.errors import ConfigError
from neuroada.selection import CRITERIA

MODES = ("auto", "inplace", "transient")
SAVED_INPUTS = ("auto", "whole", "columns")
DELTA_DTYPES = ("float32", "bfloat16")


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1


@dataclass
class NeuroAdaConfig(AdapterConfig):
    """Settings of NeuroAda (arXiv 2510.18940): k trainable deltas per neuron, everything else frozen.

    A neuron is an output row of an adapted weight [O, I]. Give `k` or `budget`, not both; with neither, k=1.

    Raises:
        ConfigError: a value is out of range or unknown, or two fields contradict each other.
    """

    how_to_run: ClassVar[tuple[str, ...]] = ("mode", "saved_input", "verify_base")

    k: int | None = field(
        default=None, metadata={"help": "Inputs of each neuron that get a trainable delta (Section 3.2)."}
    )
    budget: float | None = field(
        default=None,
        metadata={"help": "Deltas as a fraction of the adapted weights, in (0, 1]; at least one a neuron."},
    )
    selection: str = field(
        default="magnitude",
        metadata={
            "help": f"Which inputs are chosen: {', '.join(CRITERIA)}; those by gradients or inputs wait for data, and "
            "`neuroada.reselect` brings it."
        },
    )
    coverage: float = field(
        default=1.0, metadata={"help": "Fraction of the neurons of each weight that get deltas, in (0, 1]."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of random selection and of partial coverage."})
    mode: str = field(
        default="auto",
        metadata={
            "help": "Where a layer puts weight + deltas while it computes: 'inplace' (in the frozen weight itself, "
            "undone at once), 'transient' (in a copy that is freed at once), or 'auto'."
        },
    )
    saved_input: str = field(
        default="auto",
        metadata={
            "help": "What a layer keeps of its input for backward: 'whole', or only the 'columns' that deltas of it or "
            "of the layers that share the input read, where those are at most three quarters; 'auto' is 'columns' "
            "unless the model keeps the input anyway."
        },
    )
    delta_dtype: str = field(
        default="float32", metadata={"help": "Type of the deltas: 'float32', or 'bfloat16' as published."}
    )
    init_weights: bool = field(
        default=True,
        metadata={"help": "Start with zero deltas, so that the adapted model is the base model. False: random."},
    )

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType("NEUROADA")
        self._check_size()
        require_known("selection", self.selection, tuple(CRITERIA))
        require_known("mode", self.mode, MODES)
        require_known("saved_input", self.saved_input, SAVED_INPUTS)
        require_known("delta_dtype", self.delta_dtype, DELTA_DTYPES)
        if not _is_share(self.coverage):
            raise ConfigError(
                f"coverage={self.coverage!r}",
                "the fraction of neurons must be above 0 and at most 1",
                "Give a value in (0, 1]; 1.0 covers every neuron",
            )
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise ConfigError(f"seed={self.seed!r}", "a seed is a whole number", "Give an integer, such as 0")

    def _check_size(self) -> None:
        if self.k is not None and self.budget is not None:
            raise ConfigError(
                f"k={self.k!r} and budget={self.budget!r}",
                "both set the number of deltas",
                "Give one of them: k deltas a neuron, or budget as a fraction of the adapted weights",
            )
        if self.budget is not None:
            if not _is_share(self.budget):
                raise ConfigError(
                    f"budget={self.budget!r}",
                    "a fraction of the adapted weights must be above 0 and at most 1",
                    "Give a value in (0, 1], such as 0.0002, or k instead",
                )
            return
        self.k = 1 if self.k is None else self.k
        if not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1:
            raise ConfigError(
                f"k={self.k!r}",
                "each covered neuron needs a whole number of at least 1 delta",
                "Give k=1 or more, or budget instead",
            )

    def entries_per_neuron(self, in_features: int) -> int:
        """K for a weight with I = `in_features`: k, or the budget's share of I; in [1, I]."""
        if self.budget is None:
            wanted = self.k or 1
        else:
            wanted = round(min(self.budget / self.coverage, 1) * in_features)
        return max(1, min(wanted, in_features))
