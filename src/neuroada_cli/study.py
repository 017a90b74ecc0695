"""neuroada study: a grid of recipes."""

from pathlib import Path
from typing import Annotated, Any

import typer

from neuroada_cli.bundled import list_bundled


def study(
    name: Annotated[
        str, typer.Argument(metavar="STUDY", help="Name of a bundled study, or a file; none to list them.")
    ] = "",
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the tasks' data sets.")] = None,
    model: Annotated[str | None, typer.Option(help="Model in place of the recipe's: directory or hub id.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the cells' runs; default: runs/STUDY.", show_default=False)
    ] = None,
    records: Annotated[Path, typer.Option(help="A record of each cell is appended to this file, once.")] = Path(
        "study.jsonl"
    ),
    processes: Annotated[int, typer.Option(min=1, help="Cells trained at a time.")] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of each cell; default: PyTorch's.", show_default=False)
    ] = None,
) -> None:
    """Train the cells of a study that are not there yet; run it again to go on where it stopped.

    Several machines that share the output folder share the work: start the same command on each.
    """
    if not name:
        list_bundled("studies")
        return
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    with console.status("Loading PyTorch, Transformers and PEFT"):
        from filelock import FileLock

        from neuroada.measure.record import Record, append_records, read_records
        from neuroada.measure.studies.grid import find_study
        from neuroada.measure.studies.study import run_study

    file = find_study(name)

    def place(record: Record) -> tuple[Any, ...]:
        settings = record.settings
        return record.method, settings.get("point"), settings["learning_rate"], record.seed, record.shape.name

    def what(record: Record) -> tuple[Any, ...]:
        return record.status, record.created if record.status == "ok" else "", record.notes

    given = {"data.data_dir": data_dir and str(data_dir), "model.name": model}
    values = {key: value for key, value in given.items() if value is not None}
    folder = output or Path("runs") / file.stem

    records.parent.mkdir(parents=True, exist_ok=True)
    if records.is_file():
        read_records(records)  # what is wrong with it is said before anything is trained

    def keep(record: Record) -> None:
        if not console.is_terminal:  # where no bar shows what is going on
            after = [f"{score.name} {score.value:.3f}" for score in record.scores if score.when == "after"]
            said = ", ".join([record.status, *after[-1:]])
            console.print(f"{record.notes['cell']}: {said}", markup=False, soft_wrap=True)
        with FileLock(records.with_name(f".{records.name}.lock")):  # another study may write to it at this moment
            known = read_records(records) if records.is_file() else []
            newest = {place(each): each for each in known if each.notes.get("study") == file.stem}
            before = newest.get(place(record))
            if before is None or what(before) != what(record):
                append_records(records, [record])

    done = run_study(file, folder, values, console, threads, processes, keep)
    failed = [record for record in done if record.status != "ok"]
    for record in failed:
        console.print(f"{record.notes['cell']}: {record.status}: {record.reason}", markup=False, soft_wrap=True)
    console.print(f"{len(done)} cells, {len(failed)} failed; records in {records}", soft_wrap=True)
    console.print(f"What was found: neuroada report --studies {records}", soft_wrap=True)
    if failed:
        raise typer.Exit(1)
