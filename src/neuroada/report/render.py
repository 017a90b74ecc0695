"""Tables and figures in Markdown files, between markers, from records."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from neuroada.errors import ConfigError, near
from neuroada.measure.record import Record, read_records
from neuroada.report.figures import FIGURES, digest_in, digest_of, save_figure
from neuroada.report.tables import FILTERS, TABLES, matching

OPENING = re.compile(r"^<!-- (table|figure):(\S+)((?: \S+=\S+)*) -->$")
RESULTS = Path("benchmarks", "results")


def read_results(root: Path) -> list[Record]:
    """All records of benchmarks/results/*.jsonl, file by file."""
    return [record for path in sorted((root / RESULTS).glob("*.jsonl")) for record in read_records(path)]


def rendered(path: Path, records: Sequence[Record]) -> str:
    """A Markdown file's text with what stands between its markers made anew.

    `<!-- table:NAME key=value ... -->` to `<!-- /table -->` takes the table of that name from the records that match,
    `<!-- figure:NAME -->` to `<!-- /figure -->` a link to figures/NAME.svg beside the file.

    Raises:
        ConfigError: an unknown name or key, or a marker that is not closed; the message names file and line.
    """
    lines, made, inside = path.read_text(encoding="utf-8").split("\n"), [], None
    for number, line in enumerate(lines, 1):
        opening = OPENING.match(line)
        if inside is not None:
            if line == f"<!-- /{inside[0]} -->":
                made += [line]
                inside = None
            elif opening:
                break
            continue
        made.append(line)
        if opening:
            inside = (opening[1], number)
            made += ["", _content(opening, records, f"{path}, line {number}"), ""]
    if inside is not None:
        asked, found = f"{path}, line {inside[1]}", f"the {inside[0]} that begins there does not end"
        raise ConfigError(asked, found, f"Put <!-- /{inside[0]} --> on a line of its own after it")
    return "\n".join(made)


def _content(opening: re.Match[str], records: Sequence[Record], where: str) -> str:
    kind, name = opening[1], opening[2]
    known = TABLES if kind == "table" else FIGURES
    if name not in known:
        raise ConfigError(where, f"no {kind} is called {name!r}", near(name, known))
    if kind == "figure":
        return f"![{FIGURES[name].caption}](figures/{name}.svg)"
    wanted = dict(pair.split("=", 1) for pair in opening[3].split())
    for key in wanted:
        if key not in FILTERS:
            raise ConfigError(where, f"records have no {key!r} to choose by", near(key, FILTERS))
    return TABLES[name](matching(records, wanted))


def render(root: Path, check: bool = False) -> list[Path]:
    """Render README.md and docs/*.md of a repository and the figures that they show; returns what changed.

    With `check` nothing is written, and what would change is returned.
    """
    records, changed = read_results(root), []
    for path in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        text = rendered(path, records)
        if text != path.read_text(encoding="utf-8"):
            changed.append(path)
            if not check:
                path.write_text(text, encoding="utf-8")
        for name in re.findall(r"^<!-- figure:(\S+) -->$", text, re.MULTILINE):
            figure = path.parent / "figures" / f"{name}.svg"
            if digest_in(figure) != digest_of(name, records):
                changed.append(figure)
                if not check:
                    save_figure(name, records, figure)
    return changed
