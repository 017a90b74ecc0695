"""What a run prints: the header, with what was chosen and why, and the closing table."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_pairs(console: Console, title: str, pairs: Iterable[tuple[str, str | None]]) -> None:
    """A titled table of two columns without lines; rows without a value are left out."""
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        if value is not None:
            table.add_row(name, Text(value))
    console.print(f"\n[bold]{title}[/]")
    console.print(table)


def closing_pairs(summary: dict[str, Any]) -> list[tuple[str, str | None]]:
    """The closing table of a run, from its summary."""
    return [
        ("trained", share_text(summary["trainable_parameters"], summary["parameters"])),
        ("change their weight", _surviving_text(summary)),
        ("steps", f"{summary['steps']:,}"),
        ("speed", _speed_text(summary)),
        ("peak memory", f"{bytes_text(summary['peak_memory_bytes'])} ({summary['peak_memory_of']})"),
        ("held-out loss", _change_text(summary, "loss", ".4f")),
        _held_out_pair(summary),
        *_score_pairs(summary["scores_before"], summary["scores_after"]),
        ("saved", bytes_text(summary["adapter_bytes"])),
        ("merged equals adapted", _merge_text(summary["merge"])),
        ("run folder", summary["run_folder"]),
        ("time", f"{summary['seconds']:.0f} s"),
    ]


def share_text(part: int, whole: int) -> str:
    """A count with its share of all parameters."""
    return f"{part:,} ({part / whole:.3%} of {whole:,} parameters)"


def bytes_text(count: int) -> str:
    """Bytes in the decimal unit that fits."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def difference_text(merge: dict[str, Any]) -> str:
    """How the outputs of a merged model differ from the adapted one's."""
    share = f"{merge['differing']:,} of {merge['logits']:,} logits of a held-out batch differ"
    return f"{share}, by up to {merge['largest']:.3g}"


def _score_pairs(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[tuple[str, str | None]]:
    earlier = {score["name"]: score_text(score) for score in before}
    return [(f"{score['name']}, {score['metric']}", _score_line(score, earlier.get(score["name"]))) for score in after]


def _score_line(score: dict[str, Any], earlier: str | None) -> str:
    before = "" if earlier is None else f"{earlier} before, "
    return f"{before}{score_text(score)} after, {score['count']:,} records{remarks_text(score)}"


def score_text(score: dict[str, Any]) -> str:
    """A value with its 95 % interval."""
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def remarks_text(score: dict[str, Any]) -> str:
    """What must be said beside a score: what guessing would reach, and its note."""
    majority = score.get("majority")
    guess = "" if majority is None else f"; always the most frequent answer: {majority:.3f}"
    return guess + (f"; {score['note']}" if score["note"] else "")


def _merge_text(merge: dict[str, Any] | None) -> str | None:
    if merge is None:
        return None
    if merge["equal"]:
        return f"yes, bit for bit ({merge['logits']:,} logits of a held-out batch)"
    return f"not bit for bit: {difference_text(merge)}"


def _held_out_pair(summary: dict[str, Any]) -> tuple[str, str]:
    """The score where the task has one, or else what the loss says."""
    if "held_out_score_after" in summary:
        return "held-out score", _change_text(summary, "score", ".3f")
    return "held-out perplexity", _change_text(summary, "loss", ".2f", perplexity)


def _change_text(
    summary: dict[str, Any], name: str, digits: str, scale: Callable[[float], float] = lambda value: value
) -> str:
    """A held-out value before training, if it was taken then, and after it."""
    found = {when: summary.get(f"held_out_{name}_{when}") for when in ("before", "after")}
    return ", ".join(f"{scale(value):{digits}} {when}" for when, value in found.items() if value is not None)


def _speed_text(summary: dict[str, Any]) -> str:
    samples, tokens = summary["samples_per_second"], summary["tokens_per_second"]
    if samples is None:
        return "unknown: every step was done before"
    return f"{samples:,.1f} samples/s" if tokens is None else f"{tokens:,.0f} tokens/s"


def _surviving_text(summary: dict[str, Any]) -> str | None:
    count = summary["surviving_deltas"]
    if count is None:
        return None
    deltas = summary.get("deltas") or summary["trainable_parameters"]  # runs of before it was recorded
    text = f"{count:,} deltas ({count / deltas:.1%}), after rounding to the weight's dtype"
    return text if count else f"{text}: the merged model is the base; train for more steps or at a larger rate"
