"""The tiny shape, known by name."""

import pytest

from neuroada.measure import shapes

from .tiny import TINY


@pytest.fixture(autouse=True)
def _tiny_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
