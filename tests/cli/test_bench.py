"""neuroada bench: options reach the plan, records reach the file, and what is missing is said."""

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from neuroada.measure import shapes
from neuroada.measure.record import read_records
from neuroada.measure.shapes import ModelShape
from neuroada_cli.main import app

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY = ModelShape("tiny", LlamaForCausalLM, "llama", {**SIZES, "vocab_size": 50, "use_cache": False}, 4, 8)


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_tiny_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)


def bench(*arguments: str):
    return CliRunner().invoke(app, ["bench", *arguments], catch_exceptions=False)


def test_step_appends_records_and_closes_with_a_table():
    options = ("--layers", "1", "--dtype", "float32", "--batch", "3", "--rounds", "2", "--warmup", "0", "--seed", "7")
    for _ in range(2):
        done = bench(
            "step", "--shape", "tiny", *options, "--methods", "neuroada,mask", "--k", "2", "--k", "5", "--no-memory"
        )
        assert done.exit_code == 0, done.stderr
    records = read_records(Path("benchmarks/results/step.jsonl"))
    assert len(records) == 10
    assert [(r.method, r.settings.get("k")) for r in records[:5]] == [
        *[("frozen", None), ("neuroada", 2), ("neuroada", 5), ("mask", 2), ("mask", 5)]
    ]
    last = records[-1]
    assert (last.shape.sizes["layers"], last.dtype, last.batch, last.seed) == (1, "float32", 3, 7)
    assert (last.sequence, last.measurements["step_time"].n) == (4, 2)
    for phrase in ("5 records appended to", "frozen limit", "NeuroAda k=5", "mask-based k=2"):
        assert phrase in done.stdout


def test_op_appends_records_and_closes_with_tables(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("neuroada.measure.benchmarks.product.COPY_BYTES", 1 << 20)
    done = bench("op", "--shape", "tiny", "--k", "3", "--rounds", "1", "--warmup", "0", "--output", "deep/op.jsonl")
    assert done.exit_code == 0, done.stderr
    records = read_records(Path("deep/op.jsonl"))
    assert {record.method for record in records} == {"frozen", "neuroada", "lora", "gemm", "copy", "gradient", "swap"}
    assert "Layers of tiny" in done.stdout


@pytest.mark.parametrize("command", ["step", "op"])
def test_known_names_are_listed(command):
    done = bench(command, "--list")
    assert done.exit_code == 0
    for phrase in ("Llama-3-8B", "hidden 4,096", "RoBERTa-large", "supertuning"):
        assert phrase in done.stdout


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ((), r"a benchmark without --shape: no model is named. Known: llama-2048x5504, "),
        (("--shape", "tinny"), "shape 'tinny': not a known shape. Did you mean 'tiny'?"),
        (("--shape", "tiny", "--device", "cuda:8"), "--device cuda:8: PyTorch"),
        (("--shape", "tiny", "--k", "33"), "--k 33: the narrowest layer"),
        (("--shape", "tiny", "--batch", "0"), "it has no tokens"),
        (
            ("--shape", "tiny", "--methods", "lorra"),
            "method 'lorra': not a known benchmark method. Did you mean 'lora'?",
        ),
    ],
)
@pytest.mark.parametrize("command", ["step", "op"])
def test_what_cannot_be_is_one_plain_message(command, options, found):
    done = CliRunner().invoke(app, ["bench", command, *options])
    assert done.exit_code == 2
    assert found in done.stderr
    assert not Path("benchmarks").exists()


@pytest.mark.parametrize("command", ["step", "op", "render"])
def test_help_imports_nothing_heavy(command):
    script = f"""
import sys
from neuroada_cli.main import app
try:
    app(["bench", "{command}", "--help"])
except SystemExit:
    pass
print(sorted({{"torch", "transformers", "peft", "matplotlib", "neuroada"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
