"""Records: what they hold, how they are written, and what a bad line says."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from neuroada.errors import ConfigError, MissingInputError
from neuroada.measure.machine import find_device, provenance
from neuroada.measure.record import Measurement, Record, Shape, append_records, read_records


def record(**fields) -> Record:
    """A record of this machine; `fields` replace some."""
    made = {
        **provenance(torch.device("cpu"), seed=3),
        "kind": "step",
        "method": "neuroada",
        "settings": {"k": 1},
        "shape": Shape(name="tiny", sizes={"hidden": 64, "layers": 2}),
        "batch": 2,
        "sequence": 8,
        "dtype": "bfloat16",
        "measurements": {"time": Measurement.of([0.3, 0.1, 0.2], "s")},
    }
    return Record(**(made | fields))


def test_written_records_read_back_equal(tmp_path: Path):
    path = tmp_path / "results" / "step.jsonl"
    failed = record(method="full", status="out of memory", reason="CUDA: 3 GiB asked", measurements={})
    append_records(path, [record()])
    append_records(path, [failed])
    assert [read.method for read in read_records(path)] == ["neuroada", "full"]
    assert read_records(path)[1] == failed
    assert path.read_bytes().endswith(b"\n")


def test_record_says_where_and_with_what(tmp_path: Path):
    append_records(tmp_path / "a.jsonl", [record()])
    found = json.loads((tmp_path / "a.jsonl").read_text())
    machine = found["machine"]
    assert machine["packages"].keys() >= {"torch", "transformers", "peft", "neuroada"}
    assert machine["instructions"].keys() >= {"avx512_bf16", "amx_bf16"}
    assert machine["threads"] == torch.get_num_threads()
    assert machine["cpu"]
    assert found["seed"] == 3
    assert found["created"].startswith("20")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1 * 3] * 5, (0.3, 0.3, 0.3)),
        ([4.0], (4, 4, 4)),
        ([1.0, 2.0], (1.2, 1.5, 1.8)),
        ([5.0, 1.0, 3.0, 2.0, 4.0, 6.0], (2, 3.5, 5)),
    ],
)
def test_percentiles(values, expected):
    measured = Measurement.of(values, "s")
    assert (measured.p20, measured.p50, measured.p80) == pytest.approx(expected)
    assert measured.n == len(values)


def test_equal_values_have_ordered_percentiles():
    values = [0.1, 0.7, 1 / 3, 1.0]
    for value in values:
        for count in range(2, 40):
            measured = Measurement.of([value] * count, "s")
            assert measured.p20 <= measured.p50 <= measured.p80


def test_a_line_cut_short_does_not_swallow_the_next(tmp_path: Path):
    path = tmp_path / "step.jsonl"
    path.write_text('{"kind": "st')
    append_records(path, [record()])
    with pytest.raises(ConfigError, match=r"step\.jsonl, line 1: Invalid JSON"):
        read_records(path)
    path.write_text(path.read_text().split("\n", 1)[1])
    assert len(read_records(path)) == 1


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"kind": "stepp"}, "kind: Input should be"),
        ({"colour": 1}, "colour: Extra inputs"),
        ({"measurements": {}}, "without any measurement"),
        ({"status": "failed"}, "without a reason"),
        ({"measurements": {"time": {"unit": "s", "p20": 2, "p50": 1, "p80": 3, "n": 1}}}, "p20 <= p50"),
        ({"measurements": {"time": {"unit": "s", "p20": 1, "p50": 1, "p80": 1, "n": 0}}}, r"measurements\.time\.n"),
    ],
)
def test_a_bad_line_names_file_and_line(tmp_path: Path, change, found):
    path = tmp_path / "step.jsonl"
    append_records(path, [record()])
    bad = json.loads(path.read_text()) | change
    path.write_text(path.read_text() + "\n" + json.dumps(bad) + "\n")
    with pytest.raises(ConfigError, match=rf"record in .*step\.jsonl, line 3: .*{found}"):
        read_records(path)


def test_missing_file_says_how_to_make_it(tmp_path: Path):
    with pytest.raises(MissingInputError, match="no such file"):
        read_records(tmp_path / "none.jsonl")


def test_values_must_be_finite():
    with pytest.raises(ValidationError):
        Measurement.count(float("nan"), "s")


@pytest.mark.parametrize(
    ("name", "found"), [("gpu9", "not a device"), ("meta", "cpu and cuda alone"), ("cuda:99", "CUDA devices")]
)
def test_unknown_devices(name, found):
    with pytest.raises(ConfigError, match=f"--device {name}: .*{found}"):
        find_device(name)
