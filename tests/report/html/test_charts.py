"""Figures: what is drawn lies inside them, in the right place."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroada.report.html.charts import (
    BINS,
    BOTTOM,
    LEFT,
    MOST_POINTS,
    RIGHT,
    TOP,
    Scale,
    Series,
    heat_map,
    histogram,
    intervals,
    line_chart,
    round_values,
    thinned,
)


def numbers(path: str) -> list[float]:
    return [float(found) for found in re.findall(r"-?[\d.]+(?:e-?\d+)?", path)]


def inside(value: float, low: float, high: float) -> bool:
    return low - 0.2 <= value <= high + 0.2


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(), min_size=1, max_size=300))
def test_any_values_give_a_drawing_inside_its_frame(values):
    chart = line_chart("loss", "step", [Series("run", 0, list(enumerate(values)))])
    if sum(abs(value) < 1e100 for value in values) < 2:
        assert chart is None
        return
    assert not re.search("nan|inf", chart.lines[0].path)
    places = numbers(chart.lines[0].path)
    assert all(inside(x, LEFT, RIGHT) for x in places[::2])
    assert all(inside(y, TOP, BOTTOM) for y in places[1::2])
    assert all(inside(y, TOP, BOTTOM) for y, _ in chart.y_ticks)
    assert all(inside(x, LEFT, RIGHT) for x, _ in chart.x_ticks)


def test_values_that_are_not_finite_leave_gaps_and_are_told():
    chart = line_chart("loss", "step", [Series("run", 3, [(0, 1.0), (1, 0.5), (2, math.nan), (3, 0.25), (4, 0.2)])])
    assert chart.lines[0].path.count("M") == 2
    assert len(chart.lines[0].dots) == 4
    assert chart.note == "1 values are not finite and are left out"
    assert chart.lines[0].colour == 3


def test_higher_values_are_higher_up():
    chart = line_chart("loss", "step", [Series("run", 0, [(0, 1.0), (10, 3.0)])])
    (x0, y0), (x1, y1) = (dot[:2] for dot in chart.lines[0].dots)
    assert (x0, x1) == (LEFT, RIGHT)
    assert y1 < y0
    assert chart.lines[0].dots[1][2] == "run, 10: 3"


def test_long_lines_become_means_of_neighbours():
    points = [(float(n), 2.0 * n) for n in range(10 * MOST_POINTS)]
    thin = thinned(points)
    assert len(thin) == MOST_POINTS
    assert thin[0] == (4.5, 9.0)
    assert thinned(points[:MOST_POINTS]) == points[:MOST_POINTS]
    chart = line_chart("loss", "step", [Series("run", 0, points)])
    assert chart.note == "each point is the mean of up to 10 records"
    assert chart.lines[0].dots == []


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e50, 1e50), st.floats(1e-9, 1e50), st.integers(2, 6))
def test_ticks_are_few_round_and_in_range(low, width, most):
    high = low + width
    if not high - low > 1e-6 * abs(low):
        return
    values = round_values(low, high, most)
    assert len(values) <= most + 1
    assert values or most < 4
    assert all(low - 1e-6 * width <= value <= high + 1e-6 * width for value in values)


def test_ticks_as_a_person_would_choose():
    assert [text for _, text in Scale(0, 12, 0, 1).ticks(5)] == ["0", "5", "10"]
    assert [text for _, text in Scale(0.0003, 0.001, 0, 1).ticks(5)] == ["0.0004", "0.0006", "0.0008", "0.001"]
    assert [text for _, text in Scale(0, 50_000, 0, 1).ticks(5)] == [
        "0",
        "10,000",
        "20,000",
        "30,000",
        "40,000",
        "50,000",
    ]


def test_a_histogram_counts_every_value_but_zeros():
    values = np.array([0.0, 1e-4, 1e-4, 1e-3, 1e-12], np.float32)
    chart = histogram("sizes", "|delta|", [("run", 0, values)])
    top = Scale(0.0, 1.05 * 40, BOTTOM, TOP)
    heights = [float(y) for y in re.findall(r"V([\d.]+)", chart.lines[0].path)]
    assert len(heights) == BINS + 1
    assert sorted(heights)[:3] == [top(40.0), top(20.0), top(20.0)]
    assert heights[0] == top(20.0)
    assert chart.note == "smaller ones count into the first bin"
    assert [text for _, text in chart.x_ticks][-2:] == ["0.0001", "0.001"]


@pytest.mark.parametrize("values", [np.zeros(3), np.array([]), np.array([math.nan, math.inf])])
def test_nothing_positive_is_no_histogram(values):
    assert histogram("sizes", "x", [("run", 0, values.astype(np.float32))]) is None


def test_equal_sizes_are_one_bar():
    chart = histogram("sizes", "x", [("run", 0, np.full(5, 0.5, np.float32))])
    assert Scale(0.0, 105.0, BOTTOM, TOP)(100.0) in numbers(chart.lines[0].path)


def test_a_heat_map_has_its_layers_and_projections_in_order():
    values = {(10, "b"): 1.0, (2, "a"): 2.0, (2, "b"): math.nan, (None, "a"): 4.0}
    found = heat_map("rms", values, {"b": "q_proj", "a": "v_proj"}, ends=(0.0, 4.0))
    cells = {cell.title: cell for cell in found.cells}
    assert [text for _, text in found.rows] == ["2", "10", "–"]
    assert [text for _, text in found.columns] == ["q_proj", "v_proj"]
    assert cells["layer 10, q_proj: 1"].strength == 0.25
    assert cells["outside blocks, v_proj: 4"].strength == 1.0
    assert cells["layer 2, q_proj: nan"].strength == 0.0
    assert cells["layer 2, v_proj: 2"].y < cells["layer 10, q_proj: 1"].y < cells["outside blocks, v_proj: 4"].y
    assert cells["layer 10, q_proj: 1"].x < cells["layer 2, v_proj: 2"].x
    assert all(cell.x + found.cell_width <= RIGHT + 1 for cell in found.cells)
    assert found.ends == ("0", "4")
    equal = heat_map("rms", {(0, "a"): 3.0}, {"a": "a"}, ends=(3.0, 3.0))
    assert equal.cells[0].strength == 1.0
    assert heat_map("rms", {}, {}, ends=(0.0, 1.0)) is None


def test_intervals_lie_around_their_score():
    marks = [("before", 0, False, 40.0, 30.0, 50.0), ("after", 0, True, math.nan, 0.0, 0.0)]
    found = intervals("scores", [("boolq", marks), ("piqa", [("x", 1, True, 60.0, 55.0, 70.0)])])
    assert [mark.title for mark in found.marks] == ["before", "x"]
    assert all(mark.low < mark.x < mark.high for mark in found.marks)
    assert found.marks[0].y < found.marks[1].y < found.height
    assert [text for _, text in found.rows] == ["boolq", "piqa"]
