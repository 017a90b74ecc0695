"""Markdown files are what the records say, and this repository's are up to date."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from neuroada.errors import ConfigError, MissingInputError
from neuroada.measure.record import append_records
from neuroada.report.figures import FIGURES, digest_in, digest_of, save_figure
from neuroada.report.render import render, rendered
from neuroada_cli.main import app

ROOT = Path(__file__).parents[2]
TEXT = """# Title
<!-- table:step shape=LLaMA-7B device=cuda -->
old
<!-- /table -->
between
<!-- figure:figure5 -->
<!-- /figure -->
end
"""


@pytest.fixture
def repository(tmp_path: Path, make) -> Path:
    """A folder with a README that shows a table and a figure, and records of two methods."""
    (tmp_path / "README.md").write_text(TEXT)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "plain.md").write_text("nothing to render\n")
    values = {"step_time": 0.1, "ratio_to_frozen": 1.5, "peak_memory": 2**30}
    records = [make("frozen", {**values, "ratio_to_frozen": 1}), make("neuroada", values, settings={"k": 1})]
    append_records(tmp_path / "benchmarks" / "results" / "step.jsonl", records)
    return tmp_path


def bench_render(root: Path, *options: str):
    return CliRunner().invoke(app, ["bench", "render", "--root", str(root), *options])


def test_rendering_replaces_what_is_between_markers_and_settles(repository: Path):
    readme, figure = repository / "README.md", repository / "figures" / "figure5.svg"
    assert bench_render(repository, "--check").exit_code == 1
    assert readme.read_text() == TEXT
    assert not figure.exists()
    done = bench_render(repository)
    assert done.exit_code == 0
    assert str(figure) in done.stdout
    text = readme.read_text()
    assert "old" not in text
    assert "| NeuroAda k=1 | 100 ms | 1.50 [1.50–1.50] |" in text
    assert f"![{FIGURES['figure5'].caption}](figures/figure5.svg)" in text
    assert text.startswith("# Title\n<!-- table:step")
    assert text.endswith("<!-- /figure -->\nend\n")
    assert "20.0" in figure.read_text() or "20" in figure.read_text()
    again = bench_render(repository, "--check")
    assert (again.exit_code, again.stdout) == (0, "")


def test_a_new_record_makes_table_and_figure_stale(repository: Path, make):
    render(repository)
    results = repository / "benchmarks" / "results"
    append_records(results / "more.jsonl", [make("mask", {"step_time": 1, "ratio_to_frozen": 9, "peak_memory": 2**31})])
    assert render(repository, check=True) == [repository / "README.md", repository / "figures" / "figure5.svg"]


def test_a_figure_is_the_same_bytes_each_time_and_knows_what_it_shows(tmp_path: Path, make):
    records = [make("full", {"step_time": 0.5, "peak_memory": 3 * 2**30})]
    paths = [tmp_path / name for name in ("one.svg", "two.svg")]
    for path in paths:
        save_figure("figure5", records, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert digest_in(paths[0]) == digest_of("figure5", records) != digest_of("figure5", [])
    drawn = paths[0].read_text()
    for phrase in ("not measured", "LLaMA-7B", "NVIDIA H200", "mask-based", "samples per second"):
        assert phrase in drawn


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingInputError, match=r"pip install 'neuroada\[report\]'"):
        save_figure("figure5", [], tmp_path / "figure5.svg")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<!-- table:stepp -->\n<!-- /table -->", r"line 1: no table is called 'stepp'\. Did you mean 'step'"),
        ("a\n<!-- figure:figure4 -->\n<!-- /figure -->", r"line 2: no figure is called 'figure4'"),
        ("<!-- table:step color=red -->\n<!-- /table -->", r"line 1: records have no 'color' to choose by"),
        ("a\n<!-- table:step -->\nb\n", r"line 2: the table that begins there does not end"),
        ("<!-- table:step -->\n<!-- table:op -->\n<!-- /table -->", r"line 1: the table .* does not end"),
    ],
)
def test_a_wrong_marker_is_told_with_file_and_line(tmp_path: Path, text, found):
    path = tmp_path / "page.md"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"page\.md, {found}"):
        rendered(path, [])


def test_no_repository_is_one_plain_message(tmp_path: Path):
    done = bench_render(tmp_path)
    assert done.exit_code == 2
    assert "no README.md there" in done.stderr


def test_this_repository_shows_what_its_records_say():
    assert render(ROOT, check=True) == [], "run `neuroada bench render` and commit what it writes"
