"""`neuroada report`: where the page goes."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from neuroada.errors import ConfigError, MissingInputError
from neuroada_cli.report import report

app = typer.Typer()
app.command()(report)


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_one_run_has_its_page_beside_it(make_run):
    folder = make_run()
    assert str(folder / "report.html") in run(folder)
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert "report.html" in {path.name for path in folder.iterdir()}


def test_several_runs_have_theirs_here(make_run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    run(make_run("one"), make_run("two"))
    assert "2 runs" in (tmp_path / "report.html").read_text()


def test_a_page_is_replaced_and_folders_are_made(make_run, tmp_path: Path):
    folder, output = make_run(), tmp_path / "new" / "page.html"
    run(folder, "--output", output)
    output.write_text("old")
    run(folder, "--output", output)
    assert "old" not in output.read_text()[:20]
    assert [path.name for path in output.parent.iterdir()] == ["page.html"]


def test_a_page_that_cannot_be_made_leaves_the_old_one(make_run, tmp_path: Path):
    output = tmp_path / "page.html"
    output.write_text("old")
    folder = make_run()
    (folder / "metrics.jsonl").write_text("{\n")
    with pytest.raises(ConfigError, match=r"metrics.jsonl, line 1"):
        run(folder, "--output", output)
    assert output.read_text() == "old"


def test_outputs_that_cannot_be_written(make_run, tmp_path: Path):
    folder = make_run()
    with pytest.raises(ConfigError, match=rf"--output {tmp_path}: it is a folder. Name a file that can be written"):
        run(folder, "--output", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--output .*/file/page.html: .*Name a file that can be written"):
        run(folder, "--output", tmp_path / "file" / "page.html")


def test_a_folder_that_is_no_run(tmp_path: Path):
    with pytest.raises(MissingInputError, match="it is no run"):
        run(tmp_path)
