"""The command line: help, exit codes, and what a person reads when something is wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from neuroada.measure.studies.grid import bundled_studies
from neuroada.recipe.files import bundled_recipes
from neuroada_cli.main import app

HELP = Path(__file__).with_name("help.txt")
COMMANDS = (
    *([], ["train"], ["eval"], ["merge"], ["plan"], ["recipes"], ["report"], ["study"], ["tune"]),
    *(["bench"], ["bench", "step"], ["bench", "op"], ["bench", "render"]),
)
RUN = "from neuroada_cli.main import app; app(prog_name='neuroada')"


def neuroada(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "100", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, env=environment, **options
    )


def test_help_is_the_snapshot():
    printed = "".join(neuroada(*command, "--help").stdout for command in COMMANDS)
    assert printed == HELP.read_text(), f"if this is meant, write the new help to {HELP}"


@pytest.mark.parametrize("command", [["train", "--help"], ["recipes"], ["study"]], ids=" ".join)
def test_help_and_lists_import_nothing_heavy(command: list[str]):
    script = f"""
import sys
from neuroada_cli.main import app
try:
    app({command!r})
except SystemExit:
    pass
print(sorted({{"torch", "transformers", "peft", "datasets", "neuroada"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_lists_name_every_file():
    for command, names in (("recipes", bundled_recipes()), ("study", bundled_studies())):
        lines = CliRunner().invoke(app, [command]).stdout.splitlines()
        assert [line.split()[0] for line in lines] == list(names)


def test_error_is_one_plain_message_and_exit_code_2():
    done = CliRunner().invoke(app, ["train", "quikstart"])
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: recipe 'quikstart': neither a bundled recipe nor a file. Did you mean")
    assert "Traceback" not in done.output


def test_resume_needs_to_know_the_run():
    done = CliRunner().invoke(app, ["train", "quickstart", "--resume"])
    assert done.exit_code == 2
    assert "--resume: no --output says which run" in done.stderr


def test_other_exceptions_keep_their_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("neuroada.recipe.files.find_recipe", lambda name: 1 / 0)
    assert isinstance(CliRunner().invoke(app, ["train", "quickstart"]).exception, ZeroDivisionError)


def test_options_reach_the_recipe(tiny_model_dir: Path, tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("some words of text\n" * 300)
    done = CliRunner().invoke(
        app,
        [
            *("train", "quickstart", "--model", str(tiny_model_dir), "--text", str(text), "--dry-run"),
            *("--set", "neuroada.k=3", "--set", "data.block_length=16", "--output", str(tmp_path / "run")),
        ],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.stderr
    for phrase in ("NeuroAda (k=3, target_modules=all-linear) on 14 layers", "16 tokens each"):
        assert phrase in " ".join(done.stdout.split())
    assert not (tmp_path / "run").exists()


def test_ctrl_c_before_there_is_a_run_promises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("neuroada.training.train.train", interrupted)
    done = CliRunner().invoke(app, ["train", "quickstart", "--output", str(tmp_path / "run")])
    assert done.exit_code == 130
    assert "--resume" not in done.output
    assert "Interrupted." in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_says_how_to_go_on(tiny_model_dir: Path, tmp_path: Path):
    text, output = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("some words of text\n" * 300)
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", RUN, "train", "quickstart", "--model", str(tiny_model_dir)),
            *("--text", str(text), "--output", str(output), "--set", "data.block_length=16"),
            *("--set", "training.max_steps=1000000"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "100"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    try:
        deadline = time.monotonic() + 120
        while not list(output.glob("checkpoints/checkpoint-*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert f"--resume --output {output}" in printed
    assert errors.splitlines()[-1] == "Interrupted."
    assert "Traceback" not in errors


def test_eval_writes_scores_and_answers_where_it_may(tiny_model_dir: Path, tmp_path: Path):
    tests = tmp_path / "commonsense" / "boolq" / "test.jsonl"
    tests.parent.mkdir(parents=True)
    question = {"instruction": "Is it?", "input": "", "output": "the correct answer is true", "answer": "true"}
    tests.write_text(f"{json.dumps(question)}\n" * 3)
    asked = ["eval", str(tiny_model_dir), "--tasks", "boolq", "--data-dir", str(tmp_path), "--records", "2"]
    asked += ["--max-new-tokens", "2", "--output"]
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(app, [*asked, str(tmp_path / "file" / "scores.json")])
    assert done.exit_code == 2
    assert "Scoring" not in done.output, "what cannot be written is said before anything is scored"
    done = CliRunner().invoke(app, [*asked, str(tmp_path / "new" / "scores.json")])
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "new" / "scores.json").read_text())
    assert [score["name"] for score in content["scores"]] == ["boolq"]
    assert len(content["answers"]) == 2
