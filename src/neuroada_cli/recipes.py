"""neuroada recipes: what comes with the package."""

from neuroada_cli.bundled import list_bundled


def recipes() -> None:
    """List the bundled recipes."""
    list_bundled("recipes")
