"""Records: what is read, and what each malformed one is told."""

import gzip
import json
from pathlib import Path

import datasets
import pytest

from neuroada.errors import MissingInputError
from neuroada.tasks.records import find_file, find_place, load_records, read_records

FIELDS = {"text": str, "label": int}
GOOD = '{"text": "a", "label": 1}'


@pytest.fixture
def write(tmp_path: Path):
    def write(content: str | bytes, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz", "data"])
def test_records_keep_their_order_and_other_fields(write, name):
    lines = [{"text": f"ünï {number}\u2028", "label": number, "more": [number]} for number in range(5)]
    path = write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), name)
    assert read_records(path, FIELDS) == lines


@pytest.mark.parametrize("name", ["data.json", "data.json.gz"])
def test_a_json_list_is_read_as_the_published_code_keeps_it(write, name):
    assert read_records(write(f"[{GOOD},\n{GOOD}]", name), FIELDS) == [json.loads(GOOD)] * 2


@pytest.mark.parametrize("content", [f"\ufeff{GOOD}\r\n{GOOD}", f"{GOOD}\n{GOOD}\n\n  \n"])
def test_byte_order_marks_line_ends_and_blank_last_lines_do_no_harm(write, content):
    assert len(read_records(write(content), FIELDS)) == 2


MALFORMED = {
    "cut": (f"{GOOD}\n" + '{"text": "a", "lab', "line 2: it is not JSON"),
    "two on a line": (f"{GOOD}{GOOD}", "line 1: it is not JSON"),
    "blank": (f"{GOOD}\n\n{GOOD}\n", "line 2: it is empty"),
    "list": (f"{GOOD}\n[1]", "line 2: a list, not an object. Write an object with 'text', 'label'"),
    "null": ("null", "line 1: null, not an object"),
    "missing": ('{"text": "a", "lable": 1}', r"line 1: no 'label'; it has 'text', 'lable'. Write an object with 'text"),
    "nothing": ("{}", "line 1: no 'text', 'label'; it has no field"),
    "wrong type": ('{"text": "a", "label": "1"}', "line 1: 'label' is text. Write a whole number there"),
    "true is no number": ('{"text": "a", "label": true}', "'label' is true or false. Write a whole number there"),
    "fraction": ('{"text": "a", "label": 1.5}', "'label' is a number. Write a whole number there"),
    "null field": ('{"text": null, "label": 1}', "line 1: 'text' is null. Write text there"),
    "empty text": ('{"text": " \\n", "label": 1}', "line 1: 'text' is empty. Fill in 'text', or leave the record out"),
    "not a number": ('{"text": "a", "label": NaN}', "line 1: it is not JSON .NaN is not a JSON number"),
    "deep": ("[" * 100_000, "line 1: it is not JSON"),
    "latin": (GOOD.encode() + '\n{"text": "ü", "label": 1}'.encode("latin-1"), "line 2: byte 10 is not UTF-8"),
    "empty file": ("", "it has no record in it"),
    "blank file": ("\n\n", "it has no record in it"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_records_are_named_by_file_and_line(write, case):
    content, message = MALFORMED[case]
    path = write(content)
    with pytest.raises(MissingInputError, match=message) as caught:
        read_records(path, FIELDS)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"[{GOOD}, 3]", "record 2: a whole number, not an object"),
        (GOOD, "an object, not a list"),
        ("[", "not JSON"),
        ("[]", "no record in it"),
        ("", "no record in it"),
    ],
)
def test_malformed_lists_are_named(write, content, message):
    with pytest.raises(MissingInputError, match=message):
        read_records(write(content, "data.json"), FIELDS)


@pytest.mark.parametrize("length", [0, 5, 30])
def test_gzip_that_is_not_whole(tmp_path, length):
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD.encode())[:length] if length else GOOD.encode())
    with pytest.raises(MissingInputError, match="it is not whole gzip"):
        read_records(path, FIELDS)


def test_damaged_gzip(tmp_path):
    packed = bytearray(gzip.compress(GOOD.encode() * 50))
    packed[12:20] = b"\xff" * 8
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(packed)
    with pytest.raises(MissingInputError, match="it is not whole gzip"):
        read_records(path, FIELDS)


def test_a_number_may_be_whole_and_a_field_of_several_types(write):
    path = write('{"text": "", "label": 3}')
    assert read_records(path, {"text": str, "label": float}, may_be_empty=("text",))
    assert read_records(path, {"text": (list, str), "label": (str, int)}, may_be_empty=("text",))
    with pytest.raises(MissingInputError, match="Write a list or an object there"):
        read_records(path, {"label": (list, dict)})


def test_a_path_that_is_no_file(tmp_path):
    with pytest.raises(MissingInputError, match="a folder, not a file"):
        read_records(tmp_path, FIELDS)
    with pytest.raises(MissingInputError, match="no such file"):
        read_records(tmp_path / "none.jsonl", FIELDS)


@pytest.mark.parametrize("ending", ["", ".jsonl", ".jsonl.gz", ".json"])
def test_candidates_are_tried_in_order_as_given_and_with_endings(tmp_path, ending):
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / f"test{ending}").write_text(GOOD)
    assert find_file(tmp_path, "group/task/test", "task/test") == tmp_path / "task" / f"test{ending}"
    (tmp_path / "group" / "task").mkdir(parents=True)
    (tmp_path / "group" / "task" / "test.jsonl").write_text(GOOD)
    assert find_file(tmp_path, "group/task/test", "task/test").parent.parent.name == "group"


def test_a_folder_without_the_file_says_what_was_looked_for_and_where(tmp_path):
    with pytest.raises(MissingInputError) as caught:
        find_file(tmp_path, "group/task/test", "task/test")
    assert "no group/task/test or task/test, ending in .jsonl" in str(caught.value)
    assert str(tmp_path.resolve()) in str(caught.value)
    assert "Put group/task/test.jsonl.gz there" in str(caught.value)


def test_a_data_folder_that_is_none(tmp_path):
    with pytest.raises(MissingInputError, match=r"no such folder. Give the folder that holds task/test.jsonl.gz"):
        find_file(tmp_path / "none", "task/test")
    (tmp_path / "file").write_text("x")
    with pytest.raises(MissingInputError, match="a file, not a folder"):
        find_file(tmp_path / "file", "task/test")


HUB = ("owner/name", None, "train")


def test_a_folder_comes_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("the hub was asked"))
    (tmp_path / "test.jsonl").write_text(GOOD)
    assert load_records(tmp_path, ("test",), FIELDS, HUB) == [json.loads(GOOD)]
    assert find_place(tmp_path, ("test",), HUB) == str(tmp_path / "test.jsonl")


def test_without_a_folder_rows_come_from_the_hub_and_are_checked(monkeypatch):
    rows = datasets.Dataset.from_list([{"text": "a", "label": 1}, {"text": "b", "label": None}])
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or rows.select([0]))
    assert load_records(None, ("test",), FIELDS, ("owner/name", "main", "test")) == [{"text": "a", "label": 1}]
    assert asked == [(("owner/name", "main"), {"split": "test"})]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    with pytest.raises(MissingInputError, match="hub:owner/name/train, row 2: 'label' is null"):
        load_records(None, ("test",), FIELDS, HUB)


def test_a_hub_out_of_reach_says_to_give_a_folder():
    with pytest.raises(MissingInputError, match=r"hub:owner/name/train: the hub does not give it .*or connect"):
        load_records(None, ("task/test",), FIELDS, HUB)


@pytest.mark.parametrize(
    "error", [OSError("x"), ValueError("x"), RuntimeError("x"), datasets.exceptions.DatasetGenerationError("x")]
)
def test_whatever_the_hub_raises_is_told_once(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(MissingInputError, match=r"does not give it \(x\). Give --data-dir with task/test.jsonl.gz"):
        load_records(None, ("task/test",), FIELDS, HUB)


def test_a_set_that_is_not_on_the_hub():
    with pytest.raises(MissingInputError, match="data set task/test: it is not on the hub in its published form"):
        load_records(None, ("task/test",), FIELDS, None)
