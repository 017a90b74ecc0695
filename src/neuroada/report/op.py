"""Tables of single layers: what methods cost on each, and our own parts by each way of computing them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from neuroada.measure.record import Record
from neuroada.report.rows import Group, Key, Row, grouped, machine_text, same_setting, source_text
from neuroada.report.text import NONE, NOT_MEASURED, markdown, mebibytes, ratio_text, seconds_text

PARTS = ("gemm", "copy", "gradient", "swap")
"""Rows of `measure/product.py`; the others are methods."""


def op_table(records: Sequence[Record]) -> str:
    """Methods on each layer size: time to the frozen layer, and counts over all layers of the model."""
    return _by_model([record for record in records if record.kind == "op" and record.method not in PARTS], _methods)


def product_table(records: Sequence[Record]) -> str:
    """The deltas' gradient and the swap on each layer size, against a plain GEMM and the memory's bandwidth."""
    return _by_model([record for record in records if record.kind == "op" and record.method in PARTS], _products)


def _by_model(records: list[Record], table: Callable[[list[Group]], str]) -> str:
    models: dict[Key, list[Group]] = {}
    for group in grouped(records):
        kind, name, _sizes, *rest = same_setting(group.newest)
        models.setdefault((kind, name, *rest), []).append(group)
    return "\n\n".join(f"{_heading(groups)}\n\n{table(groups)}" for groups in models.values()) or NOT_MEASURED


def _heading(groups: list[Group]) -> str:
    record = groups[-1].newest
    records = [record for group in groups for record in group.shown]
    rounds = max((found.n for each in records for found in each.measurements.values()), default=0)
    return (
        f"**Layers of {record.shape.name}**, {record.batch} × {record.sequence} tokens, {record.dtype}. "
        f"{machine_text(record.machine)}; medians of {rounds} rounds [20th–80th percentile]; {source_text(records)}."
    )


def _layer(group: Group) -> str:
    sizes, name = group.newest.shape.sizes, group.newest.notes.get("layer", "layer")
    return f"{name} [{sizes['out_features']}, {sizes['in_features']}]"


def _methods(groups: list[Group]) -> str:
    counts = [group.newest.shape.sizes["count"] for group in groups]
    areas = [group.newest.shape.sizes["out_features"] * group.newest.shape.sizes["in_features"] for group in groups]
    header = [*(f"{_layer(group)} × {count}" for group, count in zip(groups, counts, strict=True)), "all layers"]
    header += ["dense products", "saved of x", "saved beyond x"]
    lines: list[tuple[float, list[str]]] = []
    for label in dict.fromkeys(row.label for group in groups for row in group.rows):
        found = [next((row for row in group.rows if row.label == label), None) for group in groups]
        ratios = [ratio_text(row.measurements.get("ratio_to_frozen"), spread=True) if row else NONE for row in found]
        failures = [row.failure if row else None for row in found]
        whole = _weighted(found, "time", counts)
        limit = _weighted([group.find("frozen") for group in groups], "time", counts)
        products = _weighted(found, "dense_products", [count * area for count, area in zip(counts, areas, strict=True)])
        total = sum(count * area for count, area in zip(counts, areas, strict=True))
        overall = whole / limit if whole is not None and limit else None
        cells = [failure or ratio for failure, ratio in zip(failures, ratios, strict=True)]
        cells += [
            NONE if overall is None else f"{overall:.2f}",
            NONE if products is None else f"{products / total:.2f}",
        ]
        cells += [mebibytes(_weighted(found, name, counts)) for name in ("saved_x", "saved_beyond_x")]
        lines.append((float("inf") if overall is None else overall, [label, *cells]))
    lines.sort(key=lambda line: line[0])
    note = "Times over all layers are sums of medians, each layer as often as the model has it."
    return f"{markdown(['method', *header], [cells for _, cells in lines])}\n\n{note}"


def _weighted(rows: Sequence[Row | None], name: str, weights: Sequence[int]) -> float | None:
    values = [None if row is None else row.p50(name) for row in rows]
    if any(value is None for value in values):
        return None
    return sum(value * weight for value, weight in zip(values, weights, strict=True) if value is not None)


def _products(groups: list[Group]) -> str:
    columns = list(dict.fromkeys(_way(row) for group in groups for row in group.rows if "k" in row.settings))
    header = ["layer", "K", "GEMM", *columns]
    lines = []
    for group in groups:
        gemm = group.find("gemm")
        for k in dict.fromkeys(row.settings["k"] for row in group.rows if "k" in row.settings):
            of_k = {_way(row): row for row in group.rows if row.settings.get("k") == k}
            cells = [_part(of_k[column]) if column in of_k else NONE for column in columns]
            lines.append([_layer(group), str(k), seconds_text(gemm.p50("time") if gemm else None), *cells])
    note = (
        "GEMM is a plain dense product of the layer's size; the rest is relative to it, and in brackets the share of "
        "the memory's bandwidth, measured by a copy, that the bytes come to that have to be moved at least."
    )
    return f"{markdown(header, lines)}\n\n{note}"


def _way(row: Row) -> str:
    product = row.settings.get("product")
    backend = row.settings["backend"]
    return f"{row.method}, dense" if product == "dense" else f"{row.method}, {backend}"


def _part(row: Row) -> str:
    if row.failure is not None:
        return row.failure
    share = row.p50("share_of_bandwidth")
    return f"{ratio_text(row.measurements.get('ratio_to_gemm'))}" + ("" if share is None else f" ({share:.0%})")
