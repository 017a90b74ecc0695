"""Where the deltas sit: heat maps, histograms and numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neuroada.report.html.charts import Chart, HeatMap, heat_map, histogram
from neuroada.report.html.deltas import Deltas, Weight, columns
from neuroada.report.html.run import LABELS, Run
from neuroada.report.html.tables import Cell, Row, Table, share_text


@dataclass(frozen=True)
class DeltaView:
    """What is shown of one run's deltas, or why there is nothing."""

    run: Run
    colour: int
    sentences: list[str]
    maps: list[HeatMap]
    weights: Table | None


def delta_views(runs: Sequence[Run], found: Sequence[Deltas | None]) -> list[DeltaView]:
    """Heat maps, whose colours mean the same for all runs, and what there is to say."""
    grids = [[] if deltas is None else _grids(deltas) for deltas in found]
    every: dict[str, list[float]] = {}
    for title, values in (grid for each in grids for grid in each):
        every.setdefault(title, []).extend(value for value in values.values() if math.isfinite(value))
    ends = {title: (min(values, default=0.0), max(values, default=0.0)) for title, values in every.items()}
    views = []
    for number, (run, deltas, each) in enumerate(zip(runs, found, grids, strict=True)):
        if deltas is None:
            views.append(DeltaView(run, number, [_without_deltas(run)], [], None))
            continue
        labels = columns(deltas.weights)
        maps = [drawn for title, values in each if (drawn := heat_map(title, values, labels, ends[title])) is not None]
        views.append(DeltaView(run, number, _delta_sentences(run, deltas), maps, _weight_table(deltas)))
    return views


def _grids(deltas: Deltas) -> list[tuple[str, dict[tuple[int | None, str], float]]]:
    """Titles, and values by layer and projection, over all weights that share these."""
    together: dict[tuple[int | None, str], list[Weight]] = {}
    for weight in deltas.weights:
        together.setdefault((weight.layer, weight.projection), []).append(weight)
    rms = {key: _mean([w.rms**2 for w in found], [w.count for w in found]) ** 0.5 for key, found in together.items()}
    ratio = {
        key: _mean([w.ratio for w in found if w.ratio is not None], [w.count for w in found])
        for key, found in together.items()
        if all(w.ratio is not None for w in found)
    }
    grids = [("Size of deltas (root mean square)", rms), ("Median size relative to the weight", ratio)]
    return [(title, values) for title, values in grids if values]


def _mean(values: Sequence[float], counts: Sequence[int]) -> float:
    return float(np.average(values, weights=counts))


def _delta_sentences(run: Run, deltas: Deltas) -> list[str]:
    count, zeros = len(deltas.sizes), int(np.count_nonzero(deltas.sizes == 0))
    sentences = [
        f"{count:,} deltas in {len(deltas.weights):,} weights; root mean square {deltas.rms:.3g}, "
        f"largest {float(deltas.sizes.max()):.3g}, {zeros:,} exactly 0."
    ]
    surviving = None if run.summary is None else run.summary.surviving_deltas
    if surviving is not None:
        share = f"{surviving:,} ({share_text(surviving / count, 2)})"
        sentences.append(f"{share} change their weight after rounding to {run.dtype or 'its dtype'}.")
    if deltas.base:
        median = float(np.median(deltas.ratios)) if len(deltas.ratios) else 0.0
        sentences.append(
            f"Half of them are above {share_text(median, 1)} of their weight (base weights in {deltas.base})."
        )
    else:
        sentences.append("The base weights are not on this machine, so sizes relative to them are left out.")
    return sentences


def _without_deltas(run: Run) -> str:
    method = run.recipe["method"]
    if method == "neuroada":
        return "There is no adapter in the folder yet."
    return f"Left out for {LABELS.get(method, method)}: this is about the file in which NeuroAda names single weights."


def _weight_table(deltas: Deltas) -> Table:
    rows = []
    for weight in deltas.weights:
        layer = Cell("–") if weight.layer is None else Cell(str(weight.layer), sort=weight.layer)
        ratio = (
            []
            if not deltas.base
            else [Cell("–" if weight.ratio is None else share_text(weight.ratio, 1), "", weight.ratio)]
        )
        numbers = [Cell(f"{value:.3g}", sort=value) for value in (weight.rms, weight.largest)]
        rows.append(Row([Cell(weight.name), layer, Cell(f"{weight.count:,}", sort=weight.count), *numbers, *ratio]))
    header = [
        "weight",
        "layer",
        "deltas",
        "root mean square",
        "largest",
        *(["median, relative"] if deltas.base else []),
    ]
    return Table("Deltas of each weight", header, rows)


def size_charts(runs: Sequence[Run], found: Sequence[Deltas | None]) -> list[Chart]:
    """How large deltas are, absolutely and relative to their weights."""
    there = [(run.name, number, deltas) for number, (run, deltas) in enumerate(zip(runs, found, strict=True)) if deltas]
    charts = [
        histogram("Sizes of deltas", "|delta|", [(name, number, deltas.sizes) for name, number, deltas in there]),
        histogram(
            "Sizes relative to the weight",
            "|delta| / |weight|",
            [(name, number, deltas.ratios) for name, number, deltas in there if len(deltas.ratios)],
        ),
    ]
    return [chart for chart in charts if chart is not None]
