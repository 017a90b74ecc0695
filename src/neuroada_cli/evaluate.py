"""neuroada eval: scores with intervals."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    target: Annotated[
        str, typer.Argument(metavar="RUN", help="Run folder, folder of an adapter, or a model's directory or hub id.")
    ],
    tasks: Annotated[
        str, typer.Option(help="Tests, averages or families, separated by commas; default: those of the run's recipe.")
    ] = "",
    harness: Annotated[
        str, typer.Option(help="Tasks of lm-eval, by name, pattern or YAML file, separated by commas.")
    ] = "",
    shots: Annotated[
        int | None,
        typer.Option(
            help="Worked examples before each question of --harness; default: the task's.", show_default=False
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the data sets; default: the run's own, or the hub.")
    ] = None,
    records: Annotated[
        str | None,
        typer.Option(
            metavar="INTEGER|all",
            help="Records of each test, chosen by the seed; default: the run's, or all.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Records answered at a time; default: the run's, or 16.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer; default: the run's, or the task's.", show_default=False)
    ] = None,
    sampling: Annotated[
        str | None,
        typer.Option(
            help="greedy, or published for the task's own settings; default: the run's, or greedy.", show_default=False
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of the weights, where no recipe says it; auto is the model files' own.")
    ] = "bfloat16",
    seed: Annotated[
        int | None, typer.Option(help="Of the choice of records; default: the run's, or 0.", show_default=False)
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse images that cannot be decoded, instead of leaving them out.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Write scores and answers to this JSON file.", show_default=False)
    ] = None,
) -> None:
    """Score a run, an adapter or any model, with 95 % intervals."""
    import json

    from rich.console import Console

    console = Console(highlight=False)
    with console.status("Loading PyTorch, Transformers and PEFT"):
        import neuroada  # noqa: F401 (makes the method known to PEFT)
        from neuroada.evaluation.evaluate import evaluate as run
        from neuroada.evaluation.evaluate import read_settings
        from neuroada.run_folder.folder import require_place, write_text
        from neuroada.run_folder.summary import print_pairs, remarks_text, score_text

    given = {"records": records, "batch_size": batch_size, "max_new_tokens": max_new_tokens, "sampling": sampling}
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    of_harness = [name.strip() for name in harness.split(",") if name.strip()]
    if output is not None:
        require_place(output, "--output")
    scored = run(
        target,
        names,
        data_dir,
        read_settings(given),
        console,
        dtype=dtype,
        seed=seed,
        harness=of_harness,
        shots=shots,
        strict=strict,
    )
    pairs = [
        (
            score["name"],
            f"{score_text(score)} {score['metric']} of {score['count']:,} records{remarks_text(score)}",
        )
        for score in scored.plain()
    ]
    print_pairs(console, "Scores", pairs)
    if output is not None:
        content = {"target": target, "scores": scored.plain(), "answers": scored.answers}
        write_text(output, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
