"""GLUE: what is read, how it is halved and thinned."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from neuroada.errors import ConfigError, MissingInputError
from neuroada.tasks import glue
from neuroada.tasks.glue import PAPER_TASKS, TASKS, glue_task, halves, load_glue, subset

from .glue_records import record, rte

SHARED = Path(__file__).parents[3] / "shared" / "data"
COUNTS = {"cola": (8151, 1043), "sst2": (67349, 872), "mrpc": (3668, 408), "stsb": (5749, 1500), "rte": (2250, 277)}


@pytest.fixture
def write(tmp_path: Path):
    """Writes tmp_path/glue/NAME, each record one line."""

    def write(name: str, records: list[dict], packed: bool = False) -> Path:
        path = tmp_path / "glue" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(record) + "\n" for record in records).encode()
        path.write_bytes(gzip.compress(text) if packed else text)
        return tmp_path

    return write


def test_the_sets_are_those_of_the_benchmark():
    metrics = {name: task.metric for name, task in TASKS.items() if task.metric != "accuracy"}
    assert metrics == {"cola": "matthews", "stsb": "pearson"}
    assert {name: task.outputs for name, task in TASKS.items() if task.outputs != 2} == {"stsb": 1, "mnli": 3}
    assert [name for name, task in TASKS.items() if len(task.fields) == 1] == ["cola", "sst2"]
    assert len(PAPER_TASKS) == 8
    assert "wnli" not in PAPER_TASKS


def test_unknown_set():
    with pytest.raises(ConfigError, match=r"GLUE set 'sst-2': no such set\. Did you mean 'sst2'\? Known: cola, sst2, "):
        glue_task("sst-2")


def test_records_and_halves_of_a_folder(write):
    data_dir = write("rte/train.jsonl", rte(30))
    write("rte/dev.jsonl.gz", rte(11, first=100), packed=True)
    data = load_glue("rte", data_dir)
    assert data.source == str(data_dir / "glue" / "rte")
    assert data.train[3] == {"sentence1": "premise 3", "sentence2": "claim 3", "label": 1}
    assert len(data.train) == 30
    assert (len(data.selection), len(data.test)) == (5, 6)
    sentences = [record["sentence1"] for record in data.selection + data.test]
    assert sorted(sentences) == [f"premise {number}" for number in range(100, 111)]


def test_one_sentence_leaves_the_second_empty(write):
    data_dir = write("cola/dev.jsonl", [{"sentence": "They sat.", "label": 1}, {"sentence": "They sits.", "label": 0}])
    data = load_glue("cola", data_dir, train_records=0)
    assert data.train == []
    assert sorted(record["label"] for record in data.selection + data.test) == [0, 1]
    assert {record["sentence2"] for record in data.selection + data.test} == {None}


def test_premise_comes_first_and_the_matched_file_counts(write):
    rows = [{"premise": "p", "hypothesis": "h", "label": label} for label in (0, 2)]
    data = load_glue("mnli", write("mnli/validation_matched.jsonl", rows), train_records=0)
    assert (data.test[0]["sentence1"], data.test[0]["sentence2"]) == ("p", "h")


def test_labels_of_a_regression_are_floats(write):
    rows = [{"sentence1": "a", "sentence2": "b", "label": label} for label in (5, 0.0, 2.5)]
    data = load_glue("stsb", write("stsb/dev.jsonl", rows), train_records=0)
    labels = [record["label"] for record in data.selection + data.test]
    assert sorted(labels) == [0.0, 2.5, 5.0]
    assert {type(label) for label in labels} == {float}


def test_the_two_empty_questions_of_qqp_are_read(write):
    rows = [{"question1": "How?", "question2": "", "label": 0}] * 2
    assert len(load_glue("qqp", write("qqp/dev.jsonl", rows), train_records=0).test) == 1


@pytest.mark.parametrize(
    ("name", "label", "message"),
    [
        ("rte", 2, r"label 2 is out of range\. Write 0 to 1 \(entailment, not_entailment\)"),
        ("rte", -1, r"label -1 is out of range\. Write 0 to 1"),
        ("stsb", 5.1, r"label 5\.1 is out of range\. Write 0 to 5\."),
        ("rte", "1", r"'label' is text\. Write a whole number there"),
        ("rte", 0.5, r"'label' is a number\. Write a whole number there"),
    ],
)
def test_bad_label_is_told_with_file_and_line(write, name, label, message):
    data_dir = write(f"{name}/dev.jsonl", [*rte(2), record("a", "b", label)])
    with pytest.raises(MissingInputError, match=rf"{data_dir}/glue/{name}/dev\.jsonl, line 3: {message}"):
        load_glue(name, data_dir, train_records=0)


def test_bad_label_in_a_json_list_is_told_with_its_number(tmp_path, write):
    write("rte/dev.json", [])
    (tmp_path / "glue" / "rte" / "dev.json").write_text(json.dumps([*rte(1), record("a", "b", 7)]))
    with pytest.raises(MissingInputError, match=r"dev\.json, record 2: label 7 is out of range"):
        load_glue("rte", tmp_path, train_records=0)


def test_bad_label_on_the_hub_is_told_with_split_and_row(monkeypatch):
    asked = []

    def hub(data_dir, candidates, fields, hub, may_be_empty):
        asked.append(hub)
        return rte(3) if hub[2] == "train" else [*rte(1), record("a", "b", -1)]

    monkeypatch.setattr(glue, "load_records", hub)
    with pytest.raises(MissingInputError, match=r"nyu-mll/glue.*rte.*validation, row 2: label -1 is out of range"):
        load_glue("rte", None)
    assert asked == [("nyu-mll/glue", "rte", "validation")]


def test_hub_places_of_both_splits(monkeypatch):
    asked = []

    def hub(data_dir, candidates, fields, hub, may_be_empty):
        asked.append((data_dir, hub, dict(fields)))
        return [{"premise": "p", "hypothesis": "h", "label": 2}] * 4

    monkeypatch.setattr(glue, "load_records", hub)
    assert load_glue("mnli", None).source == "nyu-mll/glue, mnli"
    fields = {"premise": str, "hypothesis": str, "label": int}
    assert asked == [
        (None, ("nyu-mll/glue", "mnli", "validation_matched"), fields),
        (None, ("nyu-mll/glue", "mnli", "train"), fields),
    ]


def test_set_without_training_files_says_so_only_when_training(write):
    rows = [{"question": "Who?", "sentence": "I.", "label": 0}] * 4
    data_dir = write("qnli/dev.jsonl.gz", rows, packed=True)
    assert len(load_glue("qnli", data_dir, train_records=0).test) == 2
    with pytest.raises(
        MissingInputError,
        match=r"training set of qnli: no glue/qnli/train, ending in .*\. Put it there, leave the data folder out to "
        r"train on the hub's set, or only evaluate \(train_records=0\)\.",
    ):
        load_glue("qnli", data_dir)


def test_missing_validation_set_names_what_was_looked_for(write):
    with pytest.raises(MissingInputError, match=r"no glue/rte/dev or glue/rte/validation, ending in \.jsonl"):
        load_glue("rte", write("rte/train.jsonl", rte(4)))


@pytest.mark.parametrize("count", [31, -1])
def test_subset_larger_than_the_set(write, count):
    data_dir = write("rte/train.jsonl", rte(30))
    write("rte/dev.jsonl", rte(4))
    with pytest.raises(ConfigError, match=rf"train_records={count} of rte: .* has 30 records\. Give 0 to 30"):
        load_glue("rte", data_dir, train_records=count)


@pytest.mark.parametrize(("count", "selected"), [(5001, 1000), (5000, 2500), (277, 138), (2, 1)])
def test_selection_is_a_thousand_of_large_sets_and_half_of_small_ones(count, selected):
    records = [record(str(number)) for number in range(count)]
    selection, test = halves(records, 42)
    assert (len(selection), len(test)) == (selected, count - selected)
    assert sorted(int(each["sentence1"]) for each in selection + test) == list(range(count))


def test_halves_follow_their_seed_and_are_no_plain_cut():
    records = [record(str(number)) for number in range(100)]
    assert halves(records, 1) == halves(records, 1)
    assert halves(records, 1) != halves(records, 2)
    assert halves(records, 1)[0] != records[:50]


@pytest.mark.parametrize("count", [1, 7, 100, 333, 999, 1000])
def test_subset_keeps_the_share_of_each_label(count):
    labels = [0] * 700 + [1] * 291 + [2] * 9
    records = [record(str(number), label=label) for number, label in enumerate(labels)]
    chosen = subset(records, count, seed=3)
    numbers = [int(each["sentence1"]) for each in chosen]
    assert numbers == sorted(set(numbers))
    assert len(chosen) == count
    found = Counter(each["label"] for each in chosen)
    for label, size in Counter(labels).items():
        assert abs(found[label] - size * count / 1000) <= 1


def test_subset_follows_its_seed_and_reaches_every_record():
    records = [record(str(number), label=number % 2) for number in range(40)]
    assert subset(records, 10, 1) == subset(records, 10, 1)
    assert subset(records, 10, 1) != subset(records, 10, 2)
    reached = {each["sentence1"] for seed in range(40) for each in subset(records, 10, seed)}
    assert len(reached) == 40


@pytest.mark.skipif(not (SHARED / "glue").is_dir(), reason=f"the data at hand are not in {SHARED}")
@pytest.mark.parametrize("name", COUNTS)
def test_the_sets_at_hand(name):
    data = load_glue(name, SHARED)
    train, validation = COUNTS[name]
    assert (len(data.train), len(data.selection) + len(data.test)) == (train, validation)
    assert len(data.selection) == validation // 2


@pytest.mark.skipif(not (SHARED / "glue").is_dir(), reason=f"the data at hand are not in {SHARED}")
def test_qnli_at_hand_can_be_evaluated_but_not_trained_on():
    data = load_glue("qnli", SHARED, train_records=0)
    assert (len(data.selection), len(data.test)) == (1000, 4063)
    with pytest.raises(MissingInputError, match="training set of qnli: no glue/qnli/train"):
        load_glue("qnli", SHARED)
