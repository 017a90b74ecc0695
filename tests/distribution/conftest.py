"""What two processes trained, and what one process trains of the same."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from _pytest.outcomes import Skipped
from rich.console import Console

from neuroada.training.train import train as train_recipe
from specimens import one_thread

from .checks import SMALL, TINY
from .courses import ROWS, Course, adapted, loop, recipe_of, train
from .launch import launch

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="session")
def given(request: pytest.FixtureRequest, tiny_model_dir: Path) -> dict[str, Course]:
    """A tiny Llama, half of its neurons adapted, by two optimisers, and by NEAT; if SmolLM2 is at hand, all of it with
    one delta a neuron, and its first blocks with twenty."""
    tiny = Course("tiny", str(tiny_model_dir), {"k": 3, "coverage": 0.5, "target_modules": ATTENTION}, 4, blocks=2)
    network = {"r": 3, "depth": 4, "target_modules": ATTENTION}
    neat = replace(tiny, name="neat", method="neat", config=network)
    found = [neat, replace(tiny, name="adamw", optimiser="adamw_torch"), tiny]
    try:
        smollm2 = str(request.getfixturevalue("smollm2"))
        one, twenty = ({"k": k} for k in (1, 20))
        found = [Course("k1", smollm2, one, 2, blocks=30), Course("k20", smollm2, twenty, 2, blocks=4), *found]
    except Skipped:
        pass
    return {course.name: course for course in found}


@pytest.fixture(scope="session")
def two_ddp(given: dict[str, Course], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what two processes trained with DistributedDataParallel."""
    folder = tmp_path_factory.mktemp("ddp")
    launch("ddp", folder, list(given.values()))
    return folder


@pytest.fixture(scope="session")
def two_fsdp(given: dict[str, Course], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what two processes trained with FSDP2."""
    folder = tmp_path_factory.mktemp("fsdp")
    launch("fsdp", folder, list(given.values()))
    return folder


@pytest.fixture(scope="session")
def one_process(
    given: dict[str, Course], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Path]]:
    """For a course by name: folders of what one process makes of whole batches, and of their rows one by one.

    They differ in the order of sums alone, as the gradients of two processes do.
    """
    done: dict[str, tuple[Path, Path]] = {}

    def trained(name: str) -> tuple[Path, Path]:
        if name not in done:
            whole, rows = (tmp_path_factory.mktemp(f"{name}-{part}") for part in ("whole", "rows"))
            train(given[name], whole)
            train(given[name], rows, per_device_train_batch_size=1, gradient_accumulation_steps=ROWS)
            done[name] = whole, rows
        return done[name]

    return trained


@pytest.fixture(scope="session")
def one_loop(given: dict[str, Course], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """As `one_process` of the tiny Llama, by a training loop of one's own."""
    folders = tmp_path_factory.mktemp("loop-whole"), tmp_path_factory.mktemp("loop-rows")
    for parts, folder in zip((1, ROWS), folders, strict=True):
        model = adapted(given["tiny"])
        loop(model, given["tiny"], parts=parts)
        model.save_pretrained(str(folder / "adapter"))
    return folders


@pytest.fixture(scope="session")
def one_run(given: dict[str, Course], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of the recipe that two processes train, trained by one."""
    folder = tmp_path_factory.mktemp("recipe")
    train_recipe(recipe_of(given["tiny"], folder, ROWS), folder / "run", Console(quiet=True))
    return folder / "run"


@pytest.fixture(params=[*SMALL, *TINY])
def sparse(request, given) -> str:
    """Name of a course with NeuroAda; those of SmolLM2 only where it is at hand."""
    if request.param in SMALL:
        request.getfixturevalue("smollm2")
    return request.param


@pytest.fixture(params=[*SMALL, *TINY, "neat"])
def name(request, given) -> str:
    """Of any course."""
    if request.param in SMALL:
        request.getfixturevalue("smollm2")
    return request.param
