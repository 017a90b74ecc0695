"""Studies in the page."""

import pytest
from typer.testing import CliRunner

from neuroada.measure.record import append_records
from neuroada.report.html.page import report_page
from neuroada.report.html.studies import study_parts
from neuroada_cli.main import app


@pytest.fixture
def along_an_axis(cell):
    scores = {("a", 1): 0.5, ("a", 20): 0.7, ("b", 1): 0.6, ("b", 20): 0.6}
    return [
        cell(method, 0.1, seed, 0.5, score + 0.01 * seed, point=point, study="strategies")
        for (method, point), score in scores.items()
        for seed in (0, 1, 2)
    ]


def test_a_study_is_said_drawn_and_tabled(along_an_axis):
    page = report_page([], along_an_axis)
    assert "<title>Study strategies · neuroada report</title>" in page
    for phrase in ("What was found", "best at 1", "The paper (Figure 7", "deltas a neuron", "0.710 ± 0.010 (3 seeds)"):
        assert phrase in page.replace("<wbr>", ""), phrase
    assert page.count("<circle") == 4


def test_points_lie_where_their_scores_are(along_an_axis):
    (part,) = study_parts(along_an_axis)
    first, second = part.chart.lines
    (left, low, text), (right, high, _) = first.dots
    assert left < right
    assert low > high, "a larger score is further up"
    assert text == "a at 1: 0.510 ± 0.010"
    assert len({y for _, y, _ in second.dots}) == 1
    assert [tick for _, tick in part.chart.x_ticks] == ["1", "20"]


def test_without_an_axis_there_is_no_figure(cell):
    (part,) = study_parts([cell("a", 0.1, 0, 0.5, 0.9), cell("<b>", 0.1, 0, 0.5, 0.8)])
    assert part.chart is None
    assert "<b>" not in report_page([], [cell("<b>", 0.1, 0, 0.5, 0.8)])


def test_the_command_reads_the_records_of_studies(along_an_axis, tmp_path):
    records = tmp_path / "study.jsonl"
    append_records(records, along_an_axis)
    output = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", "--studies", str(records), "--output", str(output)])
    assert done.exit_code == 0, done.output
    assert "Study strategies" in output.read_text()


def test_a_report_of_nothing_is_refused(tmp_path, make):
    records = tmp_path / "step.jsonl"
    append_records(records, [make("frozen", {"step_time": 1})])
    for arguments, said in (([], "a report of nothing"), (["--studies", str(records)], f"--studies {records}")):
        done = CliRunner().invoke(app, ["report", *arguments])
        assert done.exit_code == 2
        assert said in done.stderr.replace("\n", "")
