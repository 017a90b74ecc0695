"""A progress bar over the units of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@contextmanager
def counting(console: Console | None, title: str, total: int) -> Iterator[Callable[[str, int], None]]:
    """A bar of `total` units; yields `advance(what, units)`, which shows what is going on (unless "") and moves on."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[what]}"),
    )
    with Progress(*columns, console=console or Console(quiet=True), transient=True) as progress:
        task = progress.add_task(title, total=total, what="")

        def advance(what: str, units: int) -> None:
            if what:
                progress.update(task, what=what)
            progress.advance(task, units)

        yield advance
