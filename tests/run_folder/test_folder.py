"""The run folder: when it may be made, continued, and what survives an interruption."""

import os
from pathlib import Path

import pytest

from neuroada.errors import ConfigError, RunFolderError
from neuroada.recipe.loading import check_recipe, to_yaml
from neuroada.run_folder.folder import RunFolder, require_place, whole_folder, write_text


def resolved(**changes) -> str:
    content = {"model": {"name": "m"}, "method": "neuroada", "training": {"max_steps": 2, "learning_rate": 0.1}}
    return to_yaml(check_recipe(content | changes, "a recipe"))


@pytest.fixture
def begun(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.create(resolved(), {"python": "3"})
    return folder


def test_new_and_empty_folders_are_fresh(tmp_path: Path):
    RunFolder(tmp_path).check_fresh()
    RunFolder(tmp_path / "deep" / "run").check_fresh()
    assert list(tmp_path.iterdir()) == []


def test_folder_that_exists_already(begun: RunFolder):
    with pytest.raises(
        RunFolderError, match=r"exists already and is not empty. Choose another --output, or .*--resume"
    ):
        begun.check_fresh()


def test_unwritable_folder(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(RunFolderError, match=f"{file} is a file, not a folder. Choose an --output that can be written"):
        RunFolder(file / "run").check_fresh()
    with pytest.raises(RunFolderError, match="it is a file"):
        RunFolder(file).check_fresh()
    with pytest.raises(RunFolderError, match="Choose an --output that can be written"):
        RunFolder(file / "run").create("", {})


def test_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write everywhere
    with pytest.raises(RunFolderError, match=f"{tmp_path} is not writable. Choose an --output that can be written"):
        RunFolder(tmp_path / "deep" / "run").check_fresh()


def test_resume_needs_an_unfinished_run_of_the_same_recipe(begun: RunFolder, tmp_path: Path):
    begun.check_resumable(resolved())
    with pytest.raises(ConfigError, match="begun with another recipe; now: seed: 3"):
        begun.check_resumable(resolved(seed=3))
    with pytest.raises(RunFolderError, match="there is no run in it"):
        RunFolder(tmp_path / "other").check_resumable("")
    begun.finish({})
    with pytest.raises(RunFolderError, match="that run is complete"):
        begun.check_resumable(resolved())


def test_a_run_begun_before_recipes_had_a_key_goes_on_with_its_default(begun: RunFolder):
    older = "".join(line for line in resolved().splitlines(keepends=True) if "calibration_records" not in line)
    assert older != resolved()
    begun.recipe.write_text(older)
    begun.check_resumable(resolved())
    begun.check_resumable(resolved(data={"task": "text", "data_dir": "/elsewhere"}))
    with pytest.raises(ConfigError, match="now: calibration_records: 7"):
        begun.check_resumable(resolved(calibration_records=7))


def test_rewind_drops_what_is_done_again_and_a_torn_line(begun: RunFolder):
    begun.record("evaluate", when="before", loss=2.0)
    for step in (1, 2, 3):
        begun.record("train", step=step, loss=1.0)
    begun.record("evaluate", when="after", loss=1.0)
    with begun.metrics.open("a") as file:
        file.write('{"event": "tra')
    begun.rewind(2)
    assert [record["step"] for record in begun.records("train")] == [1, 2]
    assert begun.records("evaluate") == [{"event": "evaluate", "when": "before", "loss": 2.0}]
    assert begun.metrics.read_text().count("\n") == 3


def test_last_checkpoint_is_the_newest_complete_one(begun: RunFolder):
    assert begun.last_checkpoint() is None
    for step in (9, 10, 11):
        (begun.checkpoints / f"checkpoint-{step}").mkdir(parents=True)
        if step < 11:
            (begun.checkpoints / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert begun.last_checkpoint() == begun.checkpoints / "checkpoint-10"


def test_a_failed_write_leaves_the_old_folder(tmp_path: Path):
    target = tmp_path / "adapter"
    with whole_folder(target) as beside:
        write_text(beside / "file", "old")
    with pytest.raises(FileNotFoundError), whole_folder(target) as beside:
        write_text(beside / "absent" / "file", "new")
    assert (target / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_place_of_a_file_is_made_or_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    require_place(tmp_path / "new" / "folder" / "scores.json", "--output")
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "folder"]
    (tmp_path / "file").write_text("")
    for place, found in (("new", "it is a folder"), ("file/scores.json", "(Not a directory|File exists)")):
        with pytest.raises(
            ConfigError, match=rf"--output {tmp_path / place}: {found}. Name a file that can be written"
        ):
            require_place(tmp_path / place, "--output")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ConfigError, match="its folder cannot be written to"):
        require_place(tmp_path / "scores.json", "--output")


def test_whole_folder_replaces_or_keeps(tmp_path: Path):
    target = tmp_path / "adapter"
    for content, keep in (("first", False), ("second", False), ("third", True)):
        with whole_folder(target, keep_existing=keep) as beside:
            write_text(beside / "file", content)
    assert (target / "file").read_text() == "second"
