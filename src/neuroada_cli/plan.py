"""neuroada plan: what training would need, without the weights."""

from typing import Annotated

import typer


def plan(
    model: Annotated[
        str, typer.Option(help="Directory, hub id or shape name, such as Llama-3-8B; only its configuration is read.")
    ],
    method: Annotated[
        str, typer.Option(help="Method to show first: neuroada, lora, mask or full; the others stand beside it.")
    ] = "neuroada",
    k: Annotated[int, typer.Option(help="Deltas a neuron, and entries a neuron of the mask.")] = 1,
    k_pattern: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=K", help="k of the modules whose names end so, as in q_proj=4; repeatable."),
    ] = None,
    rank: Annotated[int, typer.Option(help="Rank of LoRA.")] = 8,
    batch: Annotated[int, typer.Option(help="Sequences a step.")] = 1,
    seq: Annotated[
        int | None, typer.Option(help="Tokens a sequence, 1024 by default; images have the size that the model takes.")
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help="h200, h100, a100-80, a100-40, l40s, rtx-4090, t4, cpu for this machine, or memory such as 24GiB."
        ),
    ] = "cpu",
    dtype: Annotated[str, typer.Option(help="Type of the base weights: bfloat16, float16 or float32.")] = "bfloat16",
    checkpointing: Annotated[
        bool, typer.Option(help="Whether the peak counts blocks as computed again in backward.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count what training would change, write and need in memory, without the model's weights."""
    import json

    from rich.console import Console

    console = Console(highlight=False)
    progress = Console(stderr=True, highlight=False)
    with progress.status("Loading PyTorch, Transformers and PEFT") as status:
        import neuroada  # noqa: F401 (makes the method known to PEFT)
        from neuroada.errors import ConfigError, MissingInputError, near
        from neuroada.measure.shapes import SHAPES, find_shape
        from neuroada.planning import plan as plans
        from neuroada.planning import table
        from neuroada.planning.devices import find_device
        from neuroada.planning.skeleton import load_config

        plans.require_known(method)
        found = find_device(device)
        known = {name.lower() for name in SHAPES}
        try:
            config = find_shape(model).config() if model.lower() in known else load_config(model)
        except MissingInputError as error:
            do = f"{error.do}, or a shape by name. {near(model, SHAPES)}"
            raise MissingInputError(error.asked, error.found, do) from error
        length = 1024 if seq is None else seq
        request = plans.Request(config, found, dtype, k, rank, batch, length, checkpointing, _patterns(k_pattern or []))
        if seq is not None and request.skeleton.image_size is not None:
            raise ConfigError(f"--seq {seq}", f"the model takes images of {request.unit}, not tokens", "Leave it out")
        methods = dict.fromkeys((method, *plans.LABELS))
        done = plans.plan(request, methods, status.update)
    if as_json:
        console.print_json(json.dumps(table.plan_as_dict(request, model, done)))
    else:
        table.print_plan(console, request, model, done)


def _patterns(given: list[str]) -> dict[str, int]:
    from neuroada.errors import ConfigError

    patterns = {}
    for each in given:
        name, _, k = each.rpartition("=")
        if not name or not k.isdecimal():
            raise ConfigError(f"--k-pattern {each}", "not NAME=K", "Write it as q_proj=4")
        patterns[name] = int(k)
    return patterns
