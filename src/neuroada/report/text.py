"""Numbers as tables show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from neuroada.measure.record import Measurement

NOT_MEASURED = "Not measured."
NONE = "—"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table: the first column to the left, numbers to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def seconds_text(value: float | None) -> str:
    """Three digits, or whole seconds, in the unit that fits."""
    if value is None:
        return NONE
    if value >= 100:
        return f"{value:,.0f} s"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} µs"


def ratio_text(found: Measurement | None, spread: bool = False) -> str:
    """A median of ratios, with the 20th and 80th percentile if asked for."""
    if found is None:
        return NONE
    return f"{found.p50:.2f}" + (f" [{found.p20:.2f}–{found.p80:.2f}]" if spread else "")


def mebibytes(value: float | None, sign: bool = False) -> str:
    """Bytes in MiB, or GiB from 10 GiB on."""
    if value is None:
        return NONE
    unit, size = ("GiB", 2**30) if abs(value) >= 10 * 2**30 else ("MiB", 2**20)
    digits = 1 if unit == "GiB" or abs(value) < 10 * size else 0
    return f"{value / size:{'+' if sign else ''},.{digits}f} {unit}"
