"""The page of all settings says what their own help says."""

from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from peft import PeftConfig

from neuroada import NeatConfig, NeuroAdaConfig
from neuroada.config.shared import AdapterConfig

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
NAMES_OF_PEFT = {field.name for field in fields(PeftConfig)}
SHARED = {field.name for field in fields(AdapterConfig)}


def row(field) -> str:
    default = field.default if field.default is not MISSING else field.default_factory()
    return f"| `{field.name}` | `{default!r}` | {field.metadata['help']} |"


@pytest.mark.parametrize("config", [NeuroAdaConfig, NeatConfig])
def test_the_page_has_a_row_of_each_field_and_no_other(config):
    section = PAGE.read_text(encoding="utf-8").split(f"## {config.__name__}\n")[1].split("\n## ")[0]
    own = [field for field in fields(config) if field.name not in NAMES_OF_PEFT]
    own.sort(key=lambda field: field.name in SHARED)
    assert [line for line in section.split("\n") if line.startswith("| `")] == [row(field) for field in own]
