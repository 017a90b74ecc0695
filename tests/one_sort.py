"""How one budget is spread over many weights, by one sort of all their scores: the definition, a score at a time."""

from collections import Counter
from fractions import Fraction

from torch import Tensor


def spent(sizes: dict[str, int], scores: dict[str, Tensor]) -> int:
    """Σ N·K. scores: [N, I] by name."""
    return sum(k * len(scores[name]) for name, k in sizes.items())


def by_one_sort(scores: dict[str, Tensor], budget: int) -> dict[str, int]:
    """K by name: let a threshold fall from score to score, and keep the K that come nearest to the budget.

    Scores are told apart in bfloat16, and equal ones of a weight are spread evenly up to the next value.
    """
    entries = []
    for name, each in scores.items():
        values = each.bfloat16().flatten().tolist()
        ties, seen = Counter(values), Counter[float]()
        for value in values:
            seen[value] += 1
            entries.append((-value, Fraction(seen[value], ties[value]), name))
    above, sizes = dict.fromkeys(scores, 0), dict.fromkeys(scores, 1)
    best, now = dict(sizes), spent(sizes, scores)
    distance = abs(now - budget)
    for _, _, name in sorted(entries):
        above[name] += 1
        count = len(scores[name])
        k = max(1, (2 * above[name] + count) // (2 * count))  # rounded, halves up
        now += (k - sizes[name]) * count
        sizes[name] = k
        if abs(now - budget) < distance:
            best, distance = dict(sizes), abs(now - budget)
    return best
