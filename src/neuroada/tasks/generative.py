"""Families of tasks that a causal language model answers in words: prompts, targets, and what counts as right."""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from neuroada.errors import ConfigError, MissingInputError
from neuroada.tasks.examples import Example, split, subset
from neuroada.tasks.generation import Sampling, generate
from neuroada.tasks.records import Fields, Hub, find_place, load_records
from neuroada.tasks.scores import Score, accuracy, most_frequent

LETTERS = "ABCDE"

Kind = Literal["word", "number", "letter", "expression"]

CHOSEN: tuple[Kind, ...] = ("word", "letter")
"""Kinds of answers that are chosen from a few."""


@dataclass(frozen=True)
class Form:
    """The fields of a stored record, and how it becomes one with `instruction`, `output` and `answer`."""

    fields: Fields
    convert: Callable[[dict[str, Any]], dict[str, Any]] = dict
    may_be_empty: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a set lies: candidates in a data folder, the first there wins, and its name on the hub if it has one."""

    files: tuple[str, ...]
    form: Form
    hub: Hub | None = None
    hub_form: Form | None = None

    def load(self, data_dir: Path | None) -> list[tuple[dict[str, Any], str]]:
        """(converted record, file and line) of each.

        Raises:
            MissingInputError: it is in neither, or a record is not of the form; the message names file and line.
        """
        form = self.form if data_dir is not None else self.hub_form or self.form
        place = find_place(data_dir, self.files, self.hub)
        records = load_records(data_dir, self.files, form.fields, self.hub, form.may_be_empty)
        return [
            (_converted(form, record, f"{place}:{number}"), f"{place}:{number}")
            for number, record in enumerate(records, start=1)
        ]


@dataclass(frozen=True)
class Contamination:
    """How many of a published test's questions its usual train set holds, white space aside."""

    train_set: str
    shared: int
    total: int

    def __str__(self) -> str:
        return f"{self.shared} of {self.total} questions are in {self.train_set}"


@dataclass(frozen=True)
class Test:
    """A set to score on; `kind` says what its answers are."""

    __test__ = False

    place: Place
    kind: Kind
    contamination: Contamination | None = None
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class TrainSet:
    """A set to train on, with its published validation part if there is one: a file, or its last records."""

    place: Place
    validation: Place | None = None
    last: int = 0
    note: str = ""


@dataclass(frozen=True)
class Family:
    """Tests and train sets that share prompt, target and the rule for a right answer."""

    name: str
    tests: Mapping[str, Test]
    train_sets: Mapping[str, TrainSet]
    averages: Mapping[str, tuple[str, ...]]
    max_new_tokens: int
    prompt: Callable[[dict[str, Any]], str]
    target: Callable[[dict[str, Any]], str]
    is_right: Callable[[str, str, Test], bool]
    aliases: Mapping[str, str] = field(default_factory=dict)
    stop: tuple[str, ...] = ()

    def test_name(self, name: str) -> str:
        """The full name of a test given by that or by an alias; ConfigError where there is none."""
        return _known(name, self.tests, self.aliases, f"test {name!r} of {self.name}")

    def train_name(self, name: str) -> str:
        """The full name of a train set given by that or by an alias; ConfigError where there is none."""
        return _known(name, self.train_sets, self.aliases, f"train set {name!r} of {self.name}")


def load_test(
    family: Family, name: str, data_dir: Path | None, limit: int | None = None, seed: int = 0
) -> list[Example]:
    """The examples of a test, or a seeded random subset of `limit` of them, in file order.

    Raises:
        ConfigError: no such test.
        MissingInputError: its data are not there, or a record cannot be scored; the message names file and line.
    """
    test = family.tests[family.test_name(name)]
    examples = _examples(family, test.place, data_dir)
    for example in examples:
        _require_answer(example, test.kind)
    return subset(examples, limit, seed)


def load_train(
    family: Family, name: str, data_dir: Path | None, limit: int | None, held_out: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """(train, validation) of a train set, `limit` of the first chosen by seed, both in file order.

    Validation is the published part where there is one; else the part `held_out` of the records that `split`
    chooses by seed, so that equal prompts stay on one side; none with a share of 0.

    Raises:
        ConfigError: no such train set, or a share that leaves nothing to train on.
        MissingInputError: its data are not there, or a record is malformed; the message names file and line.
    """
    known = family.train_sets[family.train_name(name)]
    examples = _examples(family, known.place, data_dir)
    if known.validation is not None:
        return subset(examples, limit, seed), _examples(family, known.validation, data_dir)
    if known.last:
        train, validation = examples[: -known.last], examples[-known.last :]
    else:
        train, validation = split(examples, held_out, seed)
    if not train:
        found = f"{len(examples)} records, none left to train on"
        raise ConfigError(f"train set {name!r} of {family.name}", found, "Hold out a smaller share")
    return subset(train, limit, seed), validation


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    family: Family,
    name: str,
    examples: Sequence[Example],
    *,
    batch_size: int,
    sampling: Sampling | None = None,
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
) -> tuple[Score, list[dict[str, Any]]]:
    """The accuracy of a test's examples, and a row each: prompt, answer, generated text, whether right, source.

    `seed` is that of the interval's resampling; `advance` is called with the number of examples done.
    """
    name = family.test_name(name)
    test = family.tests[name]
    texts = generate(
        model,
        tokenizer,
        [example.prompt for example in examples],
        batch_size=batch_size,
        max_new_tokens=test.max_new_tokens or family.max_new_tokens,
        sampling=sampling,
        advance=advance,
    )
    rows: list[dict[str, Any]] = []
    for example, text in zip(examples, texts, strict=True):
        generated = _cut(text, family.stop)
        right = family.is_right(generated, example.answer, test)
        rows.append(
            {
                "prompt": example.prompt,
                "answer": example.answer,
                "generated": generated,
                "right": right,
                "source": example.source,
            }
        )
    score = accuracy(name, [row["right"] for row in rows], seed)
    if test.kind in CHOSEN:
        score = replace(score, majority=most_frequent(example.answer.strip() for example in examples))
    return score, rows


def _examples(family: Family, place: Place, data_dir: Path | None) -> list[Example]:
    return [
        Example(family.prompt(record), family.target(record), record.get("answer", ""), source)
        for record, source in place.load(data_dir)
    ]


def _converted(form: Form, record: dict[str, Any], place: str) -> dict[str, Any]:
    try:
        return form.convert(record)
    except (LookupError, ValueError) as error:
        found = f"its fields do not fit together ({error})"
        raise MissingInputError(place, found, "Leave the record out, or correct it") from error


def _require_answer(example: Example, kind: Kind) -> None:
    answer = example.answer.strip()
    if kind == "number" and not _is_number(answer):
        raise MissingInputError(example.source, f"the answer {answer!r} is not a number", "Write a number there")
    if kind == "letter" and (len(answer) != 1 or answer not in LETTERS):
        raise MissingInputError(example.source, f"the answer {answer!r} is no letter of A to E", "Write one of them")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _cut(text: str, stop: Iterable[str]) -> str:
    """The text before the first of the stop strings."""
    places = [place for word in stop if (place := text.find(word)) >= 0]
    return text[: min(places)] if places else text


def _known(name: str, known: Mapping[str, Any], aliases: Mapping[str, str], asked: str) -> str:
    full = {each.casefold(): each for each in known} | {alias.casefold(): each for alias, each in aliases.items()}
    if name.casefold() in full and full[name.casefold()] in known:
        return full[name.casefold()]
    close = difflib.get_close_matches(name.casefold(), full, n=1)
    hint = f"Did you mean {full[close[0]]!r}? " if close else ""
    raise ConfigError(asked, "no such name", f"{hint}Known: {', '.join(known)}")
