"""What a report reads of a run folder, and what it says about broken ones."""

import json
from pathlib import Path

import pytest

from neuroada.errors import ConfigError, MissingInputError
from neuroada.report.html.examples import Answer, read_examples
from neuroada.report.html.run import Run, read_lines, read_runs, short_names

STEP = {"event": "train", "step": 1, "loss": 2.5, "learning_rate": 0.1}


def only(path: Path) -> Run:
    (run,) = read_runs([path])
    return run


def test_a_trained_run_is_read_whole(trained):
    run = only(trained["neuroada"])
    summary = json.loads((run.path / "summary.json").read_text())
    assert run.method == "NeuroAda k=2"
    assert [step.step for step in run.steps] == [2, 4, 6, 8, 10, 12]
    assert run.evaluated("before").loss == summary["held_out_loss_before"]
    assert run.evaluated("after").loss == summary["held_out_loss_after"]
    assert [score.model_dump() for score in run.scores["after"]] == summary["scores_after"]
    assert run.summary.surviving_deltas == summary["surviving_deltas"]
    assert run.summary.merge.equal


def test_folders_that_are_no_runs_are_named(tmp_path, make_run):
    run = make_run()
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name, found in (("absent", "no such folder"), ("file", "it is a file"), ("empty", "there is no recipe.yaml")):
        with pytest.raises(MissingInputError, match=rf"run .*/{name}: .*{found}.*`neuroada train` wrote"):
            read_runs([run, tmp_path / name])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("recipe.yaml", "model: [", r"recipe .*/recipe.yaml: it is not valid YAML"),
        ("recipe.yaml", "seed: 2024-13-45", r"recipe .*/recipe.yaml: it is not valid YAML"),
        ("recipe.yaml", "- 1", r"recipe .*/recipe.yaml: Input should be a valid dictionary"),
        ("recipe.yaml", "method: lora", r"recipe .*/recipe.yaml: model: Field required"),
        ("summary.json", "{", r"/summary.json: it is not valid JSON"),
        ("summary.json", "[]", r"/summary.json: it holds no JSON object"),
        ("summary.json", '{"steps": "many"}', r"summary .*/summary.json: steps: Input should be a valid integer"),
        ("environment.json", "no", r"/environment.json: it is not valid JSON"),
        ("metrics.jsonl", f"{json.dumps(STEP)}\n{{\n", r"metrics.jsonl, line 2: it is not valid JSON"),
        ("metrics.jsonl", "\n", r"metrics.jsonl, line 1: it is not valid JSON"),
        ("metrics.jsonl", "3\n", r"metrics.jsonl, line 1: it holds no JSON object"),
        ("metrics.jsonl", '{"event": "train", "step": 1}\n', r"metrics.jsonl, line 1: loss: Field required"),
        (
            "metrics.jsonl",
            '{"event": "train", "step": 1, "loss": "x"}\n',
            r"line 1: loss: Input should be a valid number",
        ),
        (
            "metrics.jsonl",
            '{"event": "scores", "when": "after", "scores": [{}]}\n',
            r"line 1: scores.0.name: Field req",
        ),
        ("metrics.jsonl", "\udcff\n", r"metrics.jsonl, line 1: it is not valid JSON"),
    ],
)
def test_a_broken_file_is_named_with_its_line(make_run, file, content, message):
    folder = make_run()
    (folder / file).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=message):
        read_runs([folder])


def test_a_broken_answer_is_named_with_its_line(make_run):
    folder = make_run(answers={"after": [{"test": "boolq"}, {"answer": 1}]})
    with pytest.raises(ConfigError, match=r"answers-after.jsonl, line 2: test: Field required"):
        read_examples(only(folder))


def test_a_line_that_a_kill_cut_short_is_left_out(make_run):
    folder = make_run(records=[STEP])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"event": "train", "ste')
    run = only(folder)
    assert len(run.steps) == 1
    assert run.summary is None


def test_records_of_other_kinds_and_further_fields_are_no_error(make_run):
    run = only(make_run(records=[{"event": "later"}, {**STEP, "grad_norm": 1}], summary={"news": 1}))
    assert len(run.steps) == 1
    assert run.summary is not None


def test_only_line_feeds_end_a_line(make_run):
    folder = make_run()
    text = "one\u2028two\u0085three\x0bfour"
    (folder / "answers-after.jsonl").write_text(
        json.dumps({"test": "t", "generated": text}, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    assert [answer.generated for answer in read_lines(folder / "answers-after.jsonl", Answer)] == [text]


def test_names_are_short_and_differ(make_run):
    assert short_names([Path("/a/b/run"), Path("/a/c/run")]) == ["b/run", "c/run"]
    assert short_names([Path("/a/b/one"), Path("/a/b/two")]) == ["one", "two"]
    assert short_names([Path("/"), Path("/a")]) == ["/", "a"]
    folder = make_run("same")
    assert [run.name for run in read_runs([folder, folder / ".", folder])] == ["same"]


def test_runs_of_one_subject_are_those_with_the_same_tests(make_run):
    subjects = {
        "text": {"task": "text"},
        "text /a.txt": {"task": "text", "text": "/a.txt"},
        "GLUE cola": {"task": "glue", "name": "cola"},
        "commonsense": {"task": "commonsense", "train_set": "commonsense_15k"},
        "instruct my.jsonl": {"task": "instruct", "file": "my.jsonl"},
    }
    for number, (subject, data) in enumerate(subjects.items()):
        assert only(make_run(str(number), data=data)).subject == subject
