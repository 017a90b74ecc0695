"""JSON that every reader takes: numbers that are not finite are null."""

import json
import math
from typing import Any


def to_json(value: Any, **options: Any) -> str:
    """The text of a value of plain types; options: of json.dumps."""
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value
