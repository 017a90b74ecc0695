"""neuroada recipes: what comes with the package."""

import typer


def recipes() -> None:
    """List the bundled recipes."""
    from importlib.resources import files

    folder = files("neuroada") / "recipes"
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".yaml"):
            first = file.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()
            typer.echo(f"{file.name.removesuffix('.yaml'):<32} {first}")
