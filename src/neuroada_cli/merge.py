"""neuroada merge: the trained model as one folder."""

from pathlib import Path
from typing import Annotated

import typer


def merge(
    target: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, or folder of an adapter.")],
    output: Annotated[Path, typer.Option(help="New folder for the merged model and its tokeniser.")],
) -> None:
    """Put the trained deltas into the base weights and save the model as any other."""
    from rich.console import Console

    console = Console(highlight=False)
    with console.status("Loading PyTorch, Transformers and PEFT"):
        import neuroada  # noqa: F401 (makes the method known to PEFT)
        from neuroada.evaluation.merged import merge as run
    dtype = run(target, output, console)
    console.print(f"Merged model: {output}, {dtype}", soft_wrap=True)
