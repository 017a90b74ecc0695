"""YAML files that come with the package, listed without importing it, which takes seconds."""

from importlib.util import find_spec
from pathlib import Path

import typer


def list_bundled(folder: str) -> None:
    """Print names and first lines of those in a folder of the package."""
    package = find_spec("neuroada")
    assert package is not None
    assert package.origin is not None
    files = sorted((Path(package.origin).parent / folder).glob("*.yaml"))
    width = max(len(file.stem) for file in files)
    for file in files:
        first = file.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")
        typer.echo(f"{file.stem:<{width}}  {first}")
