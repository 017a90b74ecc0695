"""Scores with 95 % intervals, by scikit-learn, SciPy and the percentile bootstrap."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef

from neuroada.errors import ConfigError

CONFIDENCE = 0.95

RESAMPLES = 2_000
"""A choice: the ends of the interval are then sure to about 6 % of a standard error."""


@dataclass(frozen=True)
class Score:
    """A metric of one test over `count` records, with its 95 % interval; fractions, not percent.

    majority: what always giving the most frequent answer would score, where answers are chosen from a few.
    """

    name: str
    metric: str
    value: float
    low: float
    high: float
    count: int
    majority: float | None = None


def most_frequent(references: Iterable[Hashable]) -> float:
    """The share of the most frequent answer."""
    counts = Counter(references)
    return max(counts.values()) / counts.total()


def accuracy(name: str, right: Sequence[bool], seed: int = 0) -> Score:
    """The share of right answers.

    The interval is the percentile bootstrap's; where all or none are right, resampling has nothing to vary, and
    it is the exact one of Clopper and Pearson.
    """
    values = np.asarray(right, dtype=float)
    _require_records(name, len(values))
    value = float(values.mean())
    if value in (0.0, 1.0):
        low, high = stats.binomtest(int(values.sum()), len(values)).proportion_ci(CONFIDENCE, method="exact")
    else:
        low, high = _interval(np.mean, (values,), seed)
    return _score(name, "accuracy", value, (low, high), len(values))


def score(name: str, metric: str, predictions: Sequence[float], references: Sequence[float], seed: int = 0) -> Score:
    """`metric` ("accuracy", "matthews", "pearson" or "f1") of predictions against references.

    The interval is the percentile bootstrap's over pairs, because accelerated ones are undefined where every
    resample scores the same; where all predictions are right it has no width, except accuracy's. A correlation
    with constant predictions is undefined and counts as 0, for Matthews (as scikit-learn has it) and Pearson alike:
    such predictions tell nothing. F1 is that of label 1.

    Raises:
        ConfigError: an unknown metric, no record, unequal lengths, or predictions that are not finite.
    """
    if metric not in ("accuracy", *METRICS):
        raise ConfigError(f"metric {metric!r}", "no such metric", f"Known: accuracy, {', '.join(METRICS)}")
    predicted, true = np.asarray(predictions), np.asarray(references)
    _require_records(name, len(true))
    if predicted.shape != true.shape:
        found = f"{len(predicted)} predictions for {len(true)} references"
        raise ConfigError(f"score of {name}", found, "Give one prediction a reference")
    if not np.isfinite(predicted).all():
        found = f"{np.count_nonzero(~np.isfinite(predicted))} of {len(true)} predictions are not finite"
        raise ConfigError(f"score of {name}", found, "The training has diverged; lower its learning rate")
    if metric == "accuracy":
        return replace(accuracy(name, list(predicted == true), seed), majority=most_frequent(true.tolist()))
    known = METRICS[metric]
    if known.labels and not np.isin(np.concatenate([true, predicted]), (0, 1)).all():
        raise ConfigError(f"{metric} of {name}", "labels other than 0 and 1", "Score them by accuracy")
    if len(true) == 1:
        return _score(name, metric, 0.0 if metric != "f1" else float(true[0] * predicted[0]), (known.least, 1.0), 1)
    interval = _interval(known.resampled, (true.astype(float), predicted.astype(float)), seed)
    return _score(name, metric, float(known.value(true, predicted)), interval, len(true))


def average(name: str, scores: Sequence[Score]) -> Score:
    """The plain mean of several tests' scores, whatever their sizes.

    The tests' errors are independent, so the interval's two sides are the roots of the summed squares of theirs,
    divided by the number of tests (Zou and Donner 2008), which keeps it inside the metric's range. It says how far
    the mean depends on which records the tests hold, not on the training's seed.
    """
    _require_records(name, len(scores))
    value = sum(each.value for each in scores) / len(scores)
    below = math.hypot(*(each.value - each.low for each in scores)) / len(scores)
    above = math.hypot(*(each.high - each.value for each in scores)) / len(scores)
    metrics = {each.metric for each in scores}
    metric = metrics.pop() if len(metrics) == 1 else "mean of metrics"
    found = _score(name, metric, value, (value - below, value + above), sum(each.count for each in scores))
    majorities = [each.majority for each in scores if each.majority is not None]
    return replace(found, majority=sum(majorities) / len(scores)) if len(majorities) == len(scores) else found


def _correlation(true: np.ndarray, predicted: np.ndarray, axis: int = -1) -> np.ndarray:
    """Pearson's correlation, 0 where it is undefined; of labels 0 and 1 it is Matthews'."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        return np.nan_to_num(stats.pearsonr(true, predicted, axis=axis).statistic)


def _f1(true: np.ndarray, predicted: np.ndarray, axis: int = -1) -> np.ndarray:
    """F1 of label 1, 0 where it is undefined."""
    both, either = (true * predicted).sum(axis), (true + predicted).sum(axis)
    return np.divide(2 * both, either, out=np.zeros(np.shape(either)), where=either != 0)


@dataclass(frozen=True)
class _Metric:
    """A library's metric of references and predictions, the same along an axis for resamples, and its least value."""

    value: Callable[[np.ndarray, np.ndarray], Any]
    resampled: Callable[..., np.ndarray]
    least: float
    labels: bool


METRICS = {
    "matthews": _Metric(matthews_corrcoef, _correlation, -1.0, labels=True),
    "pearson": _Metric(_correlation, _correlation, -1.0, labels=False),
    "f1": _Metric(lambda true, predicted: f1_score(true, predicted, zero_division=0), _f1, 0.0, labels=True),
}


def _interval(measure: Callable, samples: tuple[np.ndarray, ...], seed: int) -> tuple[float, float]:
    found = stats.bootstrap(
        samples,
        measure,
        paired=len(samples) > 1,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=100,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return found.confidence_interval


def _score(name: str, metric: str, value: float, interval: tuple[float, float], count: int) -> Score:
    low, high = (float(end) for end in interval)
    return Score(name, metric, value, min(low, value), max(high, value), count)


def _require_records(name: str, count: int) -> None:
    if not count:
        raise ConfigError(f"score of {name}", "nothing to score", "Give at least one record")
