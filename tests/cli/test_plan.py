"""neuroada plan, and the benchmarks about plans, switching and choosing: options, records, tables, errors."""

import json
from pathlib import Path

import pytest
from transformers import CLIPConfig, Dinov2Config, LlamaForCausalLM
from typer.testing import CliRunner

from neuroada.measure import shapes
from neuroada.measure.record import read_records
from neuroada.measure.shapes import ModelShape
from neuroada_cli.main import app

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY = ModelShape("tiny", LlamaForCausalLM, "llama", {**SIZES, "vocab_size": 50, "use_cache": False}, 4, 8)
DELTAS = 4 * 32 + 2 * 48 + 32


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_tiny_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)


@pytest.fixture
def _two_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuroada.planning.plan.LABELS", {"neuroada": "NeuroAda", "full": "full"})


def neuroada(*arguments: str):
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.mark.usefixtures("_two_methods")
def test_a_shape_is_planned_as_json():
    done = neuroada(
        "plan", "--model", "TINY", "--method", "full", "--k", "3", "--seq", "4", "--device", "2GB", "--json"
    )
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert [method["method"] for method in found["methods"]] == ["full", "neuroada"]
    assert found["methods"][1]["trainable"] == 3 * DELTAS
    assert (found["model"], found["sequence"], found["device"]["memory"]) == ("TINY", 4, 2_000_000_000)


@pytest.mark.usefixtures("_two_methods")
def test_a_directory_is_planned_without_its_weights(tiny_model_dir: Path, tmp_path: Path):
    (tmp_path / "config.json").write_text((tiny_model_dir / "config.json").read_text())
    done = neuroada("plan", "--model", str(tmp_path), "--seq", "8", "--checkpointing", "--device", "t4")
    assert done.exit_code == 0, done.stderr
    for phrase in ("batch 1 × 8 tokens, checkpointing, on t4", "NeuroAda k=1", "fits in 16.00 GB", "largest batch"):
        assert phrase in done.stdout


@pytest.mark.usefixtures("_two_methods")
def test_a_model_of_images_is_planned_with_images(tmp_path: Path):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    Dinov2Config(**sizes, image_size=28, patch_size=14).save_pretrained(tmp_path)
    asked = "plan", "--model", str(tmp_path), "--batch", "3", "--device", "2GB"
    done = neuroada(*asked)
    assert done.exit_code == 0, done.stderr
    assert "batch 3 × 28 × 28 pixels, no checkpointing" in done.stdout
    found = json.loads(neuroada(*asked, "--json").stdout)
    assert found["image_size"] == [28, 28]
    assert "sequence" not in found
    refused = neuroada(*asked, "--seq", "4")
    assert refused.exit_code == 2
    assert "--seq 4: the model takes images of 28 × 28 pixels, not tokens. Leave it out" in " ".join(
        refused.stderr.split()
    )


@pytest.mark.usefixtures("_two_methods")
def test_a_model_of_images_without_a_size_is_refused(tmp_path: Path):
    CLIPConfig().save_pretrained(tmp_path)
    refused = neuroada("plan", "--model", str(tmp_path), "--device", "2GB")
    assert refused.exit_code == 2
    assert "'clip': its configuration has no image_size" in " ".join(refused.stderr.split())


@pytest.mark.usefixtures("_two_methods")
def test_k_of_some_modules():
    options = ("--k-pattern", "q_proj=5", "--k-pattern", "down_proj=2", "--seq", "4", "--device", "2GB")
    done = neuroada("plan", "--model", "tiny", *options)
    assert done.exit_code == 0, done.stderr
    for phrase in ("NeuroAda k=1* ", "* q_proj k=5, down_proj k=2", f" {DELTAS + 4 * 32 + 32:,} "):
        assert phrase in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "tiny", "--k-pattern", "q_proj"), "--k-pattern q_proj: not NAME=K. Write it as q_proj=4."),
        (("--model", "tiny", "--k-pattern", "q_proj=0"), "k_pattern={'q_proj': 0}: each covered neuron needs a whole"),
        (("--model", "tiny", "--k-pattern", "qproj=2"), "none of the 7 adapted modules has such a name. Did you mean"),
        (("--model", "tinny"), "or a shape by name. Did you mean 'tiny'? Known: llama-2048x5504, "),
        (
            ("--model", "tiny", "--method", "lorra"),
            "--method lorra: not a method that plans cover. Did you mean",
        ),
        (("--model", "tiny", "--device", "h20"), "Did you mean 'h200'? Known: h200, h100, "),
        (("--model", "tiny", "--seq", "99999"), "--seq 99999: the model has 2048 positions"),
        (("--model", "tiny", "--k", "0"), "--k 0: less than 1"),
        (("--model", "tiny", "--dtype", "int8"), "--dtype int8: not a known one"),
    ],
)
def test_errors_say_what_to_do(options, message):
    done = neuroada("plan", *options)
    assert done.exit_code == 2
    assert message in done.stderr


def test_switch_and_select_append_records_and_close_with_tables(tiny_model_dir: Path):
    switch = neuroada("bench", "switch", "--model", str(tiny_model_dir), "--k", "2", "--loads", "1", "--switches", "2")
    select = neuroada(
        "bench", "select", "--shape", "tiny", "--strategies", "magnitude,random", "--k", "3", "--rounds", "1"
    )
    assert (switch.exit_code, select.exit_code) == (0, 0)
    (switched,) = read_records(Path("benchmarks/results/switch.jsonl"))
    assert (switched.status, switched.settings, switched.measurements["switch"].n) == ("ok", {"k": 2}, 2)
    chosen = read_records(Path("benchmarks/results/select.jsonl"))
    assert [(record.method, record.settings) for record in chosen] == [("magnitude", {"k": 3}), ("random", {"k": 3})]
    assert "switch while held" in switch.stdout
    assert "magnitude k=3" in select.stdout


def test_plans_are_compared_and_appended(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch):
    measured = {"peak": 1 << 30, "of": "resident, in this context"}
    monkeypatch.setattr("neuroada.measure.benchmarks.plan.call_in_fresh_process", lambda *arguments: measured)
    options = ("--methods", "full", "--batch", "2", "--seq", "8", "--dtype", "float32", "--output", "plans.jsonl")
    done = neuroada("bench", "plan", "--model", str(tiny_model_dir), *options)
    assert done.exit_code == 0, done.stderr
    (record,) = read_records(Path("plans.jsonl"))
    assert (record.method, record.batch, record.sequence, record.dtype) == ("full", 2, 8, "float32")
    assert "full fine-tuning" in done.stdout
    assert "1,024 MiB" in done.stdout
