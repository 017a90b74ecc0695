"""NeuroAda's settings."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar

from peft import PeftType
from peft.utils.other import get_pattern_key

from neuroada.config.criteria import COMPARABLE, NEEDS, OWN
from neuroada.config.shared import AdapterConfig, is_whole, require_known
from neuroada.errors import ConfigError

BUDGET_SCOPES = ("weight", "model")
MODES = ("auto", "inplace", "transient")
SAVED_INPUTS = ("auto", "whole", "columns")
DELTA_DTYPES = ("float32", "bfloat16")


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1


def require_comparable(selection: str) -> None:
    """Raise ConfigError if a criterion cannot spread a budget over a model."""
    if selection not in (*COMPARABLE, OWN):
        raise ConfigError(
            f"budget_scope='model' with selection={selection!r}",
            "its scores compare inputs of one neuron, not weights with each other",
            f"Set budget_scope='weight', or choose one of {', '.join(COMPARABLE)}",
        )


@dataclass
class NeuroAdaConfig(AdapterConfig):
    """Settings of NeuroAda (arXiv 2510.18940): k trainable deltas per neuron, everything else frozen.

    A neuron is an output row of an adapted weight [O, I]. Give `k` or `budget`, not both; with neither, k=1.

    Raises:
        ConfigError: a value is out of range or unknown, or two fields contradict each other.
    """

    how_to_run: ClassVar[tuple[str, ...]] = ("mode", "saved_input", "verify_base")

    k: int | None = field(
        default=None,
        metadata={
            "help": "Inputs of each neuron that get a trainable delta (Section 3.2); with neither k nor budget 1."
        },
    )
    budget: float | None = field(
        default=None,
        metadata={"help": "Deltas as a fraction of the adapted weights, in (0, 1]; at least one a neuron."},
    )
    budget_scope: str = field(
        default="weight",
        metadata={
            "help": "What the budget is a fraction of: of each adapted 'weight', or of the adapted weights of the "
            "'model' together, so that weights with larger scores get more deltas a neuron."
        },
    )
    k_pattern: dict[str, int] = field(
        default_factory=dict,
        metadata={
            "help": "k of some modules, in place of k or budget, by the end of their names or a regular expression of "
            "it, as in {'q_proj': 4}; the first that matches counts, as in LoRA's rank_pattern."
        },
    )
    selection: str = field(
        default="magnitude",
        metadata={
            "help": f"Which inputs are chosen: {', '.join(NEEDS)}; those by gradients or inputs wait for data, and "
            f"'{OWN}' for a function: `neuroada.reselect` brings both."
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
        self._check_pattern()
        require_known("budget_scope", self.budget_scope, BUDGET_SCOPES)
        if callable(self.selection):
            do = f"Set selection={OWN!r}, and call neuroada.reselect(model, batches, function) before training"
            raise ConfigError(f"selection={self.selection!r}", "a configuration holds names, not functions", do)
        require_known("selection", self.selection, (*NEEDS, OWN))
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
        if self.budget_scope == "model":
            if self.budget is None:
                raise ConfigError(
                    f"budget_scope='model' with k={self.k}",
                    "k is the same for every neuron, and only a budget can be spread",
                    "Give budget, a fraction of the adapted weights, instead of k",
                )
            require_comparable(self.selection)

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
        if not is_whole(self.k, 1):
            raise ConfigError(
                f"k={self.k!r}",
                "each covered neuron needs a whole number of at least 1 delta",
                "Give k=1 or more, or budget instead",
            )

    def _check_pattern(self) -> None:
        if not isinstance(self.k_pattern, dict):
            raise ConfigError(
                f"k_pattern={self.k_pattern!r}", "not a dict of k by names of modules", "Write it as {'q_proj': 4}"
            )
        for name, k in self.k_pattern.items():
            if not is_whole(k, 1):
                raise ConfigError(
                    f"k_pattern={{{name!r}: {k!r}}}",
                    "each covered neuron needs a whole number of at least 1 delta",
                    "Give 1 or more, or leave those modules out with exclude_modules",
                )
            try:
                re.compile(name)
            except (re.error, TypeError) as error:
                raise ConfigError(
                    f"k_pattern={{{name!r}: {k!r}}}",
                    f"the name is not a regular expression ({error})",
                    "Give the end of a module's name, such as 'q_proj', or a regular expression of it",
                ) from error

    def k_of(self, name: str) -> int | None:
        """What is asked for the module of this name; None where the budget decides."""
        return self.k_pattern.get(get_pattern_key(list(self.k_pattern), name), self.k)

    def entries_per_neuron(self, in_features: int, name: str) -> int:
        """K for the weight [O, I = `in_features`] of the module of this name: k, or the budget's share of I; in [1, I].

        A budget for the model counts as one for each weight, until scores have spread it.
        """
        wanted = self.k_of(name)
        if wanted is None:
            assert self.budget is not None
            wanted = round(min(self.budget / self.coverage, 1) * in_features)
        return max(1, min(wanted, in_features))
