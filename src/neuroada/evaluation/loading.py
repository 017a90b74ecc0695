"""What training left, loaded again: a run folder, an adapter, or any model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, TaskType
from rich.console import Console

from neuroada.errors import ConfigError, MissingInputError, near
from neuroada.inputs.data import head_of
from neuroada.inputs.models import load_model
from neuroada.recipe.loading import load_recipe
from neuroada.recipe.methods import ADAPTERS
from neuroada.recipe.schema import Recipe
from neuroada.run_folder.folder import RunFolder


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode, with the processor of a `LoadedModel`; its recipe where it came from a run folder."""

    model: Any
    processor: Any
    recipe: Recipe | None = None


def recipe_of(target: str) -> Recipe | None:
    """What a run folder, or the adapter or model in one, was trained by; None for anything else."""
    found = _run_of(target)
    return found[1] if found is not None else None


def _run_of(target: str) -> tuple[RunFolder, Recipe] | None:
    path = Path(target).expanduser().resolve()
    for folder in (RunFolder(path), RunFolder(path.parent)):
        if folder.recipe.is_file():
            recipe = load_recipe(folder.recipe)
            if path in (folder.path, folder.trained(recipe.method)):
                return folder, recipe
    return None


def load_trained(target: str, dtype: str = "bfloat16", console: Console | None = None) -> Trained:
    """The model of a run folder, of an adapter's folder on its base model, or of a directory or hub id.

    dtype: of the weights, where no recipe says it; "auto" for that of the model's files.

    Raises:
        ConfigError: an adapter outside its run folder is not of a language model.
        MissingInputError: a part of it is not there.
    """
    path = Path(target).expanduser()
    run = _run_of(target)
    if run is not None:
        return _of_run(*run, console)
    if (path / "adapter_config.json").is_file():
        return _of_adapter(path, dtype, console)
    if not path.exists() and path.parent != Path() and path.parent.is_dir():
        beside = sorted(each.name for each in path.parent.iterdir() if each.is_dir())
        raise MissingInputError(f"run {target}", "no such folder", near(path.name, beside))
    loaded = load_model(target, dtype, console)
    return Trained(loaded.model.eval(), loaded.processor)


def _of_adapter(path: Path, dtype: str, console: Console | None) -> Trained:
    """On the base model that it names, which nothing but a run folder says the head of."""
    config = PeftConfig.from_pretrained(str(path))
    asked, do = f"adapter {path}", "Name its run folder instead"
    if config.base_model_name_or_path is None:
        raise MissingInputError(asked, "it does not name its base model", do)
    if config.task_type not in (None, TaskType.CAUSAL_LM):
        raise ConfigError(asked, f"it is of task type {config.task_type}, not of a language model", do)
    loaded = load_model(config.base_model_name_or_path, dtype, console)
    endings = {name.rpartition(".")[2] for name, _ in loaded.model.named_modules()}
    lost = sorted(set(getattr(config, "modules_to_save", None) or ()) - endings)
    if lost:
        raise ConfigError(asked, f"it has trained {', '.join(lost)} too, which no language model has", do)
    return Trained(PeftModel.from_pretrained(loaded.model, str(path)).eval(), loaded.processor)


def _of_run(folder: RunFolder, recipe: Recipe, console: Console | None) -> Trained:
    saved = folder.trained(recipe.method)
    if not saved.is_dir():
        found = f"no {saved.name} in it: the run is not complete"
        raise MissingInputError(f"run {folder.path}", found, f"neuroada train --resume --output {folder.path}")
    head = head_of(recipe.data, folder.read_labels() if recipe.data.task == "images" else ())
    if recipe.method not in ADAPTERS:
        loaded = load_model(str(saved), recipe.model.dtype, console, head)
        return Trained(loaded.model.eval(), loaded.processor, recipe)
    loaded = load_model(recipe.model.name, recipe.model.dtype, console, head)
    return Trained(PeftModel.from_pretrained(loaded.model, str(saved)).eval(), loaded.processor, recipe)
