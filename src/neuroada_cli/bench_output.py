"""What the bench commands print and keep."""

from pathlib import Path
from typing import Any


def open_console() -> Any:
    """Where results are printed."""
    from rich.console import Console

    return Console(highlight=False)


def required_shape(shape: str | None) -> str:
    """The shape, or a ConfigError if none is named."""
    from neuroada.errors import ConfigError
    from neuroada.measure.shapes import SHAPES

    if shape is None:
        raise ConfigError("a benchmark without --shape", "no model is named", f"Known: {', '.join(SHAPES)}")
    return shape


def method_names(text: str) -> tuple[str, ...]:
    """Of a list with commas, or all."""
    from neuroada.measure.benchmarks.methods import METHODS

    return tuple(METHODS) if text == "all" else tuple(name.strip() for name in text.split(",") if name.strip())


def print_known(console: Any) -> None:
    """Shapes and methods."""
    from neuroada.measure.benchmarks.methods import METHODS
    from neuroada.measure.shapes import SHAPES

    for shape in SHAPES.values():
        sizes = ", ".join(f"{name} {size:,}" for name, size in shape.described().sizes.items())
        console.print(f"{shape.name:<16}  {sizes}", soft_wrap=True)
    console.print(f"\nMethods: {', '.join(METHODS)}", soft_wrap=True)


def keep_records(console: Any, output: Path, records: Any) -> None:
    """Append them, and say so."""
    from neuroada.measure.record import append_records

    append_records(output, records)
    console.print(f"{len(records)} records appended to {output}", soft_wrap=True)


def print_table(console: Any, header: Any, rows: Any) -> None:
    """Numbers to the right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None)
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
