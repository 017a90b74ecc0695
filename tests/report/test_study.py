"""Tables of studies."""

import pytest

from neuroada.measure.record import Measurement, RecordedScore
from neuroada.report.study import best_cells, study_table


@pytest.fixture
def cell(make):
    def one(method: str, rate: float, seed: int, selection: float, score: float, **changes):
        units = {"selection": "x", "training_time": "s", "peak_memory": "bytes", "trained_parameters": "parameters"}
        values = {"trained_parameters": 20736, "selection": selection, "training_time": 60, "peak_memory": 2**30}
        measured = {name: Measurement.count(value, units[name]) for name, value in values.items()}
        interval = {"low": score - 0.1, "high": score + 0.1, "count": 50}
        both = [
            RecordedScore(when=when, name="cola", metric="matthews", value=value, **interval)
            for when, value in (("before", score - 0.1), ("after", score))
        ]
        fields = {
            "kind": "study",
            "settings": {"learning_rate": rate},
            "seed": seed,
            "notes": {"study": "cola", "recipe": "minilm-cola", "cell": f"{method}{rate}{seed}"},
            "measurements": measured,
            "scores": both,
        }
        return make(method, {}, **{**fields, **changes})

    return one


def test_the_best_rate_is_that_of_the_first_seed_on_the_held_out_part(cell):
    cells = [cell("a", 0.1, 0, 0.3, 0.9), cell("a", 0.2, 0, 0.4, 0.1), cell("a", 0.2, 1, 0.0, 0.3)]
    assert best_cells(cells) == cells[1:]
    table = study_table(cells)
    assert "0.2 of 0.1, 0.2" in table
    assert "0.200 ± 0.141 (2 seeds)" in table


def test_a_cell_recorded_twice_counts_once(cell):
    table = study_table([cell("a", 0.1, 0, 0.3, 0.9), cell("a", 0.1, 0, 0.3, 0.5)])
    assert "0.500 (one seed)" in table


def test_a_method_that_failed_is_a_row(cell):
    failed = cell("b", 0.1, 0, 0, 0, status="failed", reason="it diverged", measurements={}, scores=[])
    assert "| b | failed | — |" in study_table([cell("a", 0.1, 0, 0.3, 0.9), failed])
    assert study_table([]) == "Not measured."


def test_of_many_tests_the_average_stands_beside_the_rate_and_all_in_a_table_of_means(cell):
    cells = [cell("a", 0.1, seed, 0.3, 0.9) for seed in (0, 1)]
    for one, mean in zip(cells, (0.2, 0.4), strict=True):
        (_, after), names = one.scores, ("boolq", "piqa", "ARC-e", "average")
        one.scores[:] = [after.model_copy(update={"name": name, "value": mean}) for name in names]
    table = study_table(cells)
    assert "| method | trained | learning rate | average, matthews | peak memory |" in table
    assert "0.300 ± 0.141 (2 seeds)" in table
    assert "| method | boolq | piqa | ARC-e | average |" in table
    assert "| a | 0.300 | 0.300 | 0.300 | 0.300 |" in table
