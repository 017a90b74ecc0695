"""Errors name what a person typed: an option or a --set, and not the bundled file that it was meant for."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from neuroada.recipe.data import DATA
from neuroada_cli.main import app
from neuroada_cli.options import OPTIONS

OF_DATA = {key.removeprefix("data."): option for key, option in OPTIONS.items() if key.startswith("data.")}
SPACE = ("--search", "training.learning_rate={low: 1e-3, high: 1e-1}", "--in-process")


def said(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    return done.stderr.removeprefix("Error: ")


def recipe_of(task: str, folder: Path) -> str:
    needed = {"instruct": "file: a.jsonl", "glue": "name: sst2", "images": "name: dtd"}.get(task, "")
    path = folder / f"{task}.yaml"
    training = "training: {max_steps: 1, learning_rate: 0.1}"
    path.write_text(f"model: {{name: none}}\nmethod: neuroada\n{training}\ndata: {{task: {task}, {needed}}}\n")
    return str(path)


MISSING = [(task, key) for task, kind in DATA.items() for key in OF_DATA if key not in kind.model_fields]


@pytest.mark.parametrize(("task", "key"), MISSING)
@pytest.mark.parametrize("command", ["train", "tune"])
def test_an_option_that_the_task_does_not_have_is_named(command: str, task: str, key: str, tmp_path: Path):
    option = OF_DATA[key]
    if command == "tune" and key == "strict":
        return  # it has no such option
    given = [option] if key == "strict" else [option, str(tmp_path)]
    message = said(command, recipe_of(task, tmp_path), *given, *(SPACE if command == "tune" else ()))
    assert message.startswith(f"{option}: unknown key 'data.{key}'. The recipe's task {task!r} takes ")
    assert all(name in message for name in DATA[task].model_fields)
    assert f"Tasks with {key!r}: " in message
    assert "Did you mean" not in message
    assert ".yaml" not in message


@pytest.mark.parametrize("command", ["train", "tune"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.lerning=3", "unknown key 'data.lerning'. The recipe's task 'text' takes task, text, data_dir, "),
        ("training.lerning_rate=1", "unknown key 'training.lerning_rate'. Did you mean 'learning_rate'? Known: "),
        ("training.eval_steps=5", "unknown key 'training.eval_steps'. Known: max_steps, "),
        ("trainig.max_steps=5", "unknown key 'trainig'. Did you mean 'training'? Known: model, data, "),
        ("training={max_step: 5}", "unknown key 'training.max_step'. Did you mean 'max_steps'? "),
        ("sead=1", "unknown key 'sead'. Did you mean 'seed'? "),
    ],
)
def test_a_misspelt_key_of_set_is_named(command: str, change: str, message: str, tmp_path: Path):
    found = said(command, "quickstart", "--set", change, *(SPACE if command == "tune" else ()))
    assert found.startswith(f"--set {change}: {message}")
    assert "quickstart.yaml" not in found


VALUES: list[tuple[str, Any]] = [
    ("training.max_steps=many", "training.max_steps = 'many': Input should be a valid integer"),
    ("seed=-1", "seed = -1: Input should be greater than or equal to 0"),
    ("method=neurada", "method = 'neurada': no such method. Did you mean 'neuroada'?"),
    ("data.task=texd", "data.task = 'texd': no such task. Did you mean 'text'?"),
    ("model.name=", "model.name = null: Input should be a valid string"),
    ("training.learning_rate=.nan", "nan is no finite number. Give a finite number"),
    ("neuroada.k=0", "each covered neuron needs a whole number of at least 1 delta"),
    ("neuroada.selecton=random", "neuroada has no setting 'selecton'. Did you mean 'selection'?"),
    ("neuroada.target_modules=(((", "'(((' is not a regular expression"),
    ("training.a.b=1", "unknown key 'training.a'. Known: "),
    ("seed.a=1", "seed: Input should be a valid integer"),
    ("method.a=1", "'method' is a value, not a section"),
]


@pytest.mark.parametrize(("change", "message"), VALUES)
def test_a_bad_value_of_set_is_named(change: str, message: str):
    assert said("train", "quickstart", "--set", change).startswith(f"--set {change}: {message}")


def test_several_are_each_named(tmp_path: Path):
    message = said("train", "quickstart", "--file", "a", "--set", "training.max_steps=0", "--set", "sed=1")
    for part in ("--file: unknown key 'data.file'", "--set training.max_steps=0: ", "--set sed=1: unknown key 'sed'"):
        assert part in message


def test_what_contradicts_the_recipe_is_named_beside_it(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: quickstart\ndata: {data_dir: a}\n")
    message = said("train", str(path), "--text", "b.txt")
    assert message.startswith(f"recipe {path} with --text: data: text and data_dir are both given")


def test_a_fault_of_the_file_is_the_file_s(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: quickstart\ntrainig: {max_steps: 1}\n")
    assert said("train", str(path), "--set", "seed=1").startswith(f"recipe {path}: unknown key 'trainig'")
    assert said("train", str(path), "--set", "trainig.max_steps=2").startswith(f"recipe {path}: unknown key 'trainig'")
