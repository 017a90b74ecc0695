"""neuroada tune: search a recipe's values."""

from pathlib import Path
from typing import Annotated

import typer

from neuroada_cli.options import OPTIONS, DataDir, File, Model, Recipe, Text, recipe_values


def tune(
    recipe: Recipe,
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            metavar="SPACE",
            help="What to try: a YAML file, KEY=VALUES as in 'neuroada.k={choices: [1, 20]}', or papers-commonsense, "
            "papers-arithmetic, papers-budgets, papers-neat-glue; repeatable. Default: RECIPE.search.yaml beside the "
            "recipe.",
        ),
    ] = None,
    trials: Annotated[int, typer.Option(help="Trials in all, those done before and elsewhere among them.")] = 20,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; it is then not searched."),
    ] = None,
    model: Model = None,
    text: Text = None,
    file: File = None,
    data_dir: DataDir = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the trials' runs; default: runs/RECIPE-tune.", show_default=False)
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Where machines share trials: a journal file, or a URL such as sqlite:///trials.db or "
            "postgresql://...; default: a journal in --output.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the search in the storage; default: the recipe's.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the search; each trial trains with the recipe's.")] = 0,
    prune: Annotated[
        bool, typer.Option("--prune", help="Stop trials that fall behind the median of the others.")
    ] = False,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Train in this process, and not in a new one for each trial.")
    ] = False,
) -> None:
    """Search for a recipe's best values, judged by the held-out part; the same command goes on, or shares the work."""
    import importlib.util

    from rich.console import Console

    console = Console(highlight=False)
    with console.status("Loading PyTorch, Transformers and PEFT"):
        import neuroada  # noqa: F401 (makes the method known to PEFT)
        from neuroada.errors import MissingInputError
        from neuroada.recipe.files import find_recipe
        from neuroada.recipe.loading import check_typed

        if importlib.util.find_spec("optuna") is None:
            raise MissingInputError("neuroada tune", "package optuna is not installed", "pip install 'neuroada[tune]'")
        from neuroada.tuning.objective import Search
        from neuroada.tuning.search import tune as run
        from neuroada.tuning.space import load_space
        from neuroada.tuning.table import best_trial, folder_of

    source = find_recipe(recipe)
    values = recipe_values(model, text, file, data_dir)
    changes = overrides or []
    space = load_space(search or [], source, [*values, *(change.partition("=")[0].strip() for change in changes)])
    check_typed(source, changes, {**space.kept, **values}, {key: OPTIONS[key] for key in values})
    output = output or Path("runs") / f"{source.name}-tune"
    found = Search(source, space, output, changes, values, seed)
    try:
        study = run(found, console, trials=trials, storage=storage, name=name, prune=prune, in_process=in_process)
    except KeyboardInterrupt:
        console.print("\nTo go on, give the same command again.", soft_wrap=True)
        raise
    best = best_trial(study)
    if best is None:
        console.print("No trial was trained to its end.")
        raise typer.Exit(1)
    console.print(f"\nBest: {folder_of(best)}. To train it: neuroada train {output / 'best.yaml'}", soft_wrap=True)
