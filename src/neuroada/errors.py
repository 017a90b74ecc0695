"""One family of errors. Every message says what was asked, what was found, and what to do, near names included."""

import difflib
from collections.abc import Iterable

from peft.utils.error import NoMatchingPeftModuleError

MANY = 40
"""More names than these are not listed beside a near one."""


def near(name: str, known: Iterable[str]) -> str:
    """What to do about an unknown name: the nearest one in any case, if one is near, then all known ones, or how many
    they are."""
    known = list(dict.fromkeys(known))
    folded = {each.casefold(): each for each in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    hint = f"Did you mean {folded[close[0]]!r}? " if close else ""
    if hint and len(known) > MANY:
        return f"{hint}There are {len(known)} in all"
    return f"{hint}Known: {', '.join(known)}"


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
