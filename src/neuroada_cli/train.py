"""neuroada train: run a recipe."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from neuroada_cli.options import OPTIONS, DataDir, File, Model, Text, recipe_values


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE", help="Name of a bundled recipe, or path of a recipe file; with --resume the run's own."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value, as in training.learning_rate=7e-4."),
    ] = None,
    model: Model = None,
    text: Text = None,
    file: File = None,
    data_dir: DataDir = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse images that cannot be decoded, instead of leaving them out.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Run folder to make; default: runs/RECIPE-DATE-TIME.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Load, check and describe; do not train.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --output.")] = False,
) -> None:
    """Train as a recipe says: model, data and method in, run folder with the adapter out."""
    from rich.console import Console

    console = Console(highlight=False)
    with console.status("Loading PyTorch, Transformers and PEFT"):
        from neuroada.errors import ConfigError
        from neuroada.recipe.files import find_recipe
        from neuroada.recipe.loading import load_recipe
        from neuroada.run_folder.folder import RunFolder
        from neuroada.training.train import train as run

    if resume and output is None:
        raise ConfigError("--resume", "no --output says which run", "Add --output with the run's folder")
    if recipe is None and not resume:
        raise ConfigError("neuroada train", "no recipe is named", "Choose one of those that `neuroada recipes` lists")
    if recipe is None:
        RunFolder(output or Path()).require_begun()
    source = find_recipe(recipe or str((output or Path()) / "recipe.yaml"))
    values = recipe_values(model, text, file, data_dir) | ({"data.strict": True} if strict else {})
    resolved = load_recipe(source, overrides or (), values, {key: OPTIONS[key] for key in values})
    output = output or Path("runs") / f"{source.name}-{datetime.now():%Y%m%d-%H%M%S}"
    try:
        run(resolved, output, console, resume=resume, dry_run=dry_run)
    except KeyboardInterrupt:
        if (output / "recipe.yaml").is_file():
            console.print(f"\nTo go on: neuroada train --resume --output {output}", soft_wrap=True)
        raise
