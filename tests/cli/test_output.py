"""Output never ends a run, whatever the terminal or the file behind it takes."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from neuroada_cli.output import LenientStream, lenient_output

COMMAND = [sys.executable, "-m", "neuroada_cli"]


class Full(io.StringIO):
    """As /dev/full: there is no space for anything."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    flush = write  # type: ignore[assignment]


def test_letters_that_the_encoding_lacks_are_replaced():
    raw = io.BytesIO()
    stream = LenientStream(io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    assert stream.write("9 × (IA)³ → done") == 16
    assert raw.getvalue() == b"9 ? (IA)? ? done"
    assert stream.encoding == "ascii"


def test_a_stream_that_is_full_is_given_up():
    stream = LenientStream(Full())
    stream.write("lost")
    stream.flush()
    assert stream.gone


def test_streams_are_given_back():
    before = sys.stdout, sys.stderr
    with lenient_output():
        print("inside")
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize("command", [["recipes"], ["--help"], ["train", "quikstart"]])
@pytest.mark.parametrize("columns", ["20", "40"])
def test_a_narrow_terminal_that_knows_ascii_alone(command: list[str], columns: str):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": columns, "LC_ALL": "C", "PYTHONUTF8": "0"}
    done = subprocess.run([*COMMAND, *command], env=environment, capture_output=True, text=True)
    assert done.returncode == (2 if "quikstart" in command else 0)
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_device_ends_nothing():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "recipes"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0
    assert done.stderr == ""


def test_a_dry_run_prints_into_an_ascii_terminal(tiny_model_dir: Path, tmp_path: Path):
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 300)
    arguments = [
        "train",
        "quickstart",
        "--model",
        str(tiny_model_dir),
        "--text",
        str(tmp_path / "text.txt"),
        "--dry-run",
    ]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "40", "PYTHONUTF8": "0", "HF_HUB_OFFLINE": "1"}
    environment |= {"FORCE_COLOR": "1", "TERM": "xterm"}  # spinners and bars as on a terminal
    done = subprocess.run([*COMMAND, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Dry run" in done.stdout
