"""Near names, for errors about unknown ones."""

import difflib
from collections.abc import Iterable


def near(name: str, known: Iterable[str]) -> str:
    """What to do about an unknown name: the nearest one if any is near, then all known ones."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(known)}"
