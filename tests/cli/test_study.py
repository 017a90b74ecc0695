"""neuroada study and neuroada bench run: cells and runs become records, once."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from neuroada.measure.record import read_records
from neuroada.measure.studies import study as module
from neuroada.measure.studies.study import complete_summary, train_cell
from neuroada_cli.main import app


@pytest.fixture
def study_file(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of two cells, trained in this process."""
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 100)
    recipe = {
        "model": {"name": str(tiny_model_dir), "dtype": "float32"},
        "data": {"text": str(text), "block_length": 32, "held_out_blocks": 2},
        "method": "neuroada",
        "training": {"max_steps": 1, "learning_rate": 0.01},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    methods = {"NeuroAda k=2": {"set": {"neuroada.k": 2}, "learning_rates": [0.1, 0.2]}}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({"recipe": str(tmp_path / "mine.yaml"), "seeds": [0], "methods": methods}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "call_in_fresh_process", lambda _, arguments, __: train_cell(**arguments))
    return path


def neuroada(*arguments: str):
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return done


def test_a_cell_is_recorded_once_however_often_the_study_is_run(study_file: Path):
    for _ in range(2):
        done = neuroada("study", str(study_file), "--records", "study.jsonl")
        assert "2 cells, 0 failed; records in study.jsonl" in done.stderr
    records = read_records(Path("study.jsonl"))
    assert [record.settings["learning_rate"] for record in records] == [0.1, 0.2]
    cell = Path("runs/small") / records[0].notes["cell"]
    assert records[0].created == json.loads((cell / "environment.json").read_text())["created"]


def test_a_cell_that_another_machine_has_recorded_meanwhile_is_not_recorded_again(
    study_file: Path, monkeypatch: pytest.MonkeyPatch
):
    neuroada("study", str(study_file), "--records", "theirs.jsonl")

    def meanwhile(*arguments):
        shutil.copy("theirs.jsonl", "shared.jsonl")
        return complete_summary(*arguments)

    monkeypatch.setattr(module, "complete_summary", meanwhile)
    neuroada("study", str(study_file), "--records", "shared.jsonl")
    assert Path("shared.jsonl").read_bytes() == Path("theirs.jsonl").read_bytes()


def test_a_cell_that_was_damaged_and_is_whole_again_is_recorded_so(study_file: Path):
    neuroada("study", str(study_file), "--records", "study.jsonl")
    first = read_records(Path("study.jsonl"))
    environment = Path("runs/small") / first[0].notes["cell"] / "environment.json"
    whole = environment.read_bytes()
    environment.unlink()
    for _ in range(2):
        done = CliRunner().invoke(app, ["study", str(study_file), "--records", "study.jsonl"])
        assert done.exit_code == 1
        assert "its run is complete, but cannot be read" in done.stderr
    environment.write_bytes(whole)
    neuroada("study", str(study_file), "--records", "study.jsonl")
    records = read_records(Path("study.jsonl"))
    assert [record.status for record in records] == ["ok", "ok", "failed", "ok"]
    assert (records[-1].created, records[-1].measurements) == (first[0].created, first[0].measurements)


def test_finished_runs_become_records_and_tables(study_file: Path):
    neuroada("study", str(study_file))
    runs = sorted(map(str, Path("runs/small").glob("neuroada-*")))
    done = neuroada("bench", "run", *runs, "--output", "run.jsonl")
    assert "2 records appended to run.jsonl" in done.stdout
    assert [record.notes["run"] for record in read_records(Path("run.jsonl"))] == [Path(run).name for run in runs]
    assert done.stdout.count("| NeuroAda (k=2) |") == 2


def test_damaged_records_are_told_before_anything_is_trained(study_file: Path):
    Path("study.jsonl").write_text('{"kind": "st')
    done = CliRunner().invoke(app, ["study", str(study_file), "--records", "study.jsonl"])
    assert done.exit_code == 2
    assert "record in study.jsonl, line 1" in done.stderr
    assert not Path("runs").exists()


def test_an_edited_study_is_recorded_as_it_is_now(study_file: Path):
    neuroada("study", str(study_file), "--records", "study.jsonl")
    study = yaml.safe_load(study_file.read_text())
    study["methods"]["NeuroAda k=2"]["learning_rates"] = [0.1]
    study_file.write_text(yaml.safe_dump(study))
    for _ in range(2):
        neuroada("study", str(study_file), "--records", "study.jsonl")
    records = read_records(Path("study.jsonl"))
    rates = [(record.settings["learning_rate"], record.notes["learning_rates"]) for record in records]
    assert rates == [(0.1, "0.1, 0.2"), (0.2, "0.1, 0.2"), (0.1, "0.1")]
    assert records[2].created == records[0].created
