"""Prompts with what should follow them, and how they are split and sampled."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from neuroada.errors import ConfigError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Example:
    """What a model reads, what it should write, the answer in that, and the file and line it comes from."""

    prompt: str
    target: str
    answer: str
    source: str


def split(examples: Sequence[Example], held_out: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(rest, held out): whole groups of equal prompts, chosen by seed, both in the given order.

    held_out: a share below 1, or from 1 on a number of records, of which at most a tenth of all is taken.
    """
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(" ".join(example.prompt.split()), []).append(index)
    shuffled = list(groups.values())
    random.Random(seed).shuffle(shuffled)
    room = int(held_out * len(examples)) if held_out < 1 else min(int(held_out), len(examples) // 10)
    chosen: set[int] = set()
    for group in shuffled:
        if len(group) <= room:
            chosen.update(group)
            room -= len(group)
    rest = [example for index, example in enumerate(examples) if index not in chosen]
    return rest, [examples[index] for index in sorted(chosen)]


def subset(examples: Sequence[Item], limit: int | None, seed: int) -> list[Item]:
    """`limit` of the examples chosen by seed, in the given order; all of them where there are no more."""
    if limit is None or limit >= len(examples):
        return list(examples)
    if limit < 1:
        raise ConfigError(f"limit {limit}", "it leaves no record", "Give a limit of 1 or more")
    return [examples[index] for index in sorted(random.Random(seed).sample(range(len(examples)), limit))]
