"""Statistics of columns, computed from blocks of rows: memory is bounded, whatever the number of rows.

A column's blocks are read twice, once for the range of its values and once for histogram, mean and spread: `blocks` is
a function that gives them anew each time, cut as it likes, and the same rows each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.ragged import Ragged, Values
from shardstore.schema import Field
from shardstore.statistics.histograms import MAX_BINS
from shardstore.statistics.moments import MAX_FEATURES, PIECE_ITEMS, Extent, Items, Moments
from shardstore.statistics.summary import (
    BYTES,
    CATEGORICAL,
    COMPLEX,
    DEFAULT_BINS,
    NUMERIC,
    RAGGED,
    TEXT,
    TIME,
    ColumnStatistics,
    Histogram,
)

Blocks = Callable[[], Iterator[NDArray[Any]]]


def compute_statistics(
    blocks: Blocks, dtype: np.dtype[Any] | type | str, row_shape: Sequence[int] = (), bins: int = DEFAULT_BINS
) -> ColumnStatistics:
    """Compute the statistics of a column whose rows all have one shape.

    Args:
        blocks: gives all rows in blocks of `(n, *row_shape)`, each time it is called.
        dtype: the column's dtype.
        row_shape: the shape of one row.
        bins: how many bins the histogram has at most, 1 to 4,096.

    Raises:
        ValueError: if blocks have another dtype or shape, or another number of rows the second time.
        TypeError: if no number can be made of the dtype.
    """
    if not 1 <= bins <= MAX_BINS:
        raise ValueError(f"a histogram has 1 to {MAX_BINS:,} bins, not {bins}")
    items = Items(np.dtype(dtype), tuple(int(n) for n in row_shape))
    kind = _kind(items.dtype)
    if kind == BYTES:
        rows = sum(len(block) for block in blocks())
        return ColumnStatistics(BYTES, str(items.dtype), items.row_shape, rows, rows * prod(items.row_shape))
    extent = Extent(items)
    for block in blocks():
        extent.add(block)
    counted = ColumnStatistics(
        kind=kind,
        dtype=str(items.dtype),
        row_shape=items.row_shape,
        count=extent.rows,
        values=extent.rows * prod(items.row_shape),
        nans=extent.nans,
        infinities=extent.infinities,
    )
    if not extent.finite:
        return counted
    moments = Moments(extent, bins)
    for block in blocks():
        moments.add(block)
    if moments.rows != extent.rows:
        raise ValueError(f"the blocks had {extent.rows:,} rows when first read, and {moments.rows:,} the second time")
    return _completed(counted, extent, moments)


def compute_categorical_statistics(
    blocks: Blocks, categories: Sequence[str], dtype: np.dtype[Any] | type | str = np.int64
) -> ColumnStatistics:
    """Count the rows of each category.

    Args:
        blocks: gives all rows as integer codes `(n, ...)`; read once. Codes of no category count as NaNs.
        categories: the names of codes 0, 1, ….
        dtype: the codes' dtype, for the record.
    """
    counts = np.zeros(len(categories), np.int64)
    rows = values = 0
    row_shape: tuple[int, ...] = ()
    for block in blocks():
        rows += len(block)
        values += block.size
        row_shape = block.shape[1:]
        flat = block.reshape(-1)
        step = max(PIECE_ITEMS, len(categories))
        for start in range(0, len(flat), step):
            codes = flat[start : start + step]
            known = codes[(codes >= 0) & (codes < len(categories))]
            counts += np.bincount(known.astype(np.intp), minlength=len(categories))
    return ColumnStatistics(
        kind=CATEGORICAL,
        dtype=str(np.dtype(dtype)),
        row_shape=row_shape,
        count=rows,
        values=values,
        nans=values - int(counts.sum()),
        categories=tuple(categories),
        category_counts=counts,
    )


def compute_ragged_statistics(
    lengths: Blocks,
    elements: Blocks,
    dtype: np.dtype[Any] | type | str,
    bins: int = DEFAULT_BINS,
    item_shape: Sequence[int] = (),
) -> ColumnStatistics:
    """Compute the statistics of a column whose rows have different lengths: of the lengths, and of what the rows hold.

    Args:
        lengths: gives the lengths of all rows in int64 blocks `(n,)`, each time it is called.
        elements: gives what the rows hold, one row behind the other, in blocks `(m, *item_shape)`, each time it is
            called.
        dtype: the elements' dtype.
        bins: how many bins each histogram has at most.
        item_shape: the shape of one element.

    Raises:
        ValueError: as `compute_statistics`, and if the lengths do not add up to the number of elements.
    """
    found = compute_statistics(elements, dtype, item_shape, bins)
    column = replace(compute_text_statistics(lengths, bins), kind=RAGGED, dtype=found.dtype, elements=found)
    if column.values != found.count:
        raise ValueError(f"the lengths add up to {column.values:,}, but there are {found.count:,} elements")
    return replace(column, nans=found.nans, infinities=found.infinities)


def compute_text_statistics(lengths: Blocks, bins: int = DEFAULT_BINS) -> ColumnStatistics:
    """Compute the statistics of a column of texts: of their lengths, in bytes.

    Args:
        lengths: gives the lengths of all rows in int64 blocks `(n,)`, each time it is called.
        bins: how many bins the histogram has at most.
    """
    total = 0

    def counted() -> Iterator[NDArray[Any]]:
        nonlocal total
        total = 0
        for block in lengths():
            total += int(block.sum())
            yield block

    found = compute_statistics(counted, np.int64, bins=bins)
    return ColumnStatistics(TEXT, "str", (), count=found.count, values=total, lengths=found)


def compute_column_statistics(
    field: Field, blocks: Callable[[], Iterator[Values]], lengths: Blocks, bins: int = DEFAULT_BINS
) -> ColumnStatistics:
    """Compute the statistics of a column of any kind.

    Args:
        field: what a row holds.
        blocks: gives all rows in blocks, each time it is called.
        lengths: of a ragged column, gives the lengths of all rows in int64 blocks `(n,)`, each time it is called; not
            called for others.
        bins: how many bins each histogram has at most.
    """

    def fixed() -> Iterator[NDArray[Any]]:
        return (block.values if isinstance(block, Ragged) else block for block in blocks())

    if field.kind == "categorical":
        return compute_categorical_statistics(fixed, field.categories, field.dtype)
    if field.kind in ("utf8", "binary"):
        return compute_text_statistics(lengths, bins)
    if field.kind == "ragged":
        return compute_ragged_statistics(lengths, fixed, field.dtype, bins, field.row_shape)
    return compute_statistics(fixed, field.dtype, field.row_shape, bins)


def _kind(dtype: np.dtype[Any]) -> str:
    if dtype.kind in "biuf":
        return NUMERIC
    by_kind = {"c": COMPLEX, "m": TIME, "M": TIME, "S": BYTES}
    if dtype.kind in by_kind:
        return by_kind[dtype.kind]
    # Floats of 8 and 16 bits that NumPy has from elsewhere, such as bfloat16.
    if dtype.kind == "V" and dtype.names is None and np.can_cast(dtype, np.float64):
        return NUMERIC
    raise TypeError(f"there are no statistics of dtype {dtype}")


def _completed(counted: ColumnStatistics, extent: Extent, moments: Moments) -> ColumnStatistics:
    low, high = extent.range()
    spread = moments.spread()
    # Magnitudes of each element are of no use to anyone; times are not normalised.
    each = counted.kind == NUMERIC and counted.row_shape != () and prod(counted.row_shape) <= MAX_FEATURES
    return replace(
        counted,
        minimum=low,
        maximum=high,
        mean=spread.mean,
        std=spread.std,
        feature_mean=_of_rows(spread.feature_mean, counted) if each else None,
        feature_std=_of_rows(spread.feature_std, counted) if each else None,
        histogram=Histogram(moments.bins.edges, moments.counts),
    )


def _of_rows(values: NDArray[np.float64], counted: ColumnStatistics) -> NDArray[np.float64]:
    return values.reshape(counted.row_shape)
