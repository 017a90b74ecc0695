"""Scores against scikit-learn and SciPy, intervals against closed forms and coverage."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef

from neuroada.errors import ConfigError
from neuroada.tasks.scores import Score, accuracy, average, score

RNG = np.random.default_rng(0)
TRUE = RNG.integers(0, 2, 300)
GUESS = np.where(RNG.random(300) < 0.8, TRUE, 1 - TRUE)
REAL = RNG.normal(size=200)
NEAR = REAL + RNG.normal(size=200)


@pytest.mark.parametrize(
    ("metric", "predictions", "references", "expected"),
    [
        ("accuracy", GUESS, TRUE, float(np.mean(GUESS == TRUE))),
        ("matthews", GUESS, TRUE, matthews_corrcoef(TRUE, GUESS)),
        ("f1", GUESS, TRUE, f1_score(TRUE, GUESS)),
        ("pearson", NEAR, REAL, stats.pearsonr(REAL, NEAR).statistic),
    ],
)
def test_values_are_the_libraries(metric, predictions, references, expected):
    found = score("test", metric, list(predictions), list(references))
    assert found.value == pytest.approx(expected)
    assert found.low < found.value < found.high
    assert (found.name, found.metric, found.count) == ("test", metric, len(references))


def test_an_accuracys_interval_is_the_binomials():
    right = [True] * 70 + [False] * 30
    found = accuracy("test", right)
    low, high = stats.binom.ppf([0.025, 0.975], 100, 0.7) / 100
    assert found.low == pytest.approx(low, abs=0.015)
    assert found.high == pytest.approx(high, abs=0.015)


def test_pearsons_interval_is_about_fishers():
    found = score("test", "pearson", list(NEAR), list(REAL))
    fisher = stats.pearsonr(REAL, NEAR).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(fisher), abs=0.03)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    hits = sum(
        found.low <= 0.8 <= found.high
        for found in (accuracy("test", list(RNG.random(200) < 0.8), seed=trial) for trial in range(80))
    )
    assert 70 <= hits <= 79


def test_pairs_are_resampled_together():
    independent = score("test", "pearson", list(NEAR), list(RNG.permutation(REAL)))
    together = score("test", "pearson", list(NEAR), list(REAL))
    assert independent.high < together.low


@pytest.mark.parametrize("kind", ["accuracy", "matthews"])
def test_the_seed_decides(kind):
    one, same, other = (score("test", kind, list(GUESS), list(TRUE), seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert one.value == other.value


@pytest.mark.parametrize(("right", "value"), [(True, 1.0), (False, 0.0)])
@pytest.mark.parametrize("count", [1, 20])
def test_all_right_or_all_wrong_is_not_certainty(right, value, count):
    found = accuracy("test", [right] * count)
    assert found.value == value
    assert found.high - found.low == pytest.approx(1 - 0.025 ** (1 / count))
    assert value in (found.low, found.high)


def test_constant_predictions_correlate_with_nothing():
    for metric, references in (("matthews", TRUE), ("pearson", REAL)):
        found = score("test", metric, [1] * len(references), list(references))
        assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
    assert score("test", "f1", [0] * 300, list(TRUE)).value == 0.0


def test_few_records_where_some_resamples_are_constant(recwarn):
    for metric in ("matthews", "pearson", "f1"):
        found = score("test", metric, [0, 1, 1], [0, 1, 0])
        assert np.isfinite([found.low, found.value, found.high]).all()
        assert found.low <= found.value <= found.high
        single = score("test", metric, [1], [1])
        assert single.low <= single.value <= single.high
        assert single.high - single.low >= 1
    assert not recwarn.list


def test_perfect_predictions():
    for metric in ("matthews", "f1"):
        found = score("test", metric, list(TRUE), list(TRUE))
        assert (found.value, found.high) == (1.0, 1.0)


def test_an_accuracy_says_what_the_most_frequent_answer_would_score():
    assert score("test", "accuracy", [0, 0, 0, 0, 0], [2, 1, 2, 0, 2]).majority == 0.6
    assert score("test", "matthews", [0, 1], [1, 1]).majority is None
    assert accuracy("test", [True, False]).majority is None
    known = [Score(str(value), "accuracy", 0.5, 0.4, 0.6, 9, majority=value) for value in (0.6, 0.5)]
    assert average("both", known).majority == pytest.approx(0.55)
    assert average("both", [*known, Score("free", "accuracy", 0.5, 0.4, 0.6, 9)]).majority is None


def test_an_average_counts_tests_alike_and_narrows_with_independent_tests():
    tests = [Score(name, "accuracy", 0.5, 0.4, 0.6, count) for name, count in (("a", 10), ("b", 1000))]
    found = average("both", [*tests, Score("c", "accuracy", 0.8, 0.75, 0.9, 5)])
    assert found.value == pytest.approx(0.6)
    assert found.low == pytest.approx(0.6 - (0.1**2 + 0.1**2 + 0.05**2) ** 0.5 / 3)
    assert found.high == pytest.approx(0.6 + (0.1**2 + 0.1**2 + 0.1**2) ** 0.5 / 3)
    assert (found.name, found.metric, found.count) == ("both", "accuracy", 1015)


def test_an_averages_interval_is_that_of_resampling_every_test():
    rights = [RNG.random(size) < share for size, share in ((300, 0.8), (150, 0.5), (500, 0.95))]
    found = average("all", [accuracy("test", list(right)) for right in rights])
    resampled = np.mean([RNG.binomial(len(right), right.mean(), 20_000) / len(right) for right in rights], axis=0)
    low, high = np.quantile(resampled, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.005)


def test_an_average_stays_in_range_and_names_mixed_metrics():
    found = average("glue", [accuracy("a", [True] * 9), score("b", "matthews", list(GUESS), list(TRUE))])
    assert found.high <= 1
    assert found.metric == "mean of metrics"


def test_what_cannot_be_scored():
    with pytest.raises(ConfigError, match=r"metric 'bleu': no such metric. Known: accuracy, matthews, pearson, f1"):
        score("test", "bleu", [1], [1])
    with pytest.raises(ConfigError, match="score of test: 2 predictions for 1 references"):
        score("test", "f1", [1, 0], [1])
    with pytest.raises(ConfigError, match=r"1 of 2 predictions are not finite. The training has diverged"):
        score("test", "pearson", [float("nan"), 0.0], [1.0, 2.0])
    with pytest.raises(ConfigError, match=r"matthews of test: labels other than 0 and 1. Score them by accuracy"):
        score("test", "matthews", [2, 0], [1, 0])
    for empty in (lambda: accuracy("test", []), lambda: score("test", "f1", [], []), lambda: average("test", [])):
        with pytest.raises(ConfigError, match="score of test: nothing to score"):
            empty()
