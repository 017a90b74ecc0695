"""What studies found, in words."""

import pytest

from neuroada.measure.record import Measurement
from neuroada.report.findings import CLAIMS, difference, findings, findings_text
from neuroada.report.study_rows import studies_of


def sentences(cells) -> list[str]:
    (study,) = studies_of(cells)
    return findings(study)


def three(cell, method: str, scores: tuple[float, float, float], **changes):
    return [cell(method, 0.1, seed, 0.5, score, **changes) for seed, score in enumerate(scores)]


def test_the_best_is_named_with_those_that_the_seeds_tell_from_it_and_those_that_they_do_not(cell):
    cells = [
        *three(cell, "low", (0.10, 0.11, 0.12)),
        *three(cell, "near", (0.78, 0.82, 0.86)),
        *three(cell, "top", (0.80, 0.83, 0.86)),
    ]
    assert sentences(cells) == [
        "Best is top with 0.830 (cola, matthews of 50); the seeds do not tell near (0.820) from it; lower by more "
        "than seeds explain: low (0.110)."
    ]


@pytest.mark.parametrize(
    ("held_out", "score", "open_"),
    [(0.49, 0.79, False), (0.49, 0.80, True), (0.49, 0.90, True), (0.47, 0.90, False)],
    ids=[
        "a rival below the best row",
        "a rival like its least seed",
        "a rival above",
        "no rival",
    ],
)
def test_a_difference_that_rests_on_the_choice_of_a_rate_is_not_called_one(
    held_out: float, score: float, open_: bool, cell
):
    low = [cell("low", 0.1, seed, 0.48 if seed else 0.5, 0.10 + seed / 100) for seed in range(3)]
    cells = [*low, cell("low", 0.2, 0, held_out, score), *three(cell, "top", (0.80, 0.83, 0.86))]
    how = (
        "; lower, but perhaps not with a rate that did as well on the held-out part:"
        if open_
        else "; lower by more than seeds"
    )
    assert how in sentences(cells)[0]
    of_the_best = [cell("top", 0.2, 0, 0.5, 0.12)]  # reached on the held-out part what the best rate did
    assert "; lower, but perhaps not" in sentences([*low, *three(cell, "top", (0.80, 0.83, 0.86)), *of_the_best])[0]


def test_a_trend_that_rests_on_the_choice_of_a_rate_is_not_called_one(cell):
    def row(point, scores):
        return three(cell, "a", scores, point=point)

    cells = [*row(1, (0.1, 0.11, 0.12)), *row(2, (0.5, 0.51, 0.52))]
    assert sentences(cells)[-1] == "a rises from 1 to 2 deltas a neuron: 0.110, 0.510."
    for point, score in ((1, 0.6), (2, 0.05)):
        assert sentences([*cells, cell("a", 0.2, 0, 0.5, score, point=point)])[-1] == (
            "a shows no change that is safe from the choice of the learning rate from 1 to 2 deltas a neuron: 0.110, "
            "0.510."
        )


def test_methods_with_the_same_scores_are_the_best_together(cell):
    cells = [
        *three(cell, "a", (0.80, 0.81, 0.82)),
        *three(cell, "b", (0.80, 0.81, 0.82)),
        *three(cell, "c", (0.1, 0.1, 0.2)),
    ]
    assert sentences(cells)[0] == (
        "Best are a and b with 0.810 (cola, matthews of 50); lower by more than seeds explain: c (0.133)."
    )
    turned = [*three(cell, "a", (0.80, 0.81, 0.82)), *three(cell, "b", (0.82, 0.81, 0.80))]
    assert sentences(turned)[0].startswith("Best is a with 0.810")


def test_of_a_study_without_tests_the_memory_is_compared(cell):
    def row(method, seed, mebibytes):
        one = cell(method, 0.1, seed, 0.5, 0.5, scores=[])
        one.measurements["peak_memory"] = Measurement.count(mebibytes * 2**20, "bytes")
        return one

    failed = cell("c", 0.1, 0, 0, 0, status="failed", reason="it diverged", measurements={}, scores=[])
    assert sentences([row("a", 0, 300), row("a", 1, 400), row("b", 0, 200), failed]) == [
        "Least memory takes b, at most 200 MiB in the whole process; times as much: a 2.00.",
        "c: 1 cell failed, at a learning rate of 0.1: it diverged.",
    ]
    assert sentences([row("a", 0, 300)]) == []


def test_one_seed_tells_nothing_apart(cell):
    found = sentences([cell("a", 0.1, 0, 0.5, 0.9), cell("b", 0.1, 0, 0.5, 0.1)])
    assert found == [
        "Highest, with one seed, is a with 0.900 (cola, matthews of 50); "
        "with one seed on either side, so that nothing can be said: b (0.100)."
    ]
    rising = [cell("a", 0.1, 0, 0.5, 0.1, point=1), cell("a", 0.1, 0, 0.5, 0.9, point=2)]
    assert sentences(rising) == ["a goes, with one seed, from 1 to 2 deltas a neuron: 0.100, 0.900."]


def test_where_the_loss_chose_the_rates_it_is_ranked_too(cell, with_loss):
    def row(method, losses):
        return [with_loss(cell(method, 0.1, seed, -loss, 0.5), loss) for seed, loss in enumerate(losses)]

    cells = [*row("high", (0.9, 0.91, 0.92)), *row("low", (0.1, 0.11, 0.15)), *row("near", (0.1, 0.11, 0.18))]
    assert sentences(cells)[1] == (
        "Best is low with 0.120 (held-out loss in nats, by which the rates were chosen); the seeds do not tell near "
        "(0.130) from it; higher by more than seeds explain: high (0.910)."
    )
    assert sentences([cells[0], cells[3]])[1].startswith("Lowest, with one seed, is low with 0.100 (held-out loss")
    with_loss(cells[0], 0.8)
    assert not any("held-out loss" in sentence for sentence in sentences(cells))


def test_what_guessing_would_score_is_said(cell):
    cells = [*three(cell, "a", (0.5, 0.6, 0.7)), *three(cell, "b", (0.4, 0.5, 0.6))]
    assert not any("most frequent" in sentence for sentence in sentences(cells))
    for one in cells:
        one.scores[1] = one.scores[1].model_copy(update={"majority": 0.5 + one.seed / 10})
    expected = "Always giving the most frequent answer scores 0.600 (mean over the seeds' test records)."
    assert sentences(cells)[1] == expected
    cells[-1].scores[1] = cells[-1].scores[1].model_copy(update={"majority": None})
    assert sentences(cells)[1] == expected, "an older record of the same seed takes nothing away"


def test_methods_that_score_the_same_everywhere_are_said_to(cell):
    cells = [*three(cell, "NeuroAda", (0.7, 0.8, 0.75)), *three(cell, "mask", (0.7, 0.8, 0.75))]
    assert sentences(cells)[-1] == "NeuroAda and mask score exactly the same with every seed."
    third = three(cell, "third", (0.7, 0.8, 0.75))
    assert sentences([*cells, *third])[-1] == "NeuroAda, mask and third score exactly the same with every seed."
    cells[-1].scores[1] = cells[-1].scores[1].model_copy(update={"value": 0.7500001})
    assert "exactly" not in sentences(cells)[-1]


def test_seeds_are_compared_with_themselves(cell):
    one, other = three(cell, "NeuroAda", (0.7, 0.8, 0.75)), three(cell, "mask", (0.7, 0.8, 0.75))
    turned = sentences([*one, *reversed(other)])
    assert turned[0].startswith("Best are NeuroAda and mask with")
    assert "exactly the same" in turned[-1]
    assert "exactly the same" not in sentences([*one, *three(cell, "mask", (0.8, 0.7, 0.75))])[-1]
    assert "exactly the same" not in sentences([one[0], other[0]])[-1]


def test_along_an_axis_wins_and_trends_are_counted(cell):
    cells = [
        *three(cell, "up", (0.10, 0.11, 0.12), point=1),
        *three(cell, "up", (0.80, 0.81, 0.82), point=20),
        *three(cell, "flat", (0.50, 0.51, 0.52), point=1),
        *three(cell, "flat", (0.50, 0.52, 0.51), point=20),
    ]
    found = sentences(cells)
    assert found[0] == (
        "Averaged over 2 values of deltas a neuron, cola, matthews of 50: flat 0.510 (best at 1 of 2), "
        "up 0.460 (best at 1 of 2)."
    )
    assert found[1].startswith("At 1 deltas a neuron: best is flat with 0.510 (cola, matthews of 50); lower by more")
    assert found[2].startswith("At 20 deltas a neuron: best is up with")
    assert "up rises from 1 to 20 deltas a neuron: 0.110, 0.810." in found
    assert any(each.startswith("flat shows no change that the seeds can tell from 1 to 20") for each in found)


def test_falling_is_said_as_well(cell):
    cells = [*three(cell, "a", (0.80, 0.81, 0.82), point=1), *three(cell, "a", (0.1, 0.11, 0.12), point=2)]
    assert "a falls from 1 to 2 deltas a neuron: 0.810, 0.110." in sentences(cells)


def test_rows_whose_learning_rate_is_the_last_one_tried_are_named(cell):
    def row(method, *selections):
        rates = (0.1, 0.2, 0.3)
        return [cell(method, rate, 0, each, 0.5) for rate, each in zip(rates, selections, strict=False)]

    cells = [
        *row("up", 0.1, 0.2, 0.3),
        *row("up too", 0.2, 0.1, 0.3),
        *row("down", 0.3, 0.2, 0.1),
        *row("inside", 0.1, 0.3, 0.2),
        *row("tied", 0.3, 0.3, 0.3),
        *row("two rates", 0.1, 0.2),
        *row("one rate", 0.1),
        *row("failed above", 0.1, 0.2),
        cell("failed above", 0.3, 0, 0, 0, status="failed", reason="it diverged", measurements={}, scores=[]),
    ]
    assert sentences(cells)[-3:-1] == [
        "The largest learning rate of those tried was the best for up, up too and two rates.",
        "The smallest learning rate of those tried was the best for down.",
    ]


def test_what_failed_is_told(cell):
    def failed(rate):
        return cell("b", rate, 0, 0, 0, status="failed", reason="it diverged", measurements={}, scores=[])

    assert sentences([*three(cell, "a", (0.1, 0.2, 0.3)), failed(0.1), failed(0.2)]) == [
        "Only a is trained so far: 0.200 (cola, matthews of 50).",
        "b: 2 cells failed, at a learning rate of 0.1, 0.2: it diverged.",
    ]


def test_methods_that_learn_nothing_are_named(cell):
    cells = [row for name in ("a", "b") for row in three(cell, name, (0.0, 0.0, 0.0))]
    cells += three(cell, "c", (0.1, 0.2, 0.3))
    assert sentences(cells)[-1] == "a and b score with every seed what one answer to everything does."
    assert "one answer" not in " ".join(sentences([*three(cell, "a", (0.0, 0.0, 0.1)), *cells[-3:]]))


@pytest.mark.parametrize(
    ("one", "other", "least", "most"),
    [
        ((0.1, 0.2, 0.3), (0.1, 0.2, 0.3), 1.0, 1.0),
        ((0.5, 0.5), (0.6, 0.6), 0.0, 0.0),
        ((0.80, 0.81, 0.82), (0.10, 0.11, 0.12), 0.0, 1e-4),
        ((0.80, 0.90, 0.70), (0.79, 0.91, 0.73), 0.5, 1.0),
        ((0.775, 0.775, 0.775), (0.68, 0.70, 0.72), 0.0, 0.05),
        ((0.50, 0.51, 0.52), (0.55, 0.65, 0.75, 0.85), 0.0597, 0.0598),  # with a pooled variance 0.0557
    ],
)
@pytest.mark.filterwarnings("error")
def test_the_probability_of_a_difference(one, other, least, most):
    assert least <= difference(one, other) <= most


def test_fewer_than_two_values_have_no_probability():
    assert difference((0.1,), (0.2, 0.3)) is None


def test_the_paper_s_claim_follows_what_was_found(cell):
    text = findings_text([*three(cell, "a", (0.1, 0.2, 0.3), study="coverage")])
    assert text.endswith(f"\n- {CLAIMS['coverage']}")
    assert findings_text([]) == "Not measured."
