"""Statistics are those of plain NumPy and of exact fractions, however rows come in blocks; their JSON form is exact."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from fractions import Fraction
from math import inf, isqrt, ulp
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from stores import LOGICAL_DTYPES, STORED_DTYPES, random_array

from shardstore.errors import FormatError
from shardstore.statistics.describing import (
    compute_categorical_statistics,
    compute_ragged_statistics,
    compute_statistics,
    compute_text_statistics,
)
from shardstore.statistics.histograms import FloatBins, float_bins, integer_bins
from shardstore.statistics.moments import MAX_FEATURES, PIECE_ITEMS, Extent, Items, Moments
from shardstore.statistics.summary import ColumnStatistics

TIMES = tuple(name for name in LOGICAL_DTYPES if not name.startswith("S"))
NUMBERS = (*STORED_DTYPES, *TIMES)

dtypes = st.sampled_from(NUMBERS)
row_shapes = st.sampled_from([(), (1,), (3,), (2, 3), (0,), (80,)])
lengths = st.sampled_from([0, 1, 2, 5, 33])
seeds = st.integers(0, 2**32)
cut_lists = st.lists(st.integers(0, 33), max_size=4)


def in_blocks(array: NDArray[Any], cuts: list[int]) -> Callable[[], Iterator[NDArray[Any]]]:
    return lambda: iter(np.split(array, sorted(min(cut, len(array)) for cut in cuts)))


def statistics_of(array: NDArray[Any], cuts: list[int] | None = None, bins: int = 32) -> ColumnStatistics:
    return compute_statistics(in_blocks(array, cuts or []), array.dtype, array.shape[1:], bins)


def as_numbers(array: NDArray[Any]) -> list[int | float]:
    """Return what the statistics of an array are of, NaNs left out: exact Python numbers."""
    if array.dtype.kind in "mM":
        return array[~np.isnat(array)].view(np.int64).tolist()
    if array.dtype.kind == "c":
        with np.errstate(over="ignore", invalid="ignore"):
            return np.abs(array[~np.isnan(array)].astype(np.complex128)).tolist()
    if array.dtype.kind == "f":
        return array[~np.isnan(array)].astype(np.float64).tolist()
    return [int(value) for value in array.reshape(-1).tolist()]


def exact_moments(values: list[int | float]) -> tuple[float, float]:
    """Return mean and population standard deviation, each rounded once."""
    exact = [Fraction(value) for value in values]
    mean = sum(exact, Fraction(0)) / len(exact)
    variance = sum((value - mean) ** 2 for value in exact) / len(exact)
    if not variance:
        return float(mean), 0.0
    shift = 80 + max(0, variance.denominator.bit_length() - variance.numerator.bit_length())
    return float(mean), float(Fraction(isqrt((variance.numerator << 2 * shift) // variance.denominator), 1 << shift))


def assert_moments(mean: float, std: float, values: list[int | float], digits: float = 1e-12) -> None:
    """Assert that the mean is exact to the last bits of the values, and the deviation to `digits`."""
    true_mean, true_std = exact_moments(values)
    if true_std == 0:
        assert std == 0
    assert std == pytest.approx(true_std, rel=digits, abs=5e-324)
    allowed = Fraction(1e-12) * Fraction(true_std) + 2 * Fraction(ulp(true_mean))
    assert abs(Fraction(mean) - Fraction(true_mean)) <= allowed


@st.composite
def arrays(draw: st.DrawFn) -> NDArray[Any]:
    """Draw arrays of random bits, of few different values, or of bits with a part that repeats."""
    dtype, shape, seed = draw(dtypes), (draw(lengths), *draw(row_shapes)), draw(seeds)
    array = random_array(dtype, shape, seed)
    style = draw(st.sampled_from(["bits", "few", "constant"]))
    if style == "few":
        array = np.random.default_rng(seed).integers(0, 2 if dtype == "bool" else 7, shape).astype(dtype)
    elif style == "constant" and len(array):
        array[:] = array[0]
    return array


@given(arrays(), cut_lists)
def test_statistics_are_exact(array: NDArray[Any], cuts: list[int]) -> None:
    found = statistics_of(array, cuts)
    numbers = as_numbers(array)
    finite = [value for value in numbers if abs(value) != inf]
    assert (found.count, found.values, found.row_shape) == (len(array), array.size, array.shape[1:])
    assert (found.nans, found.infinities) == (array.size - len(numbers), len(numbers) - len(finite))
    if not finite:
        assert found.minimum is found.maximum is found.mean is found.std is found.histogram is None
        return
    assert found.minimum == min(finite)
    assert found.maximum == max(finite)
    assert type(found.minimum) is type(found.maximum) is (float if array.dtype.kind in "fc" else int)
    assert found.mean is not None
    assert found.std is not None
    assert_moments(found.mean, found.std, finite)
    assert_histogram(found, finite)


def assert_histogram(found: ColumnStatistics, finite: list[int | float]) -> None:
    assert found.histogram is not None
    edges, counts = found.histogram.edges.tolist(), found.histogram.counts.tolist()
    assert found.histogram.counts.dtype == np.int64
    assert 1 <= len(counts) == len(edges) - 1 <= 32
    assert edges == sorted(set(edges))
    assert counts[-1] == sum(edges[-2] <= value <= edges[-1] for value in finite)
    for low, high, count in zip(edges[:-2], edges[1:-1], counts[:-1], strict=True):
        assert count == sum(low <= value < high for value in finite)


@given(arrays(), cut_lists)
def test_features_are_those_of_each_element(array: NDArray[Any], cuts: list[int]) -> None:
    found = statistics_of(array, cuts)
    if found.kind != "numeric" or not found.row_shape or found.mean is None:
        assert found.feature_mean is found.feature_std is None
        return
    assert found.feature_mean is not None
    assert found.feature_std is not None
    assert found.feature_mean.shape == found.feature_std.shape == array.shape[1:]
    for place in np.ndindex(*array.shape[1:]):
        finite = [value for value in as_numbers(array[(slice(None), *place)]) if abs(value) != inf]
        mean, std = float(found.feature_mean[place]), float(found.feature_std[place])
        if finite:
            assert_moments(mean, std, finite)
        else:
            assert np.isnan([mean, std]).all()


@given(arrays(), cut_lists)
def test_blocks_do_not_matter(array: NDArray[Any], cuts: list[int]) -> None:
    whole, cut = statistics_of(array), statistics_of(array, cuts)
    for name in ("count", "values", "nans", "infinities", "minimum", "maximum"):
        assert getattr(whole, name) == getattr(cut, name)
    if whole.histogram is None or whole.mean is None:
        assert whole == cut
        return
    assert cut.histogram is not None
    assert cut.mean == pytest.approx(whole.mean, rel=1e-12, abs=1e-12 * (whole.std or 0))
    assert cut.std == pytest.approx(whole.std, rel=1e-12)
    assert cut.histogram.edges.tobytes() == whole.histogram.edges.tobytes()
    assert cut.histogram.counts.tobytes() == whole.histogram.counts.tobytes()


@given(st.sampled_from(["float32", "float64", "int16", "uint8"]), seeds, st.sampled_from([1, 2, 31, 32, 1000]))
def test_statistics_are_those_of_numpy(dtype: str, seed: int, bins: int) -> None:
    array = np.random.default_rng(seed).normal(50, 20, (100, 4)).clip(0, 200).astype(dtype)
    found = statistics_of(array, [13, 70], bins)
    wide = array.astype(np.float64)
    assert (found.minimum, found.maximum) == (array.min(), array.max())
    assert found.mean == pytest.approx(wide.mean(), rel=1e-12)
    assert found.std == pytest.approx(wide.std(), rel=1e-12)
    np.testing.assert_allclose(found.feature_mean, wide.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.feature_std, wide.std(axis=0), rtol=1e-12)
    assert found.histogram is not None
    if array.dtype.kind == "f":
        assert len(found.histogram.counts) == bins
        np.testing.assert_allclose(found.histogram.edges, np.histogram_bin_edges(wide, bins), rtol=1e-12, atol=1e-12)
    assert found.histogram.counts.tolist() == np.histogram(wide, found.histogram.edges)[0].tolist()


PIECES = [
    (0,),
    (PIECE_ITEMS - 1,),
    (PIECE_ITEMS,),
    (PIECE_ITEMS + 1,),
    (3 * PIECE_ITEMS, 2),
    (700, 300),
    (40, MAX_FEATURES),
    (40, MAX_FEATURES + 1),
    (3, PIECE_ITEMS + 5),
    (2, 3, 50_000),
]


@pytest.mark.parametrize("shape", PIECES, ids=str)
def test_blocks_of_more_than_a_piece(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(1).normal(5, 2, shape)
    array[..., ::7][array[..., ::7] > 6] = np.nan
    found = statistics_of(array, [1, 2, len(array) - 1])
    if not array.size:
        assert found.mean is None
        return
    assert found.nans == np.isnan(array).sum() > 0
    assert found.mean == pytest.approx(np.nanmean(array), rel=1e-13)
    assert found.std == pytest.approx(np.nanstd(array), rel=1e-12)
    assert (found.minimum, found.maximum) == (np.nanmin(array), np.nanmax(array))
    assert found.histogram is not None
    assert found.histogram.counts.tolist() == np.histogram(array[~np.isnan(array)], found.histogram.edges)[0].tolist()
    if 1 < array[0].size <= MAX_FEATURES:
        np.testing.assert_allclose(found.feature_mean, np.nanmean(array, axis=0), rtol=1e-12)
        np.testing.assert_allclose(found.feature_std, np.nanstd(array, axis=0), rtol=1e-10)
    else:
        assert found.feature_mean is None


@pytest.mark.parametrize("dtype", ["float32", "int64", "datetime64[ns]", "complex64"])
def test_blocks_in_any_memory_order(dtype: str) -> None:
    array = np.random.default_rng(2).integers(0, 99, (3000, 40)).astype(dtype)
    expected = statistics_of(array)
    assert statistics_of(np.asfortranarray(array)) == expected
    assert statistics_of(np.repeat(array, 2, axis=0)[::2]) == expected
    assert statistics_of(array[::-1], []).histogram is not None
    read_only = array.copy()
    read_only.flags.writeable = False
    assert statistics_of(read_only) == expected
    assert read_only.tobytes() == array.tobytes()


def test_far_from_zero_nothing_cancels() -> None:
    noise = np.random.default_rng(3).normal(0, 1e-3, 5000)
    for array in (1e9 + noise, -1e9 + noise, np.stack([1e9 + noise, 1e9 - noise], 1)):
        found = statistics_of(array, [17, 400])
        assert found.mean is not None
        assert found.std is not None
        assert_moments(found.mean, found.std, array.reshape(-1).tolist(), 1e-12)


@pytest.mark.parametrize("dtype", ["int64", "uint64", "datetime64[ns]"])
@pytest.mark.parametrize("base", [2**62, 2**63 - 50])
def test_large_integers_are_not_rounded(dtype: str, base: int) -> None:
    values = (base + np.random.default_rng(4).integers(0, 50, (2000, 2))).astype(np.int64)
    found = statistics_of(values.astype(dtype), [900])
    assert (found.minimum, found.maximum) == (values.min(), values.max())
    assert found.mean is not None
    assert found.std is not None
    assert_moments(found.mean, found.std, values.reshape(-1).tolist())
    assert_histogram(found, values.reshape(-1).tolist())


@pytest.mark.parametrize(
    "values",
    [
        np.array([-(2**63), 2**63 - 1]),
        np.array([-(2**63)] * 3 + [2**63 - 1]),
        np.array([0, 2**64 - 1], np.uint64),
        np.array([-1.7976931348623157e308, 1.7976931348623157e308]),
        np.array([1.7976931348623157e308] * 5),
        np.array([1e308, 1.5e308, 1.7e308]),
        np.array([5e-324, 1e-323, 2e-323]),
        np.array([1e-310, 1e308]),
        np.array([1e-200, 3e-200, 2e-200]),
        np.array([[1e-200, 1e300], [3e-200, 1.5e300]]),
        np.array([0.1] * 7),
        np.array([1.0, np.nextafter(1, 2), np.nextafter(1, 2)]),
        np.array([65504, -65504, 65504], np.float16),
        np.array([3.4e38] * 9 + [-3.4e38], np.float32),
    ],
    ids=lambda values: f"{values.dtype}-{values.flat[0]:.3g}",
)
@pytest.mark.parametrize("cuts", [[], [1]])
def test_extremes(values: NDArray[Any], cuts: list[int]) -> None:
    found = statistics_of(values, cuts)
    finite = values.reshape(-1).tolist()
    assert (found.minimum, found.maximum) == (min(finite), max(finite))
    assert found.mean is not None
    assert found.std is not None
    assert_moments(found.mean, found.std, finite)
    assert_histogram(found, finite)


def test_outliers_do_not_spoil_the_rest() -> None:
    array = np.concatenate([np.full(70_000, 0.25), [1e300], np.full(70_000, -0.25)])
    found = statistics_of(array, [65_000, 100_000])
    assert found.mean == pytest.approx(1e300 / len(array), rel=1e-12)
    assert found.std == pytest.approx(1e300 / len(array) ** 0.5 * (1 - 1 / len(array)) ** 0.5, rel=1e-12)
    wide = np.concatenate([np.zeros(70_000, np.int64), [2**63 - 1]])
    assert statistics_of(wide, [3]).std == pytest.approx((2**63 - 1) * (70_000**0.5) / 70_001, rel=1e-12)


@pytest.mark.parametrize("cut", [1, 70_000])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_first_blocks_may_be_unlike_the_rest(cut: int, sign: int) -> None:
    near = 2**62 + np.random.default_rng(10).integers(-3, 4, 70_000)
    array = np.concatenate([[-1], near] if cut == 1 else [near, [-1]]) * sign
    found = statistics_of(array, [cut])
    assert found.mean is not None
    assert found.std is not None
    assert_moments(found.mean, found.std, array.tolist())


@pytest.mark.parametrize("rows", [3, 10, 77, 4099])
def test_equal_values_have_exactly_no_deviation(rows: int) -> None:
    values = np.random.default_rng(rows).random(50)
    found = statistics_of(np.tile(values, (rows, 1)), [1])
    assert found.feature_mean is not None
    assert found.feature_std is not None
    assert found.feature_mean.tolist() == values.tolist()
    assert not found.feature_std.any()
    assert [statistics_of(np.full(rows, value)).std for value in values[:9]] == [0.0] * 9


def test_many_small_blocks_do_not_add_up_errors() -> None:
    array = np.tile([0.1, -0.1, 0.3], 1500)
    found = statistics_of(array, list(range(1, len(array))))
    mean, std = exact_moments(array.tolist())
    assert found.std == pytest.approx(std, rel=4e-16, abs=0)
    assert found.mean == pytest.approx(mean, rel=4e-16, abs=0)


def test_nans_infinities_and_nat_are_counted_and_left_out() -> None:
    found = statistics_of(np.array([np.nan, 1, np.inf, 3, -np.inf, np.nan]))
    assert (found.nans, found.infinities, found.mean, found.std) == (2, 2, 2.0, 1.0)
    assert (found.minimum, found.maximum) == (1.0, 3.0)
    times = statistics_of(np.array(["2020-01-01", "NaT", "2020-01-03"], "datetime64[D]"))
    assert (times.kind, times.dtype, times.nans, times.minimum, times.mean) == (
        "time",
        "datetime64[D]",
        1,
        18262,
        18263.0,
    )
    spectrum = statistics_of(np.array([3 + 4j, complex(np.nan, np.inf), complex(1, np.inf), 0]))
    assert (spectrum.kind, spectrum.nans, spectrum.infinities, spectrum.maximum) == ("complex", 1, 1, 5.0)
    nothing = statistics_of(np.full((4, 2), np.nan))
    assert (nothing.nans, nothing.minimum, nothing.histogram, nothing.feature_mean) == (8, None, None, None)


def test_bytes_are_counted() -> None:
    found = statistics_of(np.array([[b"a", b"bc"]] * 3), [1])
    assert (found.kind, found.dtype, found.count, found.values) == ("bytes", "|S2", 3, 6)


def test_small_floats_of_other_packages() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.arange(8).astype(ml_dtypes.bfloat16)
    found = statistics_of(array)
    assert (found.kind, found.dtype, found.maximum, found.mean) == ("numeric", "bfloat16", 7.0, 3.5)


@pytest.mark.parametrize("dtype", ["float64", "int64", "timedelta64[s]"])
def test_parts_merge_into_the_whole(dtype: str) -> None:
    array = np.random.default_rng(5).integers(-(10**12), 10**12, (999, 3)).astype(dtype)
    items = Items(array.dtype, (3,))
    parts = [array[:10], array[10:10], array[10:700], array[700:]]
    whole, merged = Extent(items), Extent(items)
    whole.add(array)
    for part in parts:
        extent = Extent(items)
        extent.add(part)
        merged.merge(extent)
    assert (merged.rows, merged.range()) == (whole.rows, whole.range())
    total, sums = Moments(whole, 20), Moments(merged, 20)
    total.add(array)
    for part in parts:
        moments = Moments(merged, 20)
        moments.add(part)
        sums.merge(moments)
    assert sums.rows == 999
    assert sums.counts.tolist() == total.counts.tolist()
    assert sums.spread().std == pytest.approx(total.spread().std, rel=1e-13)
    np.testing.assert_allclose(sums.spread().feature_mean, total.spread().feature_mean, rtol=1e-12)


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(1, 70),
    seeds,
)
@example(0.0, 5e-324, 32, 0)
@example(-1.7976931348623157e308, 1.7976931348623157e308, 32, 0)
@example(1.0, 1.0000000000000009, 32, 0)
@example(1e15, 1e15 + 40, 32, 0)
@example(0.0, 1e-300, 32, 0)
def test_values_on_edges_are_counted_where_they_belong(first: float, second: float, bins: int, seed: int) -> None:
    low, high = sorted((first + 0.0, second + 0.0))
    found = float_bins(low, high, bins)
    edges = found.edges
    assert edges[0] <= low <= high <= edges[-1]
    assert (np.diff(edges / 2) > 0).all() or (np.diff(edges) > 0).all()
    between = np.random.default_rng(seed).random(50)
    with np.errstate(over="ignore"):
        others = [np.nextafter(edges, -inf), np.nextafter(edges, inf), low + between * (high / 2 - low / 2)]
    values = np.concatenate([edges, *others])
    values = values[(values >= edges[0]) & (values <= edges[-1])]
    expected = np.searchsorted(edges, values, side="right") - 1
    expected[values == edges[-1]] = len(edges) - 2
    assert found.count(values).tolist() == np.bincount(expected, minlength=len(edges) - 1).tolist()


@given(st.integers(-(2**63), 2**64 - 1), st.integers(0, 2**64), st.integers(1, 70))
@example(-(2**63), 2**64 - 1, 32)
@example(0, 2**64 - 1, 1)
def test_edges_of_integers_are_exact(low: int, span: int, bins: int) -> None:
    high = min(low + span, 2**64 - 1)
    found = integer_bins(low, high, bins)
    exact = [found.start + k * found.width for k in range(found.bins + 1)]
    assert [int(edge) for edge in found.edges] == exact
    assert found.start <= low
    assert exact[-2] <= high < exact[-1]
    assert found.bins <= bins
    if high - low < bins and abs(low) < 2**50 and abs(high) < 2**50:
        assert (found.start, found.width) == (low, 1)


@given(st.integers(-(2**31), 2**32 - 1), st.integers(0, 2**32), st.integers(1, 70))
@example(0, 49 * 32 - 1, 32)
def test_integers_on_edges_are_counted_where_they_belong(low: int, span: int, bins: int) -> None:
    high = min(low + span, 2**32 - 1)
    found = integer_bins(low, high, bins)
    edges = [found.start + k * found.width for k in range(found.bins)]
    values = [value for edge in edges for value in (edge - 1, edge, edge + 1) if low <= value <= high]
    expected = [sum(edge <= value < edge + found.width for value in values) for edge in edges]
    assert found.count(np.array(values, np.float64)).tolist() == expected
    offset = 2**63
    assert found.count_wide(np.array([value + offset for value in values], np.uint64), offset).tolist() == expected


def test_computing_takes_little_memory_beside_the_blocks() -> None:
    array = np.random.default_rng(6).normal(size=(500_000, 8)).astype(np.float32)
    array[::3, 2] = np.nan
    tracemalloc.start()
    try:
        statistics_of(array)
        assert tracemalloc.get_traced_memory()[1] < 6e6
    finally:
        tracemalloc.stop()


# Columns of other kinds.


def test_categories_are_counted() -> None:
    codes = np.array([0, 2, 2, -1, 0, 3, 2], np.int8)
    found = compute_categorical_statistics(in_blocks(codes, [3]), ["a", "b", "c"], np.int8)
    assert (found.kind, found.count, found.values, found.nans) == ("categorical", 7, 7, 2)
    assert found.categories == ("a", "b", "c")
    assert found.category_counts is not None
    assert found.category_counts.tolist() == [2, 0, 3]
    many = np.random.default_rng(7).integers(0, 300, PIECE_ITEMS * 2 + 1).astype(np.uint16)
    found = compute_categorical_statistics(in_blocks(many, [5]), [str(n) for n in range(300)], np.uint16)
    assert found.category_counts is not None
    assert found.category_counts.tolist() == np.bincount(many, minlength=300).tolist()


def test_no_categories_and_no_rows() -> None:
    found = compute_categorical_statistics(lambda: iter([]), [])
    assert (found.count, found.nans, found.categories) == (0, 0, ())
    assert ColumnStatistics.from_json(found.to_json()) == found


@given(st.lists(st.integers(0, 5), max_size=20), cut_lists)
def test_ragged_columns_have_lengths_and_elements(sizes: list[int], cuts: list[int]) -> None:
    of_rows, elements = np.array(sizes, np.int64), np.arange(sum(sizes)).astype(np.float32)
    found = compute_ragged_statistics(in_blocks(of_rows, cuts), in_blocks(elements, cuts), np.float32)
    assert (found.kind, found.dtype, found.count, found.values) == ("ragged", "float32", len(sizes), len(elements))
    assert found.lengths == statistics_of(of_rows, cuts)
    assert found.elements == statistics_of(elements, cuts)
    text = compute_text_statistics(in_blocks(of_rows, cuts))
    assert (text.kind, text.count, text.values, text.lengths) == ("text", len(sizes), sum(sizes), found.lengths)


def test_lengths_that_do_not_fit_the_elements_are_refused() -> None:
    with pytest.raises(ValueError, match="add up to 3, but there are 4 elements"):
        compute_ragged_statistics(in_blocks(np.array([1, 2]), []), in_blocks(np.zeros(4), []), np.float64)


# What is refused.


def test_blocks_of_another_column_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected rows of float32 and shape \(2,\), found float64 and \(3,\)"):
        compute_statistics(lambda: iter([np.zeros((4, 3))]), np.float32, (2,))


def test_rows_that_change_between_the_passes_are_refused() -> None:
    blocks = iter([[np.zeros(4)], [np.zeros(3)]])
    with pytest.raises(ValueError, match="4 rows when first read, and 3 the second time"):
        compute_statistics(lambda: iter(next(blocks)), np.float64)


@pytest.mark.parametrize("dtype", ["O", "U3", [("a", "f4")], "V4"])
def test_dtypes_without_statistics_are_refused(dtype: Any) -> None:
    with pytest.raises(TypeError, match="no statistics of dtype"):
        compute_statistics(lambda: iter([]), np.dtype(dtype))


@pytest.mark.parametrize("bins", [0, -1, 4097])
def test_numbers_of_bins_are_checked(bins: int) -> None:
    with pytest.raises(ValueError, match="1 to 4,096 bins"):
        statistics_of(np.zeros(3), bins=bins)


# The JSON form.


def assert_without_floats(value: Any) -> None:
    assert value is None or type(value) in (int, str, list, dict)
    if isinstance(value, dict):
        assert all(type(key) is str for key in value)
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            assert_without_floats(part)


def some_statistics() -> list[ColumnStatistics]:
    rng = np.random.default_rng(8)
    sizes = np.array([3, 0, 4])
    return [
        *(statistics_of(random_array(dtype, (20, 3), 9)) for dtype in (*NUMBERS, "S5")),
        statistics_of(np.zeros((0, 2))),
        statistics_of(np.full(3, np.nan)),
        statistics_of(rng.normal(size=(5, MAX_FEATURES + 1))),
        compute_categorical_statistics(in_blocks(np.array([1, 0, 7]), []), ["é", "b"]),
        compute_ragged_statistics(in_blocks(sizes, []), in_blocks(rng.normal(size=7), []), np.float64),
        compute_text_statistics(in_blocks(sizes, [])),
    ]


@pytest.mark.parametrize("found", some_statistics(), ids=lambda found: f"{found.kind}-{found.dtype}-{found.count}")
def test_json_is_exact_and_without_floats(found: ColumnStatistics) -> None:
    body = found.to_json()
    assert_without_floats(body)
    text = json.dumps(body, sort_keys=True)
    again = ColumnStatistics.from_json(json.loads(text))
    assert again == found
    assert json.dumps(again.to_json(), sort_keys=True) == text
    for name in ("minimum", "maximum", "mean", "std"):
        assert type(getattr(again, name)) is type(getattr(found, name))
        assert getattr(again, name) == getattr(found, name)
    for name in ("feature_mean", "feature_std"):
        first, second = getattr(found, name), getattr(again, name)
        assert (first is None) == (second is None)
        if first is not None:
            assert (first.dtype, first.shape, first.tobytes()) == (second.dtype, second.shape, second.tobytes())


@given(st.floats(), st.lists(st.floats(), min_size=2, max_size=2))
@example(-0.0, [-0.0, float("nan")])
def test_every_float_is_read_back(number: float, features: list[float]) -> None:
    array = np.array(features)
    found = ColumnStatistics(
        "numeric", "float64", (2,), 1, 2, mean=number, minimum=number, feature_mean=array, feature_std=array
    )
    again = ColumnStatistics.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    assert np.float64(again.mean).tobytes() == np.float64(number).tobytes() or np.isnan(number)
    assert np.isnan(number) == np.isnan(again.mean)
    assert again.feature_mean is not None
    assert again.feature_mean.tobytes() == array.tobytes()


WRONG: list[tuple[str, Any]] = [
    ("count", -1),
    ("count", "3"),
    ("count", True),
    ("count", 2**63),
    ("values", 1.5),
    ("minimum", 0.5),
    ("minimum", "zero"),
    ("mean", []),
    ("dtype", 7),
    ("row_shape", "3"),
    ("row_shape", [4]),
    ("feature_mean", "AAAA"),
    ("feature_mean", "?"),
    ("feature_std", None),
    ("histogram", {"edges": "", "counts": []}),
    ("histogram", {"edges": "AAAAAAAAAAAAAAAAAAAAAA==", "counts": [1]}),
    ("histogram", {"edges": "AAAAAAAAAAA=", "counts": [1]}),
    ("histogram", 3),
    ("categories", ["a"]),
    ("lengths", {}),
    ("kind", "categorical"),
    ("kind", "ragged"),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_wrong_json_is_refused(key: str, value: Any) -> None:
    body = statistics_of(np.arange(6.0).reshape(2, 3)).to_json()
    ColumnStatistics.from_json(body)
    with pytest.raises((ValueError, KeyError, TypeError)):
        ColumnStatistics.from_json({**body, key: value})


@pytest.mark.parametrize("key", ["kind", "dtype", "row_shape", "count", "values", "nans", "infinities", "feature_std"])
def test_json_with_a_part_missing_is_refused(key: str) -> None:
    body = statistics_of(np.arange(6.0).reshape(2, 3)).to_json()
    del body[key]
    with pytest.raises((ValueError, KeyError)):
        ColumnStatistics.from_json(body)


def test_kinds_of_later_releases_are_named() -> None:
    body = {**statistics_of(np.zeros(2)).to_json(), "kind": "graph"}
    with pytest.raises(FormatError, match="kind 'graph', which this release cannot read"):
        ColumnStatistics.from_json(body)


def test_statistics_that_differ_in_a_bit_are_not_equal() -> None:
    first, second = statistics_of(np.array([1.0, 2.0])), statistics_of(np.array([1.0, np.nextafter(2, 3)]))
    assert first == statistics_of(np.array([1.0, 2.0]))
    assert first != second
    assert first != "statistics"
    with pytest.raises(TypeError, match="unhashable"):
        hash(first)


def test_bins_of_one_value() -> None:
    for value in (0.0, 3.5, -1e300, 1.7976931348623157e308, -1.7976931348623157e308, 1e17):
        assert isinstance(bins := float_bins(value, value, 32), FloatBins)
        assert len(bins.edges) == 2
        assert bins.edges[0] <= value <= bins.edges[1]
        assert bins.count(np.array([value, value])).tolist() == [2]
