"""Statistics as text: a table with a small histogram per column, and plain values for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table as TextTable

from shardstore.statistics.summary import BYTES, CATEGORICAL, COMPLEX, TEXT, TIME, ColumnStatistics

_BLOCKS = "▁▂▃▄▅▆▇█"
_MOST_CATEGORIES = 32
_NAMED_CATEGORIES = 3
_PER_SECOND = {"ms": 10**3, "us": 10**6, "ns": 10**9, "ps": 10**12, "fs": 10**15, "as": 10**18}


def statistics_table(statistics: Mapping[str, ColumnStatistics]) -> TextTable:
    """Return a table with one line per column, and one each for the lengths and the elements of ragged ones."""
    table = TextTable("column", "dtype", "values", "NaN", "inf", "min", "mean", "std", "max", "histogram", box=None)
    for column in table.columns[2:9]:
        column.justify, column.no_wrap = "right", True
    table.columns[-1].no_wrap = True
    for name, found in described(statistics):
        counts = (f"{found.values:,}", *(f"{n:,}" if n else "" for n in (found.nans, found.infinities)))
        numbers = map(escape, number_texts(found))
        table.add_row(escape(name), escape(_dtype(found)), *counts, *numbers, escape(_histogram_text(found)))
    return table


def statistics_values(statistics: Mapping[str, ColumnStatistics]) -> dict[str, Any]:
    """Return statistics as plain JSON values with floats as numbers, for programs; without those of each feature."""
    return {name: _plain(found) for name, found in statistics.items()}


def described(statistics: Mapping[str, ColumnStatistics]) -> Iterator[tuple[str, ColumnStatistics]]:
    """Yield a title and what to show below it: of ragged and text columns their lengths and elements."""
    for name, found in statistics.items():
        if found.lengths is None:
            yield name, found
        else:
            yield f"{name} ({'bytes' if found.kind == TEXT else 'lengths'})", found.lengths
        if found.elements is not None:
            yield f"{name} (elements)", found.elements


def number_texts(found: ColumnStatistics) -> tuple[str, str, str, str]:
    """Return minimum, mean, standard deviation and maximum as short texts; empty where there is none."""
    if found.kind == TIME:
        return _time_texts(found)
    ends = (found.minimum, found.maximum)
    # Ends that differ are shown so that they do.
    digits = next((n for n in (5, 9, 13) if short_number(ends[0], n) != short_number(ends[1], n)), 17)
    digits = 5 if ends[0] == ends[1] else digits
    low, mean, high = (short_number(value, digits) for value in (found.minimum, found.mean, found.maximum))
    return low, mean, short_number(found.std), high


def short_number(value: int | float | None, digits: int = 5) -> str:
    """Return a number as a short text: `1,234`, `0.5`, `-1.2346e+10`; empty for None."""
    if value is None:
        return ""
    if isinstance(value, int) and abs(value) < 10**12:
        return f"{value:,}"
    return f"{value:.{digits}g}"


def sparkline(counts: NDArray[np.int64]) -> str:
    """Return one block character per count, `(bins,)`: as high as its share of the greatest; a space for 0."""
    most = max(1, int(counts.max(initial=0)))
    return "".join(_BLOCKS[-(-int(n) * len(_BLOCKS) // most) - 1] if n else " " for n in counts)


def category_shares(found: ColumnStatistics, most: int) -> list[tuple[str, int]]:
    """Return the most frequent categories and their rows, the greatest first, equal ones by their codes."""
    if found.categories is None or found.category_counts is None:
        return []
    order = np.argsort(-found.category_counts, kind="stable")[:most]
    return [(found.categories[code], int(found.category_counts[code])) for code in order.tolist()]


def _dtype(found: ColumnStatistics) -> str:
    shape = "×".join(map(str, found.row_shape))
    magnitudes = " magnitudes" if found.kind == COMPLEX else ""
    return (f"{found.dtype}[{shape}]" if shape else found.dtype) + magnitudes


def _histogram_text(found: ColumnStatistics) -> str:
    if found.kind == CATEGORICAL and found.categories is not None:
        shares = category_shares(found, _MOST_CATEGORIES)
        known = max(1, found.values - found.nans)
        named = ", ".join(f"{name} {count / known:.0%}" for name, count in shares[:_NAMED_CATEGORIES])
        rest = ", …" if len(found.categories) > _NAMED_CATEGORIES else ""
        return f"{sparkline(np.array([count for _, count in shares], np.int64))} {named}{rest}"
    return "" if found.histogram is None else sparkline(found.histogram.counts)


def _time_texts(found: ColumnStatistics) -> tuple[str, str, str, str]:
    if found.minimum is None or found.maximum is None or found.mean is None or found.std is None:
        return "", "", "", ""
    dtype = np.dtype(found.dtype)
    unit, step = np.datetime_data(dtype)
    ticks = f" {'' if step == 1 else step}{unit}"
    std = short_number(found.std) + ticks
    if dtype.kind == "m":
        return f"{found.minimum:,}{ticks}", short_number(found.mean) + ticks, std, f"{found.maximum:,}{ticks}"
    # Fractions of a second are shown only where they matter.
    coarse = unit in _PER_SECOND and (found.maximum - found.minimum) * step > 1000 * _PER_SECOND[unit]
    return (
        _time_text(dtype, int(found.minimum), coarse),
        _time_text(dtype, round(found.mean), coarse),
        std,
        _time_text(dtype, int(found.maximum), coarse),
    )


def _time_text(dtype: np.dtype[Any], ticks: int, coarse: bool) -> str:
    # The mean of a column of one value may round to beyond it.
    value = np.array(min(max(ticks, -(2**63) + 1), 2**63 - 1), np.int64).view(dtype)
    if coarse:
        value = value.astype("datetime64[s]")
    try:
        return str(np.datetime_as_string(value)).replace("T", " ").removesuffix(" 00:00:00")
    except OverflowError:  # which NumPy does not write as a date
        return f"{ticks:,} × {np.datetime_data(dtype)[1]} {np.datetime_data(dtype)[0]}"


def _plain(found: ColumnStatistics) -> dict[str, Any]:
    body: dict[str, Any] = {
        "kind": found.kind,
        "dtype": found.dtype,
        "row_shape": list(found.row_shape),
        **{key: getattr(found, key) for key in ("count", "values", "nans", "infinities")},
    }
    if found.kind != BYTES:
        body |= {key: getattr(found, key) for key in ("minimum", "maximum", "mean", "std")}
    if found.histogram is not None:
        body["histogram"] = {"edges": found.histogram.edges.tolist(), "counts": found.histogram.counts.tolist()}
    if found.categories is not None and found.category_counts is not None:
        body["categories"] = dict(zip(found.categories, found.category_counts.tolist(), strict=True))
    for key in ("lengths", "elements"):
        if (part := getattr(found, key)) is not None:
            body[key] = _plain(part)
    return body
