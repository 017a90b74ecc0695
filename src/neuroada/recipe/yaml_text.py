"""YAML as recipes, studies and search spaces are written in it: each key once, numbers as they look, plain values."""

import re
from typing import Any

import yaml

from neuroada.errors import ConfigError
from neuroada.recipe.plain import MAX_DEPTH, require_plain, shortened

_BROKEN = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What PyYAML raises for texts that it cannot take: dates that are none, tags that do not fit their values."""


class _RefusedError(Exception):
    """found and do: of the error that it becomes."""

    def __init__(self, found: str, do: str) -> None:
        super().__init__(found)
        self.found, self.do = found, do


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 7e-4 as a string; here it is the number that it looks like. No key is given twice."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._place: list[str] = []

    def compose_node(self, parent: Any, index: Any) -> Any:
        if len(self._place) > MAX_DEPTH:
            raise _RefusedError(f"it is nested more than {MAX_DEPTH} levels deep", "Write it with fewer levels")
        self._place.append(str(getattr(index, "value", index)) if index is not None else "")
        try:
            return super().compose_node(parent, index)
        finally:
            self._place.pop()

    def compose_mapping_node(self, anchor: Any) -> Any:
        """The pairs as they are written: later, merged mappings lie among them."""
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            name, line = self.construct_object(key), key.start_mark.line + 1
            if name in lines:
                place = shortened(".".join([*filter(None, self._place), key.value]))
                found = f"the key {place!r} is given twice, on lines {lines[name]} and {line}"
                raise _RefusedError(found, "Keep one of them")
            lines[name] = line
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str, asked: str) -> Any:
    """The value that `text` says; `asked` is named in errors.

    Raises:
        ConfigError: no YAML, a key given twice, or values that no file here can mean.
    """
    asked = shortened(asked, 300)
    try:
        value = yaml.load(text, _Loader)
    except _RefusedError as refused:
        raise ConfigError(asked, refused.found, refused.do) from None
    except _BROKEN as error:
        raise ConfigError(asked, f"it is not valid YAML ({_said(error)})", "Correct the syntax") from None
    require_plain(value, asked)
    return value


def _said(error: Exception) -> str:
    """What is wrong, and where, in a line."""
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return where + shortened(str(getattr(error, "problem", None) or error), 200)
