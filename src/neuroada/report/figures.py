"""Records to SVG figures, drawn by matplotlib (the extra `neuroada[report]`)."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from neuroada.errors import MissingInputError
from neuroada.measure.record import Machine, Record
from neuroada.report.paper.figure5 import METHODS, MODELS, figure5_points
from neuroada.report.rows import Row
from neuroada.report.study_figure import draw_study, study_points

Data = Any


@dataclass(frozen=True)
class FigureKind:
    """data: what is drawn, as JSON can hold it. draw: onto a new matplotlib figure, which it returns."""

    caption: str
    data: Callable[[Sequence[Record]], Data]
    draw: Callable[[Any, Data], Any]


def _figure5_data(records: Sequence[Record]) -> Data:
    points, sources = figure5_points(records)
    devices = {group.newest.shape.name: _device(group.newest.machine) for group in sources}
    return {"points": [asdict(point) for point in points], "devices": devices}


def _device(machine: Machine) -> str:
    return f"CPU, {machine.threads} threads" if machine.device.startswith("cpu") else machine.device.split(" (")[0]


def _draw_figure5(pyplot: Any, data: Data) -> Any:
    """Bars for each model: peak memory above, samples a second below; what was not measured says so."""
    figure, panels = pyplot.subplots(2, 1, figsize=(8, 6.5), sharex=True)
    panes = (("memory", "peak memory, GiB", 2.0**30), ("samples_per_second", "samples per second", 1.0))
    width, colours = 0.8 / len(METHODS), ("#0072B2", "#E69F00", "#F0E442", "#999999")
    for panel, (key, title, unit) in zip(panels, panes, strict=True):
        for column, method in enumerate(METHODS):
            points = [point for point in data["points"] if point["method"] == method]
            values = [(point[key] or 0) / unit for point in points]
            places = [number + (column - (len(METHODS) - 1) / 2) * width for number in range(len(MODELS))]
            bars = panel.bar(places, values, width, label=Row(method, {}).label, color=colours[column])
            texts = [_bar_text(point, value) for point, value in zip(points, values, strict=True)]
            panel.bar_label(bars, texts, fontsize=7, padding=2, rotation=90)
        panel.set_ylabel(title)
        panel.margins(y=0.35)
        panel.spines[["top", "right"]].set_visible(False)
    devices = data["devices"]
    panels[1].set_xticks(range(len(MODELS)), [f"{model}\n{devices.get(model, '')}" for model in MODELS])
    panels[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def _bar_text(point: dict[str, Any], value: float) -> str:
    if value:
        return f"{value:.3g}"
    return point["failure"].split(":")[0] if point["failure"] else "not measured"


def _of_study(name: str, caption: str) -> FigureKind:
    return FigureKind(
        f"{caption}; mean and standard deviation over seeds", partial(study_points, name=name), draw_study
    )


FIGURES = {
    "figure5": FigureKind(
        "Training memory and speed of NeuroAda, mask-based tuning and full fine-tuning, batch 2 (the paper's Figure 5)",
        _figure5_data,
        _draw_figure5,
    ),
    "budget": _of_study("budget", "NeuroAda and mask-based tuning by share of trained weights (the paper's Figure 4)"),
    "coverage": _of_study("coverage", "NeuroAda by share of neurons that are trained (the paper's Figure 6)"),
    "strategies": _of_study("strategies", "Criteria by which inputs are chosen (the paper's Figure 7)"),
    "neat-depth": _of_study("neat-depth", "Layers of NEAT's network (Figure 2 of its paper)"),
}
"""What `<!-- figure:NAME -->` in a Markdown file can name."""


def digest_of(name: str, records: Sequence[Record]) -> str:
    """Of what a figure shows: two figures with the same one differ at most in how matplotlib draws."""
    return hashlib.sha256(json.dumps(FIGURES[name].data(records), sort_keys=True).encode()).hexdigest()


def digest_in(path: Path) -> str | None:
    """The digest in an SVG file that `save_figure` wrote; None without one."""
    if not path.exists():
        return None
    found = re.search(r"sha256:([0-9a-f]{64})", path.read_text(encoding="utf-8"))
    return found[1] if found else None


def save_figure(name: str, records: Sequence[Record], path: Path) -> None:
    """Draw a figure into an SVG file, the same bytes each time with one version of matplotlib.

    Raises:
        MissingInputError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingInputError(
            f"figure {name}", "package matplotlib is not installed", "pip install 'neuroada[report]'"
        ) from error
    matplotlib.use("svg")
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure = FIGURES[name].draw(pyplot, FIGURES[name].data(records))
        description = f"Drawn from records, sha256:{digest_of(name, records)}"
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        figure.savefig(beside, format="svg", metadata={"Date": None, "Description": description})
        pyplot.close(figure)
        os.replace(beside, path)
