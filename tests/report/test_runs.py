"""Tables of finished runs."""

import pytest

from neuroada.measure.record import Measurement, RecordedScore
from neuroada.report.runs import run_table


@pytest.fixture
def run(make):
    def one(name: str, before: float | None, after: float, note: str = "", **changes):
        values = {
            "trained_parameters": (155_520, "parameters"),
            "parameters": (155_520_000, "parameters"),
            "steps": (188, "steps"),
            "held_out_loss_before": (2.5, "nats"),
            "held_out_loss": (1.25, "nats"),
            "training_time": (90, "s"),
            "peak_memory": (2**30, "bytes"),
        }
        scores = [
            RecordedScore(
                when=when, name="boolq", metric="accuracy", value=v, low=v - 0.1, high=v + 0.1, count=50, note=note
            )
            for when, v in (("before", before), ("after", after))
            if v is not None
        ]
        fields = {
            "kind": "run",
            "settings": {"k": 1},
            "notes": {"run": name},
            "measurements": {key: Measurement.count(*value) for key, value in values.items()},
            "scores": scores,
        }
        return make("NeuroAda", {}, **{**fields, **changes})

    return one


def test_scores_stand_with_their_intervals_before_and_after(run):
    known = run("commonsense", 0.4, 0.6)
    known.scores[:] = [score.model_copy(update={"majority": 0.62}) for score in known.scores]
    table = run_table([known])
    assert "| commonsense | boolq | accuracy | 50 | 0.620 | 0.400 [0.300, 0.500] | 0.600 [0.500, 0.700] |" in table
    assert "| NeuroAda (k=1) | 155,520 (0.100%) | 188 | 2.500 → 1.250 | 90 s | 1,024 MiB |" in table
    assert "†" not in table


def test_a_test_that_was_scored_once_and_is_contaminated(run):
    table = run_table([run("arithmetic", None, 0.6, note="contaminated: half of it")])
    assert "| arithmetic | boolq † | accuracy | 50 | — | — | 0.600 [0.500, 0.700] |" in table
    assert table.count("† boolq: contaminated: half of it.") == 1


def test_a_base_model_that_was_not_looked_at(run):
    record = run("commonsense", None, 0.6)
    del record.measurements["held_out_loss_before"]
    assert "| 188 | — → 1.250 | 90 s |" in run_table([record])


def test_of_runs_with_one_name_the_newest_counts(run):
    new = run("a", 0.4, 0.6, created="2026-11-22T10:00:00+00:00")
    old = run("a", 0.4, 0.5, created="2026-11-21T10:00:00+00:00")
    assert "0.500 [0.400, 0.600]" not in run_table([new, old])
    assert run_table([]) == "Not measured."
