"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer

Recipe = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="Name of a bundled recipe, or path of a recipe file."),
]
Model = Annotated[str | None, typer.Option(help="Base model: a directory or a hub id.")]
Text = Annotated[Path | None, typer.Option(help="Train on this UTF-8 text file.")]
File = Annotated[
    Path | None, typer.Option(help="Train on the pairs or conversations in this JSON lines file (task instruct).")
]
DataDir = Annotated[Path | None, typer.Option(help="Folder of the task's data sets; for task text, of .txt files.")]


OPTIONS = {
    "model.name": "--model",
    "data.text": "--text",
    "data.file": "--file",
    "data.data_dir": "--data-dir",
    "data.strict": "--strict",
}
"""By the dotted key that it sets in a recipe, each option: what an error names."""


def recipe_values(model: str | None, text: Path | None, file: Path | None, data_dir: Path | None) -> dict[str, Any]:
    """By the dotted key that each sets in a recipe, those that were given."""
    named = {"model.name": model, "data.text": text, "data.file": file, "data.data_dir": data_dir}
    return {key: str(value) for key, value in named.items() if value is not None}
