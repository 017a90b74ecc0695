"""YAML files that come with the package, listed without importing it, which takes seconds."""

from importlib.util import find_spec
from pathlib import Path

import typer


def list_bundled(folder: str) -> None:
    """Print the names of those in a folder of the package, each with a line about it."""
    package = find_spec("neuroada")
    assert package is not None
    assert package.origin is not None
    lines: dict[str, str] = {}
    for file in (Path(package.origin).parent / folder).glob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        variants = _variants(text)
        lines |= variants or {file.stem: text.split("\n", 1)[0].lstrip("# ")}
    width = max(map(len, lines))
    for name, line in sorted(lines.items()):
        typer.echo(f"{name:<{width}}  {line}")


def _variants(text: str) -> dict[str, str]:
    """What a file says of each of its variants; none where it has none."""
    if "\nvariants:\n" not in text:
        return {}
    import yaml

    return {name: variant["about"] for name, variant in yaml.safe_load(text)["variants"].items()}
