"""Score a model on the tests of a task."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from torch.utils.data import DataLoader

from neuroada.layers import held
from neuroada.recipe.schema import EvaluationSection
from neuroada.tasks.arithmetic import ARITHMETIC, GSM8K, METAMATH, PUBLISHED_SAMPLING
from neuroada.tasks.classification import Classification, predictions_of
from neuroada.tasks.classification import evaluate as score_classifier
from neuroada.tasks.commonsense import COMMONSENSE
from neuroada.tasks.examples import Example
from neuroada.tasks.generation import evaluating, longest_first
from neuroada.tasks.generative import Family, load_test
from neuroada.tasks.generative import evaluate as score_generations
from neuroada.tasks.images.files import Picture
from neuroada.tasks.images.pixels import ImageRows
from neuroada.tasks.images.sets import thumbnail
from neuroada.tasks.scores import Score, average

FAMILIES = {family.name: family for family in (COMMONSENSE, ARITHMETIC, GSM8K, METAMATH)}
SAMPLING = {"greedy": None, "published": PUBLISHED_SAMPLING}

SHOWN = 40
"""Pictures that a model took wrongly, and as many that it took rightly, whose thumbnails are kept: a choice."""

Advance = Callable[[str, int], None]
"""Called with what is being scored and how many records are done since."""


@dataclass(frozen=True)
class Scored:
    """Scores, averages of several tests last, and what the model answered, a record each.

    notes: what must be said beside a test's score, by its name.
    """

    scores: list[Score]
    answers: list[dict[str, Any]]
    notes: dict[str, str] = field(default_factory=dict)

    def plain(self) -> list[dict[str, Any]]:
        """The scores as plain types, each with its note."""
        return [{**asdict(score), "note": self.notes.get(score.name, "")} for score in self.scores]

    def __add__(self, other: "Scored") -> "Scored":
        """Both, one after the other."""
        return Scored(self.scores + other.scores, self.answers + other.answers, self.notes | other.notes)


class Tests(Protocol):
    """What a task scores."""

    @property
    def records(self) -> int:
        """How many answers one scoring takes."""
        ...

    def score(self, model: Any, processor: Any, advance: Advance) -> Scored:
        """Answers of the model as it stands, scored; the model is left in the mode it was in.

        processor: the tokenizer or image processor that goes with it.
        """
        ...


@dataclass(frozen=True)
class GenerativeTests:
    """Tests that are answered in words."""

    family: Family
    examples: dict[str, list[Example]]
    settings: EvaluationSection
    seed: int

    @classmethod
    def load(cls, family: Family, settings: EvaluationSection, data_dir: Path | None, seed: int) -> "GenerativeTests":
        """Read the tests that `settings` names."""
        if settings.max_new_tokens is not None:
            tests = {n: replace(test, max_new_tokens=settings.max_new_tokens) for n, test in family.tests.items()}
            family = replace(family, tests=tests)
        names = chosen_tests(family, settings.tests)
        examples = {name: load_test(family, name, data_dir, settings.records, seed) for name in names}
        return cls(family, examples, settings, seed)

    @property
    def records(self) -> int:
        """Over all tests."""
        return sum(map(len, self.examples.values()))

    def score(self, model: Any, processor: Any, advance: Advance) -> Scored:
        """One test after the other, then the averages whose tests are all there."""
        scores, answers = [], []
        with held(model):
            for name, examples in self.examples.items():
                score, given = score_generations(
                    model,
                    processor,
                    self.family,
                    name,
                    examples,
                    batch_size=self.settings.batch_size,
                    sampling=SAMPLING[self.settings.sampling],
                    seed=self.seed,
                    advance=lambda done, name=name: advance(name, done),
                )
                scores.append(score)
                answers += [{"test": name, **answer} for answer in given]
        by_name = {score.name: score for score in scores}
        for name, members in self.family.averages.items():
            if set(members) <= set(by_name) and len(members) > 1:
                scores.append(average(name, [by_name[member] for member in members]))
        return Scored(scores, answers, self.notes())

    def notes(self) -> dict[str, str]:
        """Of each test that shares questions with its usual train set, and of averages over such tests."""
        shared = {n: f"contaminated: {t.contamination}" for n, t in self.family.tests.items() if t.contamination}
        averages = {
            name: f"contaminated: {', '.join(n for n in members if n in shared)}"
            for name, members in self.family.averages.items()
            if set(members) & set(shared)
        }
        return shared | averages


def chosen_tests(family: Family, names: Sequence[str]) -> list[str]:
    """Full names of the tests given by name, alias or average; with none, those of the family's first average.

    Raises:
        ConfigError: an unknown name.
    """
    wanted = names or [next(iter([*family.averages, *family.tests]))]
    members = [family.averages.get(name) or (family.test_name(name),) for name in wanted]
    return list(dict.fromkeys(name for group in members for name in group))


@dataclass(frozen=True)
class ClassifierTest:
    """One test that a classification head answers."""

    task: Classification
    test: Dataset | ImageRows
    collator: Any
    batch_size: int

    @property
    def records(self) -> int:
        """Of the test."""
        return len(self.test)

    @property
    def lengths(self) -> list[int]:
        """Of each record, in tokens; pictures are all alike."""
        return (
            [len(tokens) for tokens in self.test["input_ids"]] if isinstance(self.test, Dataset) else [1] * self.records
        )

    @torch.inference_mode()
    def score(self, model: Any, processor: Any, advance: Advance) -> Scored:
        """The answers are in the order of the records, the batches in that of their lengths."""
        device = next(model.parameters()).device
        logits, labels = [], []
        order = longest_first(self.lengths)
        loader: Any = DataLoader(self.test, self.batch_size, sampler=order, collate_fn=self.collator)  # type: ignore[arg-type]
        with evaluating(model), held(model):
            for batch in loader:
                batch: Any = send_to_device(batch, device)
                labels.append(batch.pop("labels"))
                logits.append(model(**batch).logits.float())
                advance(self.task.name, len(labels[-1]))
        in_order = torch.tensor(order).argsort()
        found, right = torch.cat(logits).cpu()[in_order], torch.cat(labels).cpu()[in_order]
        predicted = predictions_of(self.task, found)
        answers = [
            {"test": self.task.name, "index": index, "answer": answer, "generated": guess}
            for index, (answer, guess) in enumerate(zip(right.tolist(), predicted.tolist(), strict=True))
        ]
        return Scored([score_classifier(self.task, found, right)], answers)


@dataclass(frozen=True)
class ImageTest(ClassifierTest):
    """One test of pictures. Its answers are names of classes, and some of them have a thumbnail, for a report.

    note: what must be said beside its score.
    """

    pictures: Sequence[Picture] = ()
    note: str = ""

    def score(self, model: Any, processor: Any, advance: Advance) -> Scored:
        """As of any classifier."""
        scored = super().score(model, processor, advance)
        right = [answer["answer"] == answer["generated"] for answer in scored.answers]
        shown = {place for kind in (True, False) for place in _spread([n for n, r in enumerate(right) if r is kind])}
        answers = [
            {
                "test": self.task.name,
                "source": picture.place,
                "answer": self.task.labels[answer["answer"]],
                "generated": self.task.labels[answer["generated"]],
                "right": right[place],
                **({"image": thumbnail(picture)} if place in shown else {}),
            }
            for place, (picture, answer) in enumerate(zip(self.pictures, scored.answers, strict=True))
        ]
        return Scored(scored.scores, answers, {self.task.name: self.note})


def _spread(places: Sequence[int]) -> list[int]:
    """At most SHOWN of them, evenly spaced."""
    count = min(SHOWN, len(places))
    return [places[number * len(places) // count] for number in range(count)]
