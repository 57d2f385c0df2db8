"""Indexing rules, against NumPy's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardstore.selection import Selection, normalize

counts = st.integers(0, 40)
bounds = st.none() | st.integers(-50, 50)
slices = st.builds(slice, bounds, bounds, st.none() | st.integers(-7, 7).filter(bool))


@st.composite
def indices(draw: st.DrawFn, count: int) -> Any:
    """Draw a slice, integers or a mask that is valid for `count` rows."""
    integers = st.lists(st.integers(-count, count - 1), max_size=20) if count else st.just([])
    masks = st.lists(st.booleans(), min_size=count, max_size=count).map(lambda m: np.array(m, bool))
    return draw(st.one_of(slices, integers, integers.map(lambda r: np.array(r, np.int32)), masks))


def model(array: np.ndarray, index: Any) -> np.ndarray:
    return array[np.array(index, np.int64)] if isinstance(index, list) else array[index]


@given(st.data(), counts)
def test_nested_selections_read_what_numpy_reads(data: st.DataObject, count: int) -> None:
    selection, expected = Selection.all(count), np.arange(count)
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(indices(len(expected)))
        selection = selection.pick(normalize(index, len(selection)))
        expected = model(expected, index)
        assert len(selection) == len(expected)
        assert selection.resolve(np.arange(len(expected))).tolist() == expected.tolist()
        assert [selection.row(i) for i in range(len(expected))] == expected.tolist()


def test_a_chain_of_slices_takes_no_memory_for_rows() -> None:
    selection = Selection.all(10**12)
    for index in (slice(1, None, 2), slice(None, None, -3), slice(5, -5)):
        selection = selection.pick(normalize(index, len(selection)))
    assert selection.rows is None
    assert selection.row(0) == range(10**12)[1::2][::-3][5:-5][0]


@given(counts, st.integers(-60, 60))
def test_single_rows(count: int, row: int) -> None:
    if -count <= row < count:
        assert normalize(row, count) == range(count)[row]
        assert normalize(np.int16(row), count) == range(count)[row]
    else:
        with pytest.raises(IndexError, match=f"row {row} is out of range for {count} rows"):
            normalize(row, count)


@given(counts, st.lists(st.integers(-60, 60), min_size=1))
def test_a_row_out_of_range_is_named(count: int, rows: list[int]) -> None:
    outside = [row for row in rows if not -count <= row < count]
    if outside:
        with pytest.raises(IndexError, match=r"row -?\d+ is out of range for \d+ rows") as caught:
            normalize(rows, count)
        assert any(f"row {row} " in str(caught.value) for row in outside)
    else:
        assert normalize(rows, count).tolist() == [range(count)[row] for row in rows]


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (1.0, TypeError, "float"),
        ([1.0, 2.0], TypeError, "float64"),
        (np.array([0.5]), TypeError, "float64"),
        (True, TypeError, "single boolean"),
        (np.True_, TypeError, "single boolean"),
        ([True, False], IndexError, "mask has 2 values for 5 rows"),
        (np.zeros(6, bool), IndexError, "mask has 6 values for 5 rows"),
        ((1, 2), TypeError, "tuple"),
        (None, TypeError, "NoneType"),
        (..., TypeError, "ellipsis"),
        ("a", TypeError, "str"),
        ([[1, 2]], TypeError, "one axis, found 2"),
        (np.array(["a"]), TypeError, "<U1"),
        (2**63, IndexError, "out of range"),
        (np.array([2**64 - 1], np.uint64), IndexError, "out of range"),
    ],
)
def test_what_is_no_index_is_refused(index: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        normalize(index, 5)


def test_empty_selections() -> None:
    for empty in ([], np.array([], np.int64), np.array([], np.uint8), slice(3, 3), range(0), np.zeros(5, bool)):
        assert len(Selection.all(5).pick(normalize(empty, 5))) == 0
    assert len(Selection.all(0).pick(normalize(np.zeros(0, bool), 0))) == 0
