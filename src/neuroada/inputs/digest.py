"""A digest of the samples that a training sees, by which a resumed one knows that they are the same."""

from __future__ import annotations

import hashlib

from datasets import Dataset

from neuroada.tasks.images.pixels import ImageRows

ROWS = 1_000
"""Rows that are hashed at a time; a choice."""


def digest_of(*parts: Dataset | ImageRows) -> str:
    """Of the values of encoded samples; of pictures, which are read when they are used, of their places and classes."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, ImageRows):
            found.update("\n".join(f"{each.place}\t{each.label}" for each in part.pictures).encode())
        else:
            for batch in part.with_format(None).iter(ROWS):
                found.update(repr(batch).encode())
        found.update(b"|")
    return found.hexdigest()
