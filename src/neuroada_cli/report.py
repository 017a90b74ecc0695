"""neuroada report: runs as one HTML page."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN...", help="Run folders, set side by side.", show_default=False)
    ] = None,
    studies: Annotated[
        Path | None,
        typer.Option(help="Records of studies, as `neuroada study` writes them: what was found.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="HTML file to write or replace; default: report.html, in the run's folder if there is one run.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show runs, studies or both in one HTML page that needs no network.

    Of runs scores, curves, cost, deltas, examples and settings; of studies what was found, figures and tables.
    """
    from rich.console import Console

    console = Console(highlight=False)
    with console.status("Reading runs"):
        from neuroada.errors import MissingInputError
        from neuroada.measure.record import read_records
        from neuroada.report.html.page import report_page
        from neuroada.report.html.run import read_runs
        from neuroada.run_folder.folder import require_place, write_text

        found = read_runs(runs) if runs else []
        records = [] if studies is None else [record for record in read_records(studies) if record.kind == "study"]
        if not found and not records:
            what = "a report of nothing" if studies is None else f"--studies {studies}"
            raise MissingInputError(what, "there is no run and no record of a study", "Name run folders, or --studies")
        page = report_page(found, records)
    output = output or (found[0].path if len(found) == 1 else Path()) / "report.html"
    require_place(output, "--output")
    write_text(output, page)
    console.print(f"Report: {output}", soft_wrap=True)
