"""What the configurations of all methods share: which modules are meant, and how a saved one is read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from peft import PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from neuroada.errors import AdapterFileError, ConfigError, near


def is_whole(value: object, least: int) -> bool:
    """Whether a value is a whole number, a truth value aside, of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def require_known(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raise ConfigError unless a field's value is one of those known; the message lists them, the nearest first."""
    if value not in known:
        raise ConfigError(f"{name}={value!r}", "not a known value", near(str(value), known))


def require_sound_weights(folder: Path) -> None:
    """Raise AdapterFileError if the adapter weights in a folder are a pickle or damaged; there need not be any."""
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
class AdapterConfig(PeftConfig):
    """Which modules of a model are adapted, in PEFT's own fields."""

    how_to_run: ClassVar[tuple[str, ...]] = ("verify_base",)
    """Fields that say how to run, not what was trained."""

    read_from_file: ClassVar[bool] = False
    """Whether a configuration was saved with an adapter, and says all that was trained."""

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
        for name in ("verify_base", "init_weights"):
            if not isinstance(getattr(self, name, True), bool):
                raise ConfigError(f"{name}={getattr(self, name)!r}", "it is neither True nor False", "Give one of them")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
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

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs):
        """Read a saved configuration as PEFT does, after a look at the weights beside it.

        PEFT reads the configuration before it touches the model, so that a bad file changes nothing. Fields of
        `how_to_run`, given here, win over the file.

        Raises:
            AdapterFileError: the adapter weights beside it are a pickle, or damaged.
        """
        require_sound_weights(Path(pretrained_model_name_or_path, subfolder or ""))
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        given = {name: kwargs[name] for name in cls.how_to_run if name in kwargs}
        config = replace(config, **given) if given else config
        config.__dict__["read_from_file"] = True
        return config
