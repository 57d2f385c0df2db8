"""Statistics as text and as a figure: every kind of column is shown, with what it has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from stores import LOGICAL_DTYPES, STORED_DTYPES, random_array

from shardstore.plotting import draw_statistics
from shardstore.reports import short_number, sparkline, statistics_table, statistics_values
from shardstore.statistics.describing import (
    compute_categorical_statistics,
    compute_ragged_statistics,
    compute_statistics,
    compute_text_statistics,
)
from shardstore.statistics.summary import ColumnStatistics


def statistics_of(array: Any) -> ColumnStatistics:
    array = np.asarray(array)
    return compute_statistics(lambda: iter([array]), array.dtype, array.shape[1:])


def every_kind() -> dict[str, ColumnStatistics]:
    sizes, codes = np.array([2, 0, 3]), np.array([1, 1, 0, 5])
    return {
        **{name: statistics_of(random_array(name, (50, 2), 1)) for name in (*STORED_DTYPES, *LOGICAL_DTYPES)},
        "no rows": statistics_of(np.zeros(0)),
        "no numbers": statistics_of([np.nan] * 3),
        "constant": statistics_of([3.5] * 3),
        "far": statistics_of(1e9 + np.arange(40) * 1e-3),
        "dates": statistics_of(np.array(["2020-01-01", "2024-02-29"], "datetime64[ns]")),
        "[red]$a_1$": compute_categorical_statistics(lambda: iter([codes]), ["$x_", "[bold]"]),
        "many": compute_categorical_statistics(lambda: iter([np.arange(99)]), [f"name {n}" for n in range(99)]),
        "none": compute_categorical_statistics(lambda: iter([]), []),
        "tokens": compute_ragged_statistics(lambda: iter([sizes]), lambda: iter([np.arange(5)]), np.int64),
        "text": compute_text_statistics(lambda: iter([sizes])),
    }


def printed(statistics: dict[str, ColumnStatistics]) -> list[str]:
    console = Console(width=400, highlight=False)
    with console.capture() as capture:
        console.print(statistics_table(statistics))
    return capture.get().splitlines()


def test_every_kind_has_its_lines() -> None:
    found = every_kind()
    lines = printed(found)
    assert len(lines) == 1 + len(found) + 1
    names = [line.strip() for line in lines]
    for name in ("[red]$a_1$", "tokens (lengths)", "tokens (elements)", "text (bytes)", "no rows", "datetime64[25s]"):
        assert sum(line.startswith(name) for line in names) == 1


def line_of(name: str, found: ColumnStatistics) -> str:
    return printed({name: found})[1]


def test_lines_say_what_is_there() -> None:
    array = np.array([[1, np.nan], [3, np.inf]], np.float32)
    assert line_of("x", statistics_of(array)).split() == [
        "x",
        "float32[2]",
        *["4", "1", "1", "1", "2", "1", "3"],
        "█",
        "█",
    ]
    line = line_of("d", statistics_of(np.array(["2020-01-01", "2020-01-03"], "datetime64[s]")))
    assert line.split()[3:8] == ["2020-01-01", "2020-01-02", "86400", "s", "2020-01-03"]
    assert "magnitudes" in line_of("z", statistics_of([1 + 1j]))
    codes = np.array([0, 0, 0, 1, -1])
    line = line_of("c", compute_categorical_statistics(lambda: iter([codes]), ["a", "b"]))
    assert line.split() == ["c", "int64", "5", "1", "█▃", "a", "75%,", "b", "25%"]
    near = line_of("n", statistics_of([1e9, 1e9 + 1e-3])).split()
    assert near[3] != near[6]


@given(st.lists(st.integers(0, 10**12), max_size=40))
def test_sparklines_are_as_high_as_their_counts(counts: list[int]) -> None:
    line = sparkline(np.array(counts, np.int64))
    assert len(line) == len(counts)
    heights = [" ▁▂▃▄▅▆▇█".index(block) for block in line]
    for count, height in zip(counts, heights, strict=True):
        assert (height == 0) == (count == 0)
        assert (height - 1) * max(counts) < count * 8 <= height * max(counts) or count == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (0, "0"),
        (1234567, "1,234,567"),
        (-(2**63), "-9.2234e+18"),
        (0.5, "0.5"),
        (-0.0, "-0"),
        (1e-9, "1e-09"),
    ],
)
def test_numbers_are_short(value: int | float | None, text: str) -> None:
    assert short_number(value) == text


def test_programs_get_plain_numbers() -> None:
    found = every_kind()
    values = json.loads(json.dumps(statistics_values(found), allow_nan=False))
    assert list(values) == list(found)
    assert values["constant"]["mean"] == 3.5
    assert values["int64"]["minimum"] == found["int64"].minimum
    assert values["[red]$a_1$"]["categories"] == {"$x_": 1, "[bold]": 2}
    assert values["tokens"]["lengths"]["maximum"] == 3
    assert sum(values["float32"]["histogram"]["counts"]) == 100 - found["float32"].nans - found["float32"].infinities


def test_every_kind_is_drawn(tmp_path: Path) -> None:
    draw_statistics(every_kind(), tmp_path / "all.png")
    image = matplotlib.image.imread(tmp_path / "all.png")
    assert image.shape[0] > 1000
    assert image.shape[1] > 1000


@pytest.mark.parametrize(("columns", "down"), [(0, 1), (1, 1), (2, 1), (7, 3), (61, 10)])
def test_figures_are_as_large_as_their_columns_need(tmp_path: Path, columns: int, down: int) -> None:
    found = statistics_of(np.arange(3))
    draw_statistics({f"c{n}": found for n in range(columns)}, tmp_path / "figure.png")
    height = matplotlib.image.imread(tmp_path / "figure.png").shape[0]
    assert height == pytest.approx((2.5 * down + 0.5) * 110, abs=1)
