"""`Normalize` is `(x - mean) / std` in float64, rounded once, and changes nothing else."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from stores import random_array, same_bytes

from shardstore.statistics.describing import compute_categorical_statistics, compute_statistics, compute_text_statistics
from shardstore.statistics.moments import MAX_FEATURES
from shardstore.statistics.summary import ColumnStatistics
from shardstore.transforms import Normalize

REAL_DTYPES = ("bool", "int8", "int64", "uint8", "uint64", "float16", "float32", "float64")


def statistics_of(array: NDArray[Any]) -> ColumnStatistics:
    return compute_statistics(lambda: iter([array]), array.dtype, array.shape[1:])


def normal(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(7, 3, shape).astype(np.float32)


@given(
    st.sampled_from(REAL_DTYPES),
    st.sampled_from([(), (1,), (3,), (2, 3), (0,)]),
    st.sampled_from([1, 2, 40]),
    st.booleans(),
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.sampled_from([None, 0.0, -1.5]),
    st.integers(0, 2**32),
)
def test_values_are_normalised_in_float64_and_rounded_once(
    dtype: str, row_shape: tuple[int, ...], rows: int, per_feature: bool, to: Any, nan: float | None, seed: int
) -> None:
    array = random_array(dtype, (rows, *row_shape), seed)
    found = statistics_of(array)
    out = Normalize({"x": found}, ["x"], per_feature=per_feature, dtype=to, nan=nan)({"x": array})["x"]
    mean, std = np.array(found.mean, np.float64), np.array(found.std, np.float64)
    if per_feature and found.feature_mean is not None and found.feature_std is not None:
        mean, std = found.feature_mean, found.feature_std
    mean, std = np.where(np.isnan(mean), 0, mean), np.where(std > 0, std, 1)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = (array.astype(np.float64) - mean) / std
        if nan is not None:
            expected = np.where(np.isnan(expected), nan, expected)
        expected = expected.astype(to)
    assert out.dtype == to
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("shape", [(100_000,), (20_000, 7), (30, MAX_FEATURES), (3, 200, 300), (1, 70_000), (0, 4)])
@pytest.mark.parametrize("per_feature", [True, False])
def test_large_batches_become_of_mean_0_and_deviation_1(shape: tuple[int, ...], per_feature: bool) -> None:
    array = normal(shape)
    found = {"x": statistics_of(array)}
    if per_feature and array[:1].size > MAX_FEATURES:
        with pytest.raises(ValueError, match="pass per_feature=False"):
            Normalize(found)
        return
    out = Normalize(found, per_feature=per_feature, dtype=np.float64)({"x": array})["x"]
    assert out.shape == shape
    if not array.size or (len(array) < 2 and per_feature):
        return
    axis = 0 if per_feature else None
    np.testing.assert_allclose(out.mean(axis=axis), 0, atol=1e-9)
    np.testing.assert_allclose(out.std(axis=axis), 1, rtol=1e-9)


def test_other_entries_and_the_batch_itself_are_left_alone() -> None:
    array, label = normal((10, 3)), np.arange(10)
    batch = {"x": array, "y": label, "rows": np.arange(10), "mask": np.ones(10, bool)}
    before = array.copy()
    array.flags.writeable = False
    out = Normalize({"x": statistics_of(array), "y": statistics_of(label)})(batch)
    assert list(out) == list(batch)
    assert all(out[name] is batch[name] for name in ("y", "rows", "mask"))
    assert not np.shares_memory(out["x"], array)
    assert out["x"].flags.writeable
    assert same_bytes(array, before)


def test_float_columns_are_the_default() -> None:
    columns = {name: statistics_of(random_array(name, (9,))) for name in (*REAL_DTYPES, "complex64", "S3")}
    assert Normalize(columns).columns == ("float16", "float32", "float64")
    assert Normalize(columns, ["int8", "bool"]).columns == ("int8", "bool")
    out = Normalize({"x": columns["float32"]})({"y": normal((3,))})
    assert list(out) == ["y"]


@pytest.mark.parametrize("row_shape", [(), (3,), (2, 2)])
@pytest.mark.parametrize("per_feature", [True, False])
def test_a_row_is_normalised_as_in_its_batch(row_shape: tuple[int, ...], per_feature: bool) -> None:
    array = normal((20, *row_shape))
    normalize = Normalize({"x": statistics_of(array)}, per_feature=per_feature)
    batch = normalize({"x": array})
    for row in range(20):
        found = normalize({"x": array[row]})["x"]
        assert type(found) is (np.ndarray if row_shape else np.float32)
        assert same_bytes(np.asarray(found), np.asarray(batch["x"][row]))
    if not row_shape:
        assert normalize({"x": float(array[0])})["x"] == batch["x"][0]
        assert normalize.inverse({"x": batch["x"][0]})["x"] == pytest.approx(array[0], rel=1e-5)


def test_the_inverse_gives_the_values_back() -> None:
    array = normal((50, 4)) * np.array([1, 1e-6, 1e6, 0], np.float32)
    normalize = Normalize({"x": statistics_of(array)}, dtype=np.float64)
    batch = normalize({"x": array, "y": array})
    again = normalize.inverse(batch)
    assert again["x"].dtype == np.float64
    np.testing.assert_allclose(again["x"], array, rtol=1e-12)
    assert again["y"] is array
    assert same_bytes(batch["x"], normalize({"x": array})["x"])


def test_nans_become_the_mean_when_asked() -> None:
    array = np.array([[1, 5], [np.nan, 5], [3, np.nan], [np.inf, 5]], np.float32)
    found = {"x": statistics_of(array)}
    filled = Normalize(found, nan=0.0)({"x": array})["x"]
    assert filled.tolist() == [[-1, 0], [0, 0], [1, 0], [np.inf, 0]]
    left = Normalize(found)({"x": array})["x"]
    assert np.isnan(left).tolist() == np.isnan(array).tolist()
    assert Normalize(found, nan=0.0).inverse({"x": filled})["x"][1].tolist() == [2, 5]


def test_values_without_anything_finite_stay_as_they_are() -> None:
    found = {"x": statistics_of(np.full((3, 2), np.nan)), "e": statistics_of(np.zeros((0,)))}
    out = Normalize(found)({"x": np.array([[1.5, np.nan]]), "e": np.array([2.5])})
    np.testing.assert_array_equal(out["x"], np.array([[1.5, np.nan]], np.float32))
    assert out["e"].tolist() == [2.5]


def test_small_deviations_far_from_zero_are_kept() -> None:
    array = 1e9 + np.arange(1000) * 1e-6
    out = Normalize({"x": statistics_of(array)})({"x": array})["x"]
    assert np.abs(out.mean()) < 1e-3
    assert out.std() == pytest.approx(1, rel=1e-4)


def test_it_can_be_pickled() -> None:
    array = normal((8, 3))
    normalize = Normalize({"x": statistics_of(array)}, nan=0.0)
    again = pickle.loads(pickle.dumps(normalize))
    assert same_bytes(again({"x": array})["x"], normalize({"x": array})["x"])
    assert repr(again) == repr(normalize) == "Normalize(x; per_feature=True, dtype=float32, nan=0.0)"


# What is refused.


def test_columns_without_statistics_are_named() -> None:
    with pytest.raises(ValueError, match="no statistics of column 'z'; there are of: 'x'"):
        Normalize({"x": statistics_of(normal((3,)))}, ["z"])


def test_columns_that_are_not_numeric_are_named() -> None:
    times = statistics_of(np.arange(3).astype("datetime64[s]"))
    names = compute_categorical_statistics(lambda: iter([np.array([0])]), ["a"])
    text = compute_text_statistics(lambda: iter([np.array([3])]))
    found = {"t": times, "c": names, "s": text, "z": statistics_of(np.ones(3, np.complex64))}
    for name, kind in (("t", "time"), ("c", "categorical"), ("s", "text"), ("z", "complex")):
        with pytest.raises(TypeError, match=f"column '{name}' cannot be normalised: it is {kind}"):
            Normalize(found, [name])
    with pytest.raises(ValueError, match=r"no column with statistics holds floats \(there are: t, c, s, z\)"):
        Normalize(found)


def test_rows_of_another_shape_are_named() -> None:
    normalize = Normalize({"x": statistics_of(normal((5, 3)))})
    for shape in [(5, 4), (5,), (), (3, 5)]:
        with pytest.raises(ValueError, match=r"column 'x' has values of shape .* rows of shape \(3,\)"):
            normalize({"x": np.zeros(shape)})
        with pytest.raises(ValueError, match="column 'x' has values of shape"):
            normalize.inverse({"x": np.zeros(shape)})


@pytest.mark.parametrize("dtype", ["int32", "complex64", "bool"])
def test_targets_that_are_no_floats_are_refused(dtype: str) -> None:
    with pytest.raises(TypeError, match="need a float dtype"):
        Normalize({"x": statistics_of(normal((3,)))}, dtype=dtype)


def test_a_name_instead_of_a_list_is_refused() -> None:
    with pytest.raises(TypeError, match=r"pass \['x'\]"):
        Normalize({"x": statistics_of(normal((3,)))}, "x")
