"""Configurations of the methods: fields declared once, validated at birth."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from peft import PeftConfig, PeftType
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from neuroada.errors import AdapterFileError, ConfigError, near
from neuroada.selection import SCORES

MODES = ("auto", "inplace", "transient")
SAVED_INPUTS = ("auto", "whole", "columns")
DELTA_DTYPES = ("float32", "bfloat16")


def _check_known(name: str, value: object, known: tuple[str, ...]) -> None:
    if value in known:
        return
    raise ConfigError(f"{name}={value!r}", "not a known value", near(str(value), known))


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1


def _require_sound_weights(folder: Path) -> None:
    weights = folder / SAFETENSORS_WEIGHTS_NAME
    if not weights.exists():
        if (folder / WEIGHTS_NAME).exists():
            raise AdapterFileError(
                f"Loading the adapter in {folder}",
                f"{WEIGHTS_NAME} is a pickle, which can run code of its author's choice",
                f"Save the adapter again as {SAFETENSORS_WEIGHTS_NAME} (the default of save_pretrained)",
            )
        return
    try:
        with safe_open(weights, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise AdapterFileError(
            f"Loading the adapter file {weights}",
            f"it is damaged or cut short ({error})",
            "Copy or save the adapter again",
        ) from error


@dataclass
class NeuroAdaConfig(PeftConfig):
    """Settings of NeuroAda (arXiv 2510.18940): k trainable deltas per neuron, everything else frozen.

    A neuron is an output row of an adapted weight [O, I]. Give `k` or `budget`, not both; with neither, k=1.

    Raises:
        ConfigError: a value is out of range or unknown, or two fields contradict each other.
    """

    k: int | None = field(
        default=None, metadata={"help": "Inputs of each neuron that get a trainable delta (Section 3.2)."}
    )
    budget: float | None = field(
        default=None,
        metadata={"help": "Deltas as a fraction of the adapted weights, in (0, 1]; at least one a neuron."},
    )
    selection: str = field(default="magnitude", metadata={"help": f"Which inputs are chosen: {', '.join(SCORES)}."})
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
    verify_base: bool = field(
        default=True,
        metadata={"help": "On loading, refuse a base model whose weights are not those that were trained on."},
    )
    target_modules: list[str] | set[str] | str | None = field(
        default=None,
        metadata={"help": "Names (or a regex) of the modules to adapt; None means 'all-linear'."},
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Names (or a regex) of modules to leave out."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices of the layers to adapt; all if None."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the layer list that `layers_to_transform` indexes."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained and saved whole, such as a classification head."}
    )

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType("NEUROADA")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        self._check_size()
        _check_known("selection", self.selection, tuple(SCORES))
        _check_known("mode", self.mode, MODES)
        _check_known("saved_input", self.saved_input, SAVED_INPUTS)
        _check_known("delta_dtype", self.delta_dtype, DELTA_DTYPES)
        if not _is_share(self.coverage):
            raise ConfigError(
                f"coverage={self.coverage!r}",
                "the fraction of neurons must be above 0 and at most 1",
                "Give a value in (0, 1]; 1.0 covers every neuron",
            )
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise ConfigError(f"seed={self.seed!r}", "a seed is a whole number", "Give an integer, such as 0")
        for name in ("layers_to_transform", "layers_pattern"):
            if self._targets_regex() and getattr(self, name) is not None:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} with target_modules={self.target_modules!r}",
                    "a regex already says which layers are meant",
                    "Put the layers into the regex, or give target_modules as a list of names",
                )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError(
                f"layers_pattern={self.layers_pattern!r} without layers_to_transform",
                "the pattern has no layer index to apply to",
                "Set layers_to_transform too, or leave both out",
            )

    def _targets_regex(self) -> bool:
        return isinstance(self.target_modules, str) and self.target_modules != "all-linear"

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

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs):
        """Read a saved configuration as PEFT does, after a look at the weights beside it.

        PEFT reads the configuration before it touches the model, so that a bad file changes nothing. `mode`,
        `saved_input` and `verify_base` say how to run, not what was trained: given here, they win over the file.

        Raises:
            AdapterFileError: the adapter weights beside it are a pickle, or damaged.
        """
        _require_sound_weights(Path(pretrained_model_name_or_path, subfolder or ""))
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        given = {name: kwargs[name] for name in ("mode", "saved_input", "verify_base") if name in kwargs}
        return replace(config, **given) if given else config
