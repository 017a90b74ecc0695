"""What the documentation says is run, and what it points to is there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from transformers import AutoModelForCausalLM

from neuroada_cli.main import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_readme_blocks_run_one_after_the_other(
    in_empty_folder: Path, make_tiny_llama, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda name, **_: make_tiny_llama())
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert (in_empty_folder / "adapter" / "adapter_model.safetensors").exists()
    assert "trainable params" in capsys.readouterr().out


def test_the_blocks_about_selection_run_one_after_the_other(capsys: pytest.CaptureFixture[str]):
    text = (ROOT / "docs" / "selection.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "selection.md", "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    sizes = {line.split()[0]: int(line.split()[1]) for line in lines if "neuroada_deltas" in line}
    assert len(sizes) == 14
    assert {k for name, k in sizes.items() if "o_proj" in name} == {1}
    assert any("trainable params" in line for line in lines)


@pytest.mark.parametrize("page", ["with-lora", "neat"])
def test_blocks_of_a_page_run_one_after_the_other(page: str, in_empty_folder: Path):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    names: dict = {}
    for block in blocks:
        exec(compile(block, f"{page}.md", "exec"), names)


def test_without_the_import_peft_says_what_the_readme_says(in_empty_folder: Path, tiny_llama):
    from peft import get_peft_model

    from neuroada import NeuroAdaConfig

    get_peft_model(tiny_llama, NeuroAdaConfig()).save_pretrained("adapter")
    script = "from peft import PeftConfig; PeftConfig.from_pretrained('adapter')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    error = done.stderr.splitlines()[-1]
    assert error == "KeyError: 'NEUROADA'"
    assert error in README


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_point_to_files(name: str):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


def command_lines() -> list[tuple[str, str]]:
    """Each `neuroada` command in a code block of the pages, joined where a backslash continues it."""
    found = []
    for page in [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            if language not in ("", "bash", "sh", "console"):
                continue
            lines = re.sub(r"\\\n\s*", " ", block).splitlines()
            found += [(page.name, line.split("  #")[0].removeprefix("$ ")) for line in lines]
    return [(page, line) for page, line in found if line.startswith("neuroada ") and "|" not in line]


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_command_lines_parse(page: str, line: str):
    command = typer.main.get_command(app)
    arguments = [word for word in shlex.split(line)[1:] if word != "..."]
    context = command.context_class(command)
    while hasattr(command, "resolve_command"):
        _, command, arguments = command.resolve_command(context, arguments)
    command.make_context("neuroada", list(arguments))


def test_contributing_fits_a_screen():
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 45
