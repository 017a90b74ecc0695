"""Every test here runs tiny models."""

from collections.abc import Iterator

import pytest

from specimens import one_thread


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield
