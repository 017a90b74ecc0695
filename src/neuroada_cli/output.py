"""Output that never ends a run: letters that the terminal lacks are replaced, and writes that fail are given up."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class LenientStream:
    """A text stream in the place of another one; what cannot be written is left out."""

    def __init__(self, stream: TextIO) -> None:
        """stream: where to write, as long as it takes it."""
        self.stream, self.gone = stream, False

    def write(self, text: str) -> int:
        """All of the text, as far as the stream takes it."""
        if not self.gone:
            try:
                self.stream.write(text)
            except UnicodeEncodeError:
                encoding = getattr(self.stream, "encoding", None) or "ascii"
                self.stream.write(text.encode(encoding, "replace").decode(encoding))
            except OSError:
                self._give_up()
        return len(text)

    def flush(self) -> None:
        """As far as the stream can."""
        if not self.gone:
            try:
                self.stream.flush()
            except OSError:
                self._give_up()

    def _give_up(self) -> None:
        """Nothing is written any more, not even what Python flushes when it ends."""
        self.gone = True
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def lenient_output() -> Iterator[None]:
    """Standard output and standard error, lenient inside."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = LenientStream(streams[0]), LenientStream(streams[1])  # type: ignore[assignment]
    try:
        yield
    finally:
        for stream in sys.stdout, sys.stderr:
            stream.flush()
        sys.stdout, sys.stderr = streams
