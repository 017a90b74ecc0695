"""What a model answered to the tests, before and after training, and a few examples of each kind of change."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from neuroada.report.html.run import Part, Run, read_lines

CHANGES = (
    *("wrong → right", "right → wrong", "right before and after", "wrong before and after"),
    *("right", "wrong", "neither right nor wrong"),
)
"""The last three: answers of one time only, and values, such as a similarity."""

PER_KIND = 4
"""Examples of each test and change in a page: a choice, some hundred in all for eight tests."""

PICTURES_PER_KIND = 12
"""The same, where each example is a small picture."""

LONGEST = 3000
"""Characters of a text that are shown: a choice, above the longest prompt of the published tasks."""

LARGEST = 10_000
"""Characters of a picture that is shown: some times what a run writes."""

PICTURE = re.compile(r"data:image/jpeg;base64,[A-Za-z0-9+/]+=*")


class Answer(Part):
    """A line of answers-before.jsonl or answers-after.jsonl."""

    test: str
    answer: Any = None
    generated: Any = None
    right: bool | None = None
    prompt: str = ""
    source: str | None = None
    index: int | None = None
    image: str | None = None

    @property
    def picture(self) -> str | None:
        """A small image in a data URL, and nothing else that a run folder may have there."""
        sound = self.image is not None and len(self.image) <= LARGEST and PICTURE.fullmatch(self.image)
        return self.image if sound else None

    @property
    def is_right(self) -> bool | None:
        """As it was judged; labels are right where they are equal; None for values."""
        labels = isinstance(self.answer, int) and isinstance(self.generated, int)
        return self.answer == self.generated if self.right is None and labels else self.right


@dataclass(frozen=True)
class Example:
    """One record of a test, with what was answered before and after training; None where that was not asked."""

    test: str
    place: str
    prompt: str
    answer: str
    before: str | None
    after: str | None
    change: str
    image: str | None = None

    @property
    def given(self) -> str:
        """The last answer."""
        return self.before or "" if self.after is None else self.after


@dataclass(frozen=True)
class Examples:
    """counts: of all records, by test and change. shown: a few of each of those."""

    counts: dict[str, dict[str, int]]
    shown: list[Example]

    @property
    def by_change(self) -> list[tuple[str, int, list[Example]]]:
        """Each change, how many records have it, and those that are shown."""
        totals = {change: sum(counts.get(change, 0) for counts in self.counts.values()) for change in CHANGES}
        return [
            (change, total, [example for example in self.shown if example.change == change])
            for change, total in totals.items()
            if total
        ]


def read_examples(run: Run) -> Examples | None:
    """None without answers.

    Raises:
        ConfigError: a line is broken; the message names file and line.
    """
    answers = [_by_record(read_lines(run.path / f"answers-{when}.jsonl", Answer)) for when in ("before", "after")]
    found: dict[tuple[str, str], list[Example]] = {}
    counts: dict[str, dict[str, int]] = {}
    for test, place in dict.fromkeys([*answers[1], *answers[0]]):
        example = _example(test, place, *(each.get((test, place)) for each in answers))
        found.setdefault((test, example.change), []).append(example)
        of_test = counts.setdefault(test, {})
        of_test[example.change] = of_test.get(example.change, 0) + 1
    if not found:
        return None
    order = sorted(found, key=lambda key: (CHANGES.index(key[1]), list(counts).index(key[0])))
    return Examples(counts, [example for key in order for example in _shown(found[key])])


def _shown(examples: Sequence[Example]) -> list[Example]:
    """Of one kind: those with a picture, if there are such."""
    pictures = [example for example in examples if example.image is not None]
    return spread(pictures, PICTURES_PER_KIND) if pictures else spread(examples, PER_KIND)


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """At most `count` of them, evenly spaced, in order."""
    count = min(count, len(examples))
    return [examples[number * len(examples) // count] for number in range(count)]


def clipped(text: str) -> str:
    """A text's beginning, with how much is left out."""
    rest = len(text) - LONGEST
    return text if rest <= 0 else f"{text[:LONGEST]} … ({rest:,} more characters)"


def _by_record(answers: Iterable[Answer]) -> dict[tuple[str, str], Answer]:
    found: dict[tuple[str, str], Answer] = {}
    for number, answer in enumerate(answers):
        index = number if answer.index is None else answer.index
        found[answer.test, answer.source or f"record {index}"] = answer
    return found


def _example(test: str, place: str, before: Answer | None, after: Answer | None) -> Example:
    asked = after or before
    assert asked is not None
    return Example(
        test=test,
        place=place,
        prompt=clipped(asked.prompt),
        answer=clipped(str(asked.answer)),
        before=None if before is None else clipped(str(before.generated)),
        after=None if after is None else clipped(str(after.generated)),
        change=_change(before, after),
        image=next((each.picture for each in (after, before) if each is not None and each.picture), None),
    )


def _change(before: Answer | None, after: Answer | None) -> str:
    judged = [each.is_right for each in (before, after) if each is not None and each.is_right is not None]
    words = ["right" if right else "wrong" for right in judged]
    if len(words) == 2:
        return f"{words[0]} before and after" if words[0] == words[1] else " → ".join(words)
    return words[0] if words else "neither right nor wrong"
