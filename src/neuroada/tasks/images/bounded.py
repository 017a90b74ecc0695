"""A stream that gives so many bytes and no more."""

from __future__ import annotations

import io
from typing import BinaryIO


class Bounded(io.RawIOBase):
    """A stream that raises `error` where it would give more than `room` bytes."""

    def __init__(self, stream: BinaryIO, room: int, error: Exception):
        """Over `stream`, which is closed with it."""
        self.stream, self.room, self.error = stream, room, error

    def read(self, size: int = -1) -> bytes:
        """At most so many bytes."""
        data = self.stream.read(self.room + 1 if size < 0 else min(size, self.room + 1))
        self.room -= len(data)
        if self.room < 0:
            raise self.error
        return data

    def close(self) -> None:
        """The stream as well."""
        self.stream.close()
        super().close()
