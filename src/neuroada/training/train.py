"""The road of a recipe: prepare, choose, describe, fit, save, compare, report; the other modules are its steps."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console
from transformers import TrainerCallback

from neuroada.evaluation.merged import compare_merged
from neuroada.recipe.loading import to_yaml
from neuroada.recipe.methods import METHODS
from neuroada.recipe.schema import Recipe
from neuroada.run_folder.complete import require_exact
from neuroada.run_folder.environment import environment, peak_memory
from neuroada.run_folder.folder import RunFolder
from neuroada.run_folder.summary import closing_pairs, print_pairs
from neuroada.training.arguments import trainer_arguments
from neuroada.training.calibration import choose_by_data
from neuroada.training.fit import fit
from neuroada.training.header import header
from neuroada.training.prepared import Prepared, prepare
from neuroada.training.regrowth import check_regrowth
from neuroada.training.save import save
from neuroada.training.trackers import check_trackers
from neuroada.tuners.processes import is_sharded

PATIENCE = timedelta(days=7)
"""How long processes wait for the first one, which alone answers the tests; PyTorch's own is ten minutes."""


def train(
    recipe: Recipe,
    output: Path,
    console: Console,
    *,
    resume: bool = False,
    dry_run: bool = False,
    score_tests: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any] | None:
    """Train as `recipe` says into the run folder `output`; returns the summary that is also written there.

    With `resume`, an interrupted run goes on from its last checkpoint. With `dry_run`, everything is
    loaded and the header printed, but nothing is trained or written. Without `score_tests` the task's tests are left
    alone, as a search for settings must. `callbacks` are Trainer's, beside the run's own.

    Raises:
        NeuroAdaError: an input is missing or cannot be meant; the run folder is then untouched.
        MergeError: merging changed outputs although the method promises that it does not; the run is complete then.
    """
    began = time.perf_counter()
    processes = PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)
    leads, sharded = processes.is_main_process, is_sharded()
    console = console if leads else Console(quiet=True)
    folder, resolved = RunFolder(output, writes=leads), to_yaml(recipe)
    with ExitStack() as stack:
        if resume:
            folder.check_resumable(resolved)
            stack.enter_context(folder.locked())
        elif leads:
            folder.check_fresh()
        check_trackers(recipe.training.report_to, folder)
        check_regrowth(recipe.regrowth)

        prepared = prepare(recipe, console)
        if not score_tests or sharded:
            prepared = prepared.without_tests()
        arguments = trainer_arguments(recipe.training, recipe.evaluation.before, recipe.seed, folder, prepared.data)
        if not dry_run:
            prepared = _chosen(recipe, prepared, console, folder)
        print_pairs(console, "Run", header(recipe, prepared, arguments, folder))
        if dry_run:
            console.print("\nDry run: nothing was trained or written.")
            return None

        course = prepared.depends_on(arguments.world_size)
        if resume:
            folder.check_same_course(course)
        else:
            folder.create(resolved, environment(arguments.device, recipe.seed) | course)
            stack.enter_context(folder.locked())
            for each in prepared.data.left_out:
                folder.record("left out", place=each.place, reason=each.reason)
        stack.enter_context(folder.saying_what_is_full())
        trained, state = fit(recipe, prepared, arguments, folder, console, callbacks)
        prepared.trainee.finish()
        if leads:
            save(recipe, prepared, folder, state)
        merge = None
        if METHODS[recipe.method].merges and not sharded:
            data, rows = prepared.data, recipe.training.per_device_eval_batch_size
            merge = compare_merged(prepared.model, data.held_out, data.collator, rows)

        memory, memory_of = peak_memory(arguments.device)
        processes.wait_for_everyone()
        saved = folder.trained(recipe.method)
        summary = {
            **trained,
            "peak_memory_bytes": max(memory, trained["peak_memory_bytes"]),
            "peak_memory_of": memory_of,
            "adapter_bytes": sum(file.stat().st_size for file in saved.glob("*.safetensors")),
            "merge": merge,
            "run_folder": str(output),
            "seconds": time.perf_counter() - began,
        }
        folder.finish(summary)
        print_pairs(console, "Result", closing_pairs(summary))
        require_exact(recipe.method, summary, folder)
        return summary


def _chosen(recipe: Recipe, prepared: Prepared, console: Console, folder: RunFolder) -> Prepared:
    """With the support that data choose, where the recipe's criterion needs any."""
    selection, data = recipe.settings.get("selection"), prepared.data
    checkpoint = folder.last_checkpoint()
    trainee = choose_by_data(prepared.trainee, selection, recipe.calibration, recipe.seed, data, console, checkpoint)
    return replace(prepared, trainee=trainee)
