"""neuroada bench: measure, and render what was measured."""

from pathlib import Path
from typing import Annotated

import typer

from neuroada_cli.bench_output import keep_records, method_names, open_console, print_known, print_table, required_shape

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Measure cost against every peer, and render the records."
)

RESULTS = Path("benchmarks", "results")

Shape = Annotated[str | None, typer.Option(help="Model by name; its weights are random.", show_default=False)]
Batch = Annotated[int, typer.Option(help="Sequences, or images.")]
Sequence = Annotated[
    int | None, typer.Option("--seq", help="Tokens of a sequence; default: the shape's.", show_default=False)
]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Methods = Annotated[str, typer.Option(help="Names separated by commas, or all; frozen is always among them.")]
PerNeuron = Annotated[list[int], typer.Option("--k", help="Entries of a neuron, for each sparse method; repeatable.")]
Rounds = Annotated[int, typer.Option(help="Timed calls of each method.")]
Warmup = Annotated[int, typer.Option(help="Calls before those.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: PyTorch's.", show_default=False)]
Seed = Annotated[int, typer.Option(help="Of weights, inputs and the order of methods.")]
List = Annotated[bool, typer.Option("--list", help="Print the known shapes and methods, and stop.")]


@app.command()
def step(
    shape: Shape = None,
    layers: Annotated[int | None, typer.Option(help="Blocks; default: the shape's.", show_default=False)] = None,
    batch: Batch = 2,
    sequence: Sequence = None,
    dtype: Dtype = "bfloat16",
    methods: Methods = "neuroada,lora",
    k: PerNeuron = [1],  # noqa: B006 (typer copies it)
    rounds: Rounds = 10,
    warmup: Warmup = 2,
    device: Device = "cpu",
    threads: Threads = None,
    seed: Seed = 0,
    time: Annotated[bool, typer.Option("--time/--no-time", help="Time steps, interleaved in one process.")] = True,
    memory: Annotated[bool, typer.Option("--memory/--no-memory", help="Peak memory, a process each.")] = True,
    output: Annotated[Path, typer.Option(help="Records are appended to this file.")] = RESULTS / "step.jsonl",
    list_: List = False,
) -> None:
    """Whole training steps: time and peak memory against the frozen limit."""
    console = open_console()
    with console.status("Loading PyTorch, Transformers and PEFT"):
        from neuroada.measure.benchmarks.step import StepPlan, run_step
        from neuroada.report.rows import grouped
        from neuroada.report.tables import STEP_HEADER, step_rows
    if list_:
        return print_known(console)
    plan = StepPlan(
        shape=required_shape(shape),
        layers=layers,
        batch=batch,
        sequence=sequence,
        dtype=dtype,
        methods=method_names(methods),
        per_neuron=tuple(k),
        rounds=rounds if time else 0,
        warmup=warmup,
        memory=memory,
        device=device,
        seed=seed,
        threads=threads,
    )
    records = run_step(plan, console)
    keep_records(console, output, records)
    for group in grouped(records):
        print_table(console, STEP_HEADER, step_rows(group))


@app.command()
def op(
    shape: Shape = None,
    batch: Batch = 2,
    sequence: Sequence = None,
    dtype: Dtype = "bfloat16",
    methods: Methods = "neuroada,lora",
    k: PerNeuron = [1, 20],  # noqa: B006 (typer copies it)
    part: Annotated[
        list[str],
        typer.Option(help="layer: methods on each layer size. product: our gradient and swap alone. Repeatable."),
    ] = ["layer", "product"],  # noqa: B006 (typer copies it)
    rounds: Rounds = 10,
    warmup: Warmup = 2,
    device: Device = "cpu",
    threads: Threads = None,
    seed: Seed = 0,
    output: Annotated[Path, typer.Option(help="Records are appended to this file.")] = RESULTS / "op.jsonl",
    list_: List = False,
) -> None:
    """Layer by layer: time, dense products and saved bytes, and our products alone."""
    console = open_console()
    with console.status("Loading PyTorch, Transformers and PEFT"):
        from neuroada.measure.benchmarks.op import OpPlan, run_op
        from neuroada.report.op import op_table, product_table
    if list_:
        return print_known(console)
    plan = OpPlan(
        shape=required_shape(shape),
        batch=batch,
        sequence=sequence,
        dtype=dtype,
        methods=method_names(methods),
        per_neuron=tuple(k),
        parts=tuple(part),
        rounds=rounds,
        warmup=warmup,
        device=device,
        seed=seed,
        threads=threads,
    )
    records = run_op(plan, console)
    keep_records(console, output, records)
    tables = {"layer": op_table, "product": product_table}
    for name in plan.parts:
        console.print(f"\n{tables[name](records)}", soft_wrap=True, markup=False)


@app.command()
def switch(
    model: Annotated[str, typer.Option(help="Base model: a directory or a hub id.")] = "smollm2-135m-instruct",
    k: Annotated[int, typer.Option(help="Deltas a neuron of both adapters.")] = 20,
    dtype: Dtype = "bfloat16",
    loads: Annotated[int, typer.Option(help="Times an adapter is loaded, in each of two ways.")] = 3,
    switches: Annotated[int, typer.Option(help="Switches that are timed, held and not.")] = 20,
    device: Device = "cpu",
    threads: Threads = None,
    seed: Seed = 0,
    output: Annotated[Path, typer.Option(help="Records are appended to this file.")] = RESULTS / "switch.jsonl",
) -> None:
    """Switch between two adapters, against loading one."""
    console = open_console()
    with console.status("Loading PyTorch, Transformers and PEFT"):
        from neuroada.measure.benchmarks.switch import SwitchPlan, run_switch
        from neuroada.report.costs import SWITCH_HEADER, switch_cells
        from neuroada.report.rows import grouped
    records = run_switch(SwitchPlan(model, k, dtype, loads, switches, device, seed, threads), console)
    keep_records(console, output, records)
    print_table(console, SWITCH_HEADER, [switch_cells(row) for group in grouped(records) for row in group.rows])


@app.command()
def select(
    shape: Shape = None,
    strategies: Annotated[str, typer.Option(help="Names separated by commas, or all.")] = "all",
    k: PerNeuron = [1, 20],  # noqa: B006 (typer copies it)
    rounds: Rounds = 5,
    dtype: Dtype = "bfloat16",
    device: Device = "cpu",
    threads: Threads = None,
    seed: Seed = 0,
    output: Annotated[Path, typer.Option(help="Records are appended to this file.")] = RESULTS / "select.jsonl",
) -> None:
    """Choose the supports of one block's weights: time and peak memory."""
    console = open_console()
    with console.status("Loading PyTorch, Transformers and PEFT"):
        from neuroada.config.criteria import WITHOUT_DATA
        from neuroada.measure.benchmarks.select import SelectPlan, run_select
        from neuroada.report.costs import SELECT_HEADER, select_rows
        from neuroada.report.rows import grouped
    chosen = WITHOUT_DATA if strategies == "all" else tuple(name.strip() for name in strategies.split(","))
    records = run_select(
        SelectPlan(required_shape(shape), chosen, tuple(k), rounds, dtype, device, seed, threads), console
    )
    keep_records(console, output, records)
    for group in grouped(records):
        print_table(console, SELECT_HEADER, select_rows(group))


@app.command()
def plan(
    model: Annotated[str, typer.Option(help="Base model: a directory or a hub id.")] = "smollm2-135m-instruct",
    methods: Annotated[str, typer.Option(help="neuroada, lora and full, separated by commas.")] = "neuroada,lora,full",
    batch: Annotated[list[int], typer.Option(help="Sequences; repeatable.")] = [1, 4],  # noqa: B006 (typer copies it)
    sequence: Annotated[int, typer.Option("--seq", help="Tokens of a sequence.")] = 256,
    dtype: Dtype = "bfloat16",
    k: Annotated[int, typer.Option(help="Deltas a neuron.")] = 1,
    rank: Annotated[int, typer.Option(help="Rank of LoRA.")] = 8,
    checkpointing: Annotated[bool, typer.Option(help="Compute blocks again in backward.")] = False,
    threads: Threads = None,
    seed: Seed = 0,
    output: Annotated[Path, typer.Option(help="Records are appended to this file.")] = RESULTS / "plan.jsonl",
) -> None:
    """Compare plans with the peak memory of real training on the CPU, a process each."""
    console = open_console()
    with console.status("Loading PyTorch, Transformers and PEFT"):
        from neuroada.measure.benchmarks.plan import PlanCheck, run_plan_check
        from neuroada.report.costs import PLAN_HEADER, plan_cells
        from neuroada.report.rows import grouped
    chosen = tuple(name.strip() for name in methods.split(","))
    check = PlanCheck(model, chosen, tuple(batch), sequence, dtype, k, rank, checkpointing, seed, threads)
    records = run_plan_check(check, console)
    keep_records(console, output, records)
    rows = [plan_cells(row, group.newest.batch or 0) for group in grouped(records) for row in group.rows]
    print_table(console, PLAN_HEADER, rows)


@app.command()
def calibrate(
    model: Annotated[str, typer.Option(help="Base model: a directory or a hub id.")] = "smollm2-135m-instruct",
    max_memory: Annotated[list[int], typer.Option(help="MiB of gradients at a time; repeatable.")] = [16, 64, 256],  # noqa: B006 (typer copies it)
    k: Annotated[int, typer.Option(help="Deltas a neuron.")] = 1,
    batches: Annotated[int, typer.Option(help="Sequences, one at a time.")] = 4,
    sequence: Annotated[int, typer.Option("--seq", help="Tokens of a sequence.")] = 64,
    threads: Threads = None,
    seed: Seed = 0,
    output: Annotated[Path, typer.Option(help="Records are appended to this file.")] = RESULTS / "calibrate.jsonl",
) -> None:
    """Choose inputs by gradients of a few layers at a time, against dense gradients: memory and indices."""
    console = open_console()
    with console.status("Loading PyTorch, Transformers and PEFT"):
        from neuroada.measure.benchmarks.calibrate import CalibrationPlan, run_calibration
        from neuroada.report.costs import CALIBRATE_HEADER, calibrate_rows
        from neuroada.report.rows import grouped
    limits = tuple(size << 20 for size in max_memory)
    records = run_calibration(CalibrationPlan(model, limits, k, batches, sequence, seed, threads), console)
    keep_records(console, output, records)
    for group in grouped(records):
        print_table(console, CALIBRATE_HEADER, calibrate_rows(group))


@app.command("run")
def record_runs(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of complete runs.")],
    output: Annotated[Path, typer.Option(help="Records are appended to this file.")] = RESULTS / "run.jsonl",
) -> None:
    """Record what finished runs trained, cost and scored, for the tables of the docs."""
    console = open_console()
    with console.status("Loading PyTorch, Transformers and PEFT"):
        from neuroada.measure.studies.run import read_run
        from neuroada.report.runs import run_table
    records = [read_run(run) for run in runs]
    keep_records(console, output, records)
    console.print(f"\n{run_table(records)}", soft_wrap=True, markup=False)


@app.command()
def render(
    root: Annotated[Path, typer.Option(help="Repository with README.md, docs and benchmarks/results.")] = Path("."),
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit with 1 if something would change.")
    ] = False,
) -> None:
    """Make the tables and figures of README.md and docs anew from the records."""
    console = open_console()
    from neuroada.errors import MissingInputError
    from neuroada.report.render import render as run

    if not (root / "README.md").is_file():
        raise MissingInputError(f"--root {root}", "no README.md there", "Run this in a clone, or name it with --root")
    changed = run(root, check)
    for path in changed:
        console.print(f"{'stale' if check else 'rendered'}  {path}", soft_wrap=True)
    if check and changed:
        console.print("Run `neuroada bench render` and commit what it writes.")
        raise typer.Exit(1)
