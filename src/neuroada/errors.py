"""One family of errors. Every message says what was asked, what was found, and what to do, near names included."""

import difflib
from collections.abc import Iterable, Sequence

from peft.utils.error import NoMatchingPeftModuleError

MANY = 40
"""More names than these are not listed beside a near one."""


LISTED = 1200
"""Characters of known names in one message, at most."""

NEAR, CLOSE = 0.8, 0.05
"""How alike a name and a known one must be (difflib's ratio) to be taken for a misspelling, and how much less alike a
second one may be to be offered beside it. A choice: `eval_steps` and `max_steps` are at 0.74."""


def near(name: str, known: Iterable[str]) -> str:
    """What to do about an unknown name: the nearest one in any case, if one is very near, then all known ones, or how
    many they are."""
    known = list(dict.fromkeys(known))
    meant = _meant(name, known)
    hint = f"Did you mean {' or '.join(map(repr, meant))}? " if meant else ""
    if hint and len(known) > MANY:
        return f"{hint}There are {len(known)} in all"
    return f"{hint}Known: {_listed(known)}"


def _listed(names: Sequence[str]) -> str:
    """Names up to LISTED characters, and how many more there are."""
    told, left = [], LISTED
    for name in names:
        left -= len(name) + 2
        if left < 0:
            return ", ".join([*told, f"and {len(names) - len(told)} more"])
        told.append(name)
    return ", ".join(told)


def _meant(name: str, known: Sequence[str]) -> list[str]:
    """Known names of which `name` is a misspelling, the nearest first; else the only one that it abbreviates."""
    folded, name = {each.casefold(): each for each in known}, name.casefold()
    ratios = {each: difflib.SequenceMatcher(None, each, name).ratio() for each in _candidates(name, folded)}
    best = max(ratios.values(), default=0.0)
    alike = sorted(ratios, key=lambda each: -ratios[each])
    meant = [each for each in alike if ratios[each] >= best - CLOSE][:2] or _abbreviated(name, folded)
    return [folded[each] for each in meant]


def _candidates(name: str, known: Iterable[str]) -> list[str]:
    near_ones = difflib.get_close_matches(name, known, n=3, cutoff=NEAR)
    return near_ones or [each for each in known if _one_letter_apart(name, each)]


def _one_letter_apart(one: str, other: str) -> bool:
    """Whether a letter more, fewer or other makes one name of the other; short names have low ratios."""
    short, long = sorted((one, other), key=len)
    if not short or len(long) - len(short) > 1:
        return False
    same = next((place for place, pair in enumerate(zip(short, long, strict=False)) if pair[0] != pair[1]), len(short))
    return short[same + (len(short) == len(long)) :] == long[same + 1 :]


def _abbreviated(name: str, known: Iterable[str]) -> list[str]:
    """The one name that has the letters of `name` in their order, first and last ones alike, such as bfloat16 bf16."""
    found = []
    for each in known:
        letters = iter(each)
        if (
            len(name) > 3
            and name not in each
            and each[:1] + each[-1:] == name[0] + name[-1]
            and all(letter in letters for letter in name)
        ):
            found.append(each)
    return found if len(found) == 1 else []


class NeuroAdaError(Exception):
    """Base of every error that this library raises on purpose."""

    def __init__(self, asked: str, found: str, do: str):
        """Join the three parts into one message; each part is a phrase without a closing full stop."""
        self.asked, self.found, self.do = asked, found, do
        super().__init__(f"{asked}: {found}. {do}.")

    def __reduce__(self):
        return type(self), (self.asked, self.found, self.do)


class ConfigError(NeuroAdaError, ValueError):
    """A configuration or recipe value that cannot be meant."""


class TargetError(NeuroAdaError, NoMatchingPeftModuleError):
    """No module was matched, or a matched one is of a kind that cannot be adapted."""


class WeightError(NeuroAdaError, ValueError):
    """A base weight that cannot be adapted as asked: not finite, moved, trainable, changed in between."""


class MergeError(NeuroAdaError, RuntimeError):
    """A merge, unmerge or held state that contradicts the present one."""


class AdapterFileError(NeuroAdaError, ValueError):
    """An adapter file that is damaged, of another shape, or made for another base."""


class DivergedError(NeuroAdaError, ArithmeticError):
    """A training that left the finite numbers."""


class MissingInputError(NeuroAdaError, FileNotFoundError):
    """A model, text or package that was named and is not there."""


class RunFolderError(NeuroAdaError, OSError):
    """A run folder that exists already or cannot be written."""


class DamagedRunError(RunFolderError):
    """A complete run of which something is missing or cannot be read, or that is of another recipe."""
