"""What studies found, in words made from their records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from statistics import mean, stdev

from neuroada.measure.record import Record
from neuroada.report.study_rows import StudyResults, StudyRow, scores_after, studies_of
from neuroada.report.text import NOT_MEASURED, mebibytes

SIGNIFICANT = 0.05
"""Probability below which a difference is called more than the spread over seeds."""

CLAIMS = {
    "strategies": (
        "The paper (Figure 7, LLaMA-7B) finds all four of its strategies close: their averages over the budgets lie "
        "between 77.69 and 79.24 on COMMONSENSE15K and between 35.89 and 36.54 on GSM8K, and magnitude wins most often."
    ),
    "coverage": (
        "The paper (Figure 6, LLaMA-7B) finds that more neurons are consistently better; it prints no values."
    ),
    "budget": (
        "The paper (Figure 4, LLaMA-7B) finds NeuroAda as good as mask-based tuning or better at most budgets, and "
        "about 9 and 14 points better at 6.05 % and 10.09 % on COMMONSENSE15K. The two are the same mathematics: with "
        "the same support and optimiser they train to the same weights."
    ),
    "neat-cola": (
        "NEAT's paper (Table 3, RoBERTa-base) has CoLA at 64.4 for NEAT and at 59.7 for LoRA with equally many values."
    ),
    "neat-mrpc": (
        "NEAT's paper (Table 3, RoBERTa-base, the whole training set) has MRPC at 90.0 for NEAT and at 88.7 for LoRA "
        "with equally many values."
    ),
    "neat-cifar10": (
        "NEAT's paper (Table 4, ViT-base, 10 epochs) has CIFAR-10 at 98.92 for full fine-tuning, 98.78 for LoRA with "
        "581 thousand values, 98.70 for NEAT with 258 thousand and 96.41 for a linear probe; over eight sets NEAT has "
        "86.15 and LoRA 77.58, a difference that StanfordCars and FGVC make almost alone."
    ),
    "neat-variants": (
        "NEAT's paper (Table 6, ViT-base) has CIFAR-10 at 98.70 for NEAT and at 98.68 for either ablation; over eight "
        "sets it prints 86.15 for NEAT, 84.81 for multiplicative and 83.31 for nonlinear LoRA."
    ),
    "neat-activations": (
        "NEAT's paper (Table 5, ViT-base) has CIFAR-10 at 98.62 with relu and 98.88 with sine, and finds that the "
        "choice matters little."
    ),
    "neat-depth": (
        "NEAT's paper (Figure 2, StanfordCars) finds more layers better up to 6, 1.7 points over 2 layers, and 8 and "
        "10 slightly worse than 6."
    ),
}
"""What the papers say of their studies, by the name of ours."""


def findings_text(records: Sequence[Record]) -> str:
    """A list of sentences for each study."""
    parts = []
    for study in studies_of(records):
        sentences = [*findings(study), *([CLAIMS[study.name]] if study.name in CLAIMS else [])]
        parts.append("\n".join(f"- {sentence}" for sentence in sentences))
    return "\n\n".join(parts) or NOT_MEASURED


def findings(study: StudyResults) -> list[str]:
    """Sentences, the most general first; of memory where no test was scored. What they call equal may differ by less
    than three seeds can show."""
    return [*_found(study), *_edges(study), *_failures(study)]


def _found(study: StudyResults) -> list[str]:
    if not study.shown:
        return _memory(study)
    test = study.shown[-1]
    scored = [row for row in study.rows if row.values(test)]
    title = study.tests[test]
    if len(scored) < 2:
        return [f"Only {row.label} is trained so far: {row.mean(test):.3f} ({title})." for row in scored]
    if study.axis is None:
        ranking = _capital(_ranking_by_test(scored, test, title))
        return [ranking, *_guessing(scored, test), *_by_loss(scored), *_alike(study, [None], test)]
    points = [point for point in study.points if sum(row.point == point for row in scored) > 1]
    sentences = [*_wins(study, points, test, title)]
    for point in points:
        there = [row for row in scored if row.point == point]
        sentences.append(f"At {point:g} {study.axis}: {_ranking_by_test(there, test, title)}")
    return [*sentences, *_guessing(scored, test), *_trends(study, test), *_alike(study, study.points, test)]


def _wins(study: StudyResults, points: Sequence[float], test: str, title: str) -> list[str]:
    if not points:
        return []
    means: dict[str, list[float]] = {}
    wins = dict.fromkeys(study.methods, 0)
    for point in points:
        there = {row.method: row.mean(test) or 0.0 for row in study.rows if row.point == point and row.values(test)}
        for method, value in there.items():
            means.setdefault(method, []).append(value)
            wins[method] += value == max(there.values())
    whole = {method: mean(values) for method, values in means.items() if len(values) == len(points)}
    if len(whole) < 2:
        return []
    order = sorted(whole, key=lambda method: -whole[method])
    listed = ", ".join(f"{method} {whole[method]:.3f} (best at {wins[method]} of {len(points)})" for method in order)
    return [f"Averaged over {len(points)} values of {study.axis}, {title}: {listed}."]


def _ranking_by_test(rows: Sequence[StudyRow], test: str, title: str) -> str:
    return _ranking(rows, lambda row: row.values(test), title, undone=lambda best, row: _undone(best, row, test))


def _undone(upper: StudyRow, lower: StudyRow, test: str) -> bool:
    """Whether two rows would overlap, had another seed chosen either's learning rate."""
    above, below = max(lower.rival_values(test), default=-inf), min(upper.rival_values(test), default=inf)
    return above >= min(upper.values(test)) or below <= max(lower.values(test))


def _ranking(
    rows: Sequence[StudyRow],
    of: Callable[[StudyRow], Sequence[float]],
    title: str,
    lower_is_better: bool = False,
    undone: Callable[[StudyRow, StudyRow], bool] = lambda best, row: False,
) -> str:
    """The best, those that the seeds do not tell from it, those that they do, and those without enough of them.

    undone: whether a difference that the seeds do tell rests on a learning rate that hardly was the better one.
    """
    sign, worse, extreme = (1, "higher", "lowest") if lower_is_better else (-1, "lower", "highest")
    order = sorted(rows, key=lambda row: sign * mean(of(row)))
    best, single, equal, different, open_ = order[0], [], [], [], []
    alike = [row for row in order if len(of(best)) > 1 and [*of(row)] == [*of(best)]] or [best]
    for row in order:
        if row in alike:
            continue
        probability = difference(of(best), of(row))
        told = probability is not None and probability < SIGNIFICANT
        kind = single if probability is None else equal if not told else open_ if undone(best, row) else different
        kind.append(f"{row.method} ({mean(of(row)):.3f})")
    named = "best are" if len(alike) > 1 else "best is" if len(of(best)) > 1 else f"{extreme}, with one seed, is"
    sentence = f"{named} {_listed([row.method for row in alike])} with {mean(of(best)):.3f} ({title})"
    if equal:
        sentence += f"; the seeds do not tell {_listed(equal)} from it"
    if different:
        sentence += f"; {worse} by more than seeds explain: {_listed(different)}"
    if open_:
        sentence += f"; {worse}, but perhaps not with a rate that did as well on the held-out part: {_listed(open_)}"
    if single:
        sentence += f"; with one seed on either side, so that nothing can be said: {_listed(single)}"
    return f"{sentence}."


def _guessing(rows: Sequence[StudyRow], test: str) -> list[str]:
    """What a score is worth that is no better."""
    by_seed = {
        cell.seed: score.majority
        for row in rows
        for cell in row.best
        for score in scores_after(cell)
        if score.name == test and score.majority is not None
    }
    if not by_seed:
        return []
    found = mean(by_seed.values())
    return [f"Always giving the most frequent answer scores {found:.3f} (mean over the seeds' test records)."]


def _by_loss(rows: Sequence[StudyRow]) -> list[str]:
    """The ranking by held-out loss, where that is what the learning rates were chosen by."""
    if not all(row.chosen_by_loss for row in rows):
        return []
    title = "held-out loss in nats, by which the rates were chosen"
    return [_capital(_ranking(rows, lambda row: row.losses, title, lower_is_better=True))]


def _trends(study: StudyResults, test: str) -> list[str]:
    sentences = []
    for method in study.methods:
        rows = [study.row(method, point) for point in study.points]
        there = [row for row in rows if row is not None and row.values(test)]
        if len(there) < 2:
            continue
        first, last = there[0], there[-1]
        probability = difference(first.values(test), last.values(test))
        change = (last.mean(test) or 0.0) - (first.mean(test) or 0.0)
        how = "goes, with one seed," if probability is None else "rises" if change > 0 else "falls"
        if probability is not None and probability >= SIGNIFICANT:
            how = "shows no change that the seeds can tell"
        elif probability is not None and _undone(*((last, first) if change > 0 else (first, last)), test):
            how = "shows no change that is safe from the choice of the learning rate"
        values = ", ".join(f"{row.mean(test):.3f}" for row in there)
        sentences.append(f"{method} {how} from {first.point:g} to {last.point:g} {study.axis}: {values}.")
    return sentences


def _alike(study: StudyResults, points: Sequence[float | None], test: str) -> list[str]:
    """Methods that learnt nothing; others that scored exactly the same at every point with the same seeds."""
    groups: dict[tuple[tuple[tuple[int, float], ...], ...], list[str]] = {}
    constant = []
    for method in study.methods:
        rows = [study.row(method, point) for point in points]
        if all(row is not None and _is_constant(row, test) for row in rows):
            constant.append(method)
            continue
        scores = tuple(() if row is None else tuple(row.by_seed(test).items()) for row in rows)
        if scores and all(len(each) > 1 for each in scores):
            groups.setdefault(scores, []).append(method)
    same = [group for group in groups.values() if len(group) > 1]
    sentences = [f"{_listed(group)} score exactly the same with every seed." for group in same]
    if constant:
        score = "scores" if len(constant) == 1 else "score"
        sentences.append(f"{_listed(constant)} {score} with every seed what one answer to everything does.")
    return sentences


def _is_constant(row: StudyRow, test: str) -> bool:
    """Whether each of its scores is that of the most frequent answer: a correlation of 0, or its accuracy."""
    scores = [score for cell in row.best for score in scores_after(cell) if score.name == test]
    return bool(scores) and all(
        score.value == (0.0 if score.metric == "matthews" else score.majority) for score in scores
    )


def _edges(study: StudyResults) -> list[str]:
    """Rows for which a learning rate beyond those that were tried might be better."""
    sentences = []
    for edge in ("largest", "smallest"):
        rows = [row.label for row in study.rows if row.edge == edge]
        if rows:
            sentences.append(f"The {edge} learning rate of those tried was the best for {_listed(rows)}.")
    return sentences


def _failures(study: StudyResults) -> list[str]:
    """Each row's, with the first reason."""
    sentences = []
    for row in study.rows:
        failed = [cell for cell in row.cells if cell.status != "ok"]
        if failed:
            cells = "1 cell" if len(failed) == 1 else f"{len(failed)} cells"
            rates = ", ".join(f"{rate:g}" for rate in dict.fromkeys(cell.settings["learning_rate"] for cell in failed))
            sentences.append(f"{row.label}: {cells} failed, at a learning rate of {rates}: {failed[0].reason}.")
    return sentences


def _memory(study: StudyResults) -> list[str]:
    """What each method's process held at most, relative to the least."""
    peaks = {row.method: row.peak_memory for row in study.rows if row.best}
    if study.axis is not None or len(peaks) < 2:
        return []
    least, *others = sorted(peaks, key=peaks.__getitem__)
    listed = _listed([f"{method} {peaks[method] / peaks[least]:.2f}" for method in others])
    return [
        f"Least memory takes {least}, at most {mebibytes(peaks[least])} in the whole process; times as much: {listed}."
    ]


def difference(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Two-sided probability of Welch's t-test; None for fewer than two values each, 1 for equal means."""
    from scipy.stats import ttest_ind_from_stats

    if len(one) < 2 or len(other) < 2:
        return None
    if mean(one) == mean(other):
        return 1.0
    if len({*one}) == 1 and len({*other}) == 1:
        return 0.0
    moments = (moment for values in (one, other) for moment in (mean(values), stdev(values), len(values)))
    return float(ttest_ind_from_stats(*moments, equal_var=False).pvalue)


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _listed(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
