"""Tables of studies."""

from neuroada.report.study import study_table
from neuroada.report.study_rows import studies_of


def test_the_best_rate_is_that_of_the_first_seed_on_the_held_out_part(cell):
    cells = [cell("a", 0.1, 0, 0.3, 0.9), cell("a", 0.2, 0, 0.4, 0.1), cell("a", 0.2, 1, 0.0, 0.3)]
    (study,) = studies_of(cells)
    assert study.rows[0].best == cells[1:]
    table = study_table(cells)
    assert "0.2 of 0.1, 0.2" in table
    assert "0.200 ± 0.141 (2 seeds)" in table


def test_a_cell_recorded_twice_counts_once(cell):
    renamed = cell("a", 0.1, 0, 0.3, 0.5)
    renamed.notes["cell"] = "the same one under a later name"
    table = study_table([cell("a", 0.1, 0, 0.3, 0.9), renamed])
    assert "0.500 (one seed)" in table


def test_a_method_that_failed_is_a_row(cell):
    failed = cell("b", 0.1, 0, 0, 0, status="failed", reason="it diverged", measurements={}, scores=[])
    assert "| b | failed | — |" in study_table([cell("a", 0.1, 0, 0.3, 0.9), failed])
    assert study_table([]) == "Not measured."
    again = cell("a", 0.2, 0, 0, 0, status="failed", reason="it diverged", measurements={}, scores=[])
    assert "| 0.1 of 0.1, 0.2 (failed) |" in study_table([cell("a", 0.1, 0, 0.3, 0.9), again])


def test_the_heading_says_what_was_chosen_and_averaged(cell):
    one = study_table([cell("a", 0.1, 0, 0.3, 0.9)])
    assert "Learning rate chosen" not in one
    assert "Mean ±" not in one
    assert "Learning rate chosen" in study_table([cell("a", 0.1, 0, 0.3, 0.9), cell("a", 0.2, 0, 0.3, 0.9)])
    assert "Mean ±" in study_table([cell("a", 0.1, 0, 0.3, 0.9), cell("a", 0.1, 1, 0.3, 0.9)])


def test_of_many_tests_the_average_stands_beside_the_rate_and_all_in_a_table_of_means(cell):
    cells = [cell("a", 0.1, seed, 0.3, 0.9) for seed in (0, 1)]
    for one, mean in zip(cells, (0.2, 0.4), strict=True):
        (_, after), names = one.scores, ("boolq", "piqa", "ARC-e", "average")
        one.scores[:] = [after.model_copy(update={"name": name, "value": mean}) for name in names]
    table = study_table(cells)
    assert (
        "| method | trained | learning rate | average, matthews of 50 | held-out loss | training | peak memory |"
        in table
    )
    assert "0.300 ± 0.141 (2 seeds)" in table
    assert "| method | boolq | piqa | ARC-e | average |" in table
    assert "| a | 0.300 | 0.300 | 0.300 | 0.300 |" in table


def test_of_equal_rates_the_lower_one_is_shown(cell):
    cells = [cell("a", 0.2, 0, 0.3, 0.9), cell("a", 0.1, 0, 0.3, 0.5), cell("a", 0.1, 1, 0.3, 0.7)]
    assert "0.1 of 0.1, 0.2" in study_table(cells)
    assert "0.600 ± 0.141 (2 seeds)" in study_table(cells)


def test_each_point_of_an_axis_is_a_row(cell):
    cells = [cell("a", 0.1, 0, 0.3, 0.9, point=1), cell("a", 0.1, 0, 0.3, 0.8, point=20)]
    table = study_table(cells)
    assert "| method | deltas a neuron | trained |" in table
    assert "| a | 1 | 20,736 | 0.1 of 0.1 | 0.900 (one seed) | — | 60 s |" in table
    assert "| a | 20 | 20,736 | 0.1 of 0.1 | 0.800 (one seed) | — | 60 s |" in table


def test_the_held_out_loss_stands_beside_the_score(cell, with_loss):
    cells = [with_loss(cell("a", 0.1, seed, 0.3, 0.9), loss) for seed, loss in enumerate((0.25, 0.5))]
    assert "| 0.900 ± 0.000 (2 seeds) | 0.375 ± 0.177 (2 seeds) | 60 s |" in study_table(cells)


def test_models_and_recipes_are_not_mixed(cell):
    small, large = cell("a", 0.1, 0, 0.3, 0.5), cell("a", 0.1, 0, 0.3, 0.9)
    large = large.model_copy(update={"shape": large.shape.model_copy(update={"name": "large"})})
    studies = studies_of([small, large])
    assert [(study.name, study.rows[0].mean("cola")) for study in studies] == [("cola", 0.5), ("cola", 0.9)]


def test_what_an_edited_study_trained_before_does_not_count(cell):
    old = cell("a", 0.1, 0, 0.9, 0.5, created="2026-11-21T10:00:00+00:00")
    new = cell("a", 0.2, 0, 0.3, 0.9, created="2026-11-22T10:00:00+00:00")
    assert studies_of([old, new])[0].rows[0].best == [old]
    new.notes["content"] = "another"
    assert studies_of([old, new])[0].rows[0].best == [new]
    assert studies_of([new, old])[0].rows[0].best == [old], "edited back"


def test_rates_and_seeds_that_an_edited_study_has_no_more_do_not_count(cell):
    def said(record, seeds, rates):
        record.notes.update(seeds=seeds, learning_rates=rates)
        return record

    old = [said(cell("a", rate, seed, 0.9, 0.5), "0, 1", "0.1, 0.2") for rate, seed in ((0.1, 0), (0.2, 0), (0.1, 1))]
    again = [said(cell("a", rate, seed, 0.3, 0.9), "5, 1", "0.1, 0.2") for rate, seed in ((0.1, 5), (0.2, 5))]
    again[1].measurements["selection"] = again[1].measurements["selection"].model_copy(update={"p50": 0.4})
    (row,) = studies_of([*old, *again])[0].rows
    assert (row.best, [*row.held_out], {each.seed for each in row.cells}) == ([again[1]], [0.1, 0.2], {1, 5})
    (row,) = studies_of([*old, said(cell("a", 0.2, 0, 0.3, 0.9), "0, 1", "0.2")])[0].rows
    assert ([each.seed for each in row.best], [*row.tried]) == ([0], [0.2])
