"""Draws of rows, against plain models and exact probabilities."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores import write_store

import shardstore
from shardstore.sampling import draws
from shardstore.sampling.draws import SAMPLE_VERSION, AliasTable, draw, draw_weighted, log
from shardstore.sampling.hashing import hash_rows, key_of, scale, unit_interval
from shardstore.sampling.strata import Strata, apportion

KEY = key_of("test")
ROWS = 5000
ARRAYS = {
    "x": np.random.default_rng(0).random((ROWS, 3)).astype(np.float32),
    "y": np.arange(ROWS),
    "label": np.random.default_rng(1).choice(np.array([-3, 7, 20], np.int16), ROWS, p=[0.01, 0.3, 0.69]),
    "weight": np.random.default_rng(2).random(ROWS).astype(np.float32),
    "tag": np.array([b"a", b"bb", b"c"])[np.arange(ROWS) % 3],
    "flag": np.arange(ROWS) % 5 == 0,
}

hard_counts = st.sampled_from([1, 2, 4095, 4096, 4097, 8192]) | st.integers(1, 10_000)
seeds = st.integers(-(2**70), 2**70)


@pytest.fixture(scope="module", params=["raw", "zstd"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> shardstore.Store:
    path = tmp_path_factory.mktemp("sampling") / request.param
    return shardstore.open(write_store(path, ARRAYS, request.param, shard_bytes=8192, chunk_bytes=1024))


def chi2_is_plausible(seen: np.ndarray, expected: np.ndarray) -> bool:
    """Whether counts agree with what is expected of them, at six standard deviations."""
    seen, expected = seen[expected > 0], expected[expected > 0]
    freedom = len(seen) - 1
    return bool(abs(((seen - expected) ** 2 / expected).sum() - freedom) < 6 * math.sqrt(2 * freedom))


# Hashes


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1), st.integers(1, 2**62))
def test_scaling_is_exact(words: list[int], count: int) -> None:
    found = scale(np.array(words, np.uint64), count)
    assert found.dtype == np.int64
    assert found.tolist() == [word * count >> 64 for word in words]


def test_scaling_takes_a_count_a_word() -> None:
    words = hash_rows(np.arange(100), KEY)
    counts = np.arange(1, 101)
    assert scale(words, counts).tolist() == [int(w) * int(c) >> 64 for w, c in zip(words, counts, strict=True)]


def test_hashes_of_different_rows_differ_and_depend_on_all_of_the_key() -> None:
    rows = np.arange(100_000)
    words = hash_rows(rows, KEY)
    assert len(np.unique(words)) == len(rows)
    for place in (0, 7, 8, 15):
        other = bytearray(KEY)
        other[place] ^= 1
        assert not (hash_rows(rows, bytes(other)) == words).any()
    for bit in range(64):
        assert abs(((words >> np.uint64(bit)) & np.uint64(1)).mean() - 0.5) < 5 * 0.5 / math.sqrt(len(rows)), bit


def test_the_unit_interval_is_open() -> None:
    ends = unit_interval(np.array([0, 2**64 - 1], np.uint64))
    assert ends[0] > 0
    assert ends[1] < 1


@given(st.lists(st.floats(5e-324, 1.7e308), min_size=1))
def test_our_logarithm_is_the_logarithm(numbers: list[float]) -> None:
    found = log(np.array(numbers))
    for x, y in zip(numbers, found.tolist(), strict=True):
        assert math.isclose(y, math.log(x), rel_tol=1e-15, abs_tol=0 if x != 1 else 1e-300), x


# Uniform draws


@given(hard_counts, st.data(), seeds)
def test_without_replacement_no_row_comes_twice(count: int, data: st.DataObject, seed: int) -> None:
    n = data.draw(st.sampled_from([0, 1, count // 2, count]))
    rows = draw(count, n, seed=seed)
    assert rows.dtype == np.int64
    assert len(set(rows.tolist())) == len(rows) == n
    assert not n or (rows.min() >= 0 and rows.max() < count)
    # The first draws of more draws are those of fewer.
    assert draw(count, n // 2, seed=seed).tolist() == rows[: n // 2].tolist()


@given(st.integers(1, 2**62), st.booleans(), seeds)
def test_draws_of_huge_tables_take_no_memory_for_their_rows(count: int, replace: bool, seed: int) -> None:
    n = min(count, 1000)
    rows = draw(count, n, replace=replace, seed=seed)
    assert len(rows) == n
    assert rows.min() >= 0
    assert rows.max() < count
    if n == 1000:
        assert abs(rows.mean() / count - 0.5) < 6 * 0.289 / math.sqrt(n)


@pytest.mark.parametrize("count", [2, 3, 10, 1000])
def test_with_replacement_every_row_is_as_likely(count: int) -> None:
    seen = np.bincount(draw(count, 1000 * count, replace=True, seed=3), minlength=count)
    assert chi2_is_plausible(seen, np.full(count, 1000.0))
    uneven = np.arange(1000 * count) % (2 * count)  # half of them fall on one row
    assert not chi2_is_plausible(np.bincount(uneven.clip(max=count - 1), minlength=count), np.full(count, 1000.0))


@pytest.mark.parametrize("replace", [False, True])
def test_every_sequence_of_draws_is_as_likely(replace: bool) -> None:
    seen = Counter(tuple(draw(4, 2, replace=replace, seed=seed).tolist()) for seed in range(4000))
    expected = {(i, j): 4000 / (16 if replace else 12) for i in range(4) for j in range(4) if replace or i != j}
    assert seen.keys() == expected.keys()
    assert chi2_is_plausible(np.array([seen[k] for k in expected]), np.array(list(expected.values())))


# Weights

weight_lists = st.lists(
    st.sampled_from([0.0, 1.0, 1e-320, 1e-300, 1e300, 1.7e308]) | st.floats(0, 1e6) | st.integers(0, 5).map(float),
    min_size=1,
    max_size=60,
).filter(any)


def table_weights(table: AliasTable) -> np.ndarray:
    """Return how likely a table makes each row."""
    count = len(table.keep)
    return (table.keep + np.bincount(table.alias, 1 - table.keep, minlength=count)) / count


@given(weight_lists)
def test_an_alias_table_holds_the_weights(weights: list[float]) -> None:
    table = AliasTable.of(np.array(weights))
    exact = [Fraction(weight) for weight in weights]
    expected = np.array([float(weight / sum(exact)) for weight in exact])
    assert ((table.keep >= 0) & (table.keep <= 1)).all()
    np.testing.assert_allclose(table_weights(table), expected, rtol=0, atol=1e-12)
    # Never drawn: neither as themselves nor as an alias.
    zero = np.array(weights) == 0
    assert (table.keep[zero] == 0).all()
    assert not zero[table.alias[table.keep < 1]].any()


@pytest.mark.parametrize("count", [1, 2, 4095, 4096, 4097, 30_000])
@pytest.mark.parametrize("kind", ["equal", "pareto", "one heavy", "one light", "half zero", "0.1"])
def test_alias_tables_of_all_shapes(count: int, kind: str) -> None:
    rng = np.random.default_rng(count)
    weights = {
        "equal": np.ones(count),
        "pareto": rng.pareto(0.8, count) + 1e-9,
        "one heavy": np.where(np.arange(count) == count // 2, 1e12, 1.0),
        "one light": np.where(np.arange(count) == count // 2, 1e-12, 1.0),
        "half zero": (np.arange(count) % 2 == 0) * rng.random(count) + (np.arange(count) == 0),
        "0.1": np.full(count, 0.1),
    }[kind]
    np.testing.assert_allclose(table_weights(AliasTable.of(weights)), weights / weights.sum(), rtol=0, atol=1e-12)


def test_weighted_draws_with_replacement_come_as_often_as_they_should() -> None:
    weights = np.array([0.0, 1, 2, 3, 0, 10, 0.5, 0])
    rows = draw(8, 100_000, replace=True, weights=weights)
    expected = weights / weights.sum() * len(rows)
    seen = np.bincount(rows, minlength=8)
    assert seen[weights == 0].sum() == 0
    assert chi2_is_plausible(seen, expected)
    assert not chi2_is_plausible(seen, np.roll(expected, 1))
    # Neighbouring draws have nothing in common.
    pairs = np.bincount(rows[:-1] * 8 + rows[1:], minlength=64)
    assert chi2_is_plausible(pairs, np.outer(expected, expected).ravel() / len(rows))


def test_weighted_draws_without_replacement_come_in_the_order_of_successive_draws() -> None:
    weights = np.array([1.0, 2, 0, 5, 8])
    trials = 6000
    seen = Counter(tuple(draw(5, 2, weights=weights, seed=seed).tolist()) for seed in range(trials))
    expected = {
        (i, j): trials * weights[i] / 16 * weights[j] / (16 - weights[i]) for i, j in permutations((0, 1, 3, 4), 2)
    }
    assert seen.keys() <= expected.keys()
    assert chi2_is_plausible(np.array([seen[k] for k in expected]), np.array(list(expected.values())))
    reversed_ = {(j, i): number for (i, j), number in expected.items()}
    assert not chi2_is_plausible(np.array([seen[k] for k in reversed_]), np.array(list(reversed_.values())))


@given(weight_lists, st.integers(1, 60), st.integers(1, 20))
def test_blocks_do_not_matter(weights: list[float], n: int, block: int) -> None:
    array = np.array(weights)
    n = min(n, np.count_nonzero(array))
    uniform = unit_interval(hash_rows(np.arange(len(array)), KEY))
    with np.errstate(divide="ignore"):
        keys = log(-log(uniform)) - np.where(array > 0, np.log(array), -np.inf)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draws, "_BLOCK_ROWS", block)
        assert draw_weighted(array, n, KEY).tolist() == np.argsort(keys)[:n].tolist()


@pytest.mark.parametrize("replace", [False, True])
def test_weights_far_apart(replace: bool) -> None:
    weights = np.array([1e-320, 1e300, 1e-320, 1.7e308])
    rows = draw(4, 4, weights=weights, replace=replace)
    assert set(rows[:2].tolist()) <= {1, 3}
    if not replace:
        assert sorted(rows.tolist()) == [0, 1, 2, 3]


# Strata


@given(st.integers(0, 10**15), st.lists(st.integers(0, 10**9), min_size=1, max_size=30).filter(any))
def test_apportioning_by_largest_remainder(total: int, shares: list[int]) -> None:
    found = apportion(total, np.array(shares))
    quotas = [Fraction(total * share, sum(shares)) for share in shares]
    expected = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(shares)), key=lambda i: (expected[i] - quotas[i], i))
    for i in by_remainder[: total - sum(expected)]:
        expected[i] += 1
    assert found.tolist() == expected
    assert sum(expected) == total


@given(st.lists(st.integers(0, 4), max_size=50), seeds)
def test_strata_hold_each_row_once_beside_its_likes(column: list[int], seed: int) -> None:
    strata = Strata.of(np.array(column, np.int64), key_of(str(seed)))
    assert sorted(strata.order.tolist()) == list(range(len(column)))
    assert [column[row] for row in strata.order] == sorted(column)
    assert strata.counts.sum() == len(column)


def test_all_nan_are_one_value() -> None:
    column = np.array([np.nan, 1.0, -np.nan, np.nan])
    assert Strata.of(column, KEY).counts.tolist() == [1, 3]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=50), st.integers(0, 200), st.booleans(), seeds)
def test_stratified_draws_are_exact(column: list[int], n: int, replace: bool, seed: int) -> None:
    strata = np.array(column)
    n = n if replace else min(n, len(column))
    rows = draw(len(column), n, replace=replace, strata=strata, seed=seed)
    values, counts = np.unique(strata, return_counts=True)
    assert np.array([(strata[rows] == value).sum() for value in values]).tolist() == apportion(n, counts).tolist()
    if not replace:
        assert len(set(rows.tolist())) == n


@pytest.mark.parametrize("replace", [False, True])
def test_stratified_draws_are_random_in_rows_and_order(replace: bool) -> None:
    strata = np.repeat([0, 1], [600, 400])
    seen, places = np.zeros(1000), np.zeros(100)
    for seed in range(400):
        rows = draw(1000, 100, replace=replace, strata=strata, seed=seed)
        np.add.at(seen, rows, 1)
        places += strata[rows]
    assert chi2_is_plausible(seen, np.full(1000, 40.0) * (1 if replace else seen.mean() / 40))
    # How often a draw of each place is of the second value: binomial (400, 0.4), were it not for the exact sums.
    assert abs(places - 160).max() < 6 * math.sqrt(400 * 0.24)
    assert places.sum() == 400 * 40


# On tables


def test_samples_read_the_rows_that_were_drawn(store: shardstore.Store) -> None:
    for arguments in (
        {},
        {"replace": True},
        {"weights": "weight"},
        {"weights": "flag", "replace": True},
        {"weights": ARRAYS["y"], "replace": True},
        {"stratify": "label"},
        {"stratify": "tag", "replace": True},
    ):
        view = store.sample(700, seed=5, **arguments)
        rows = view["y"][:]
        assert len(view) == len(rows) == 700
        assert view.columns == store.columns
        for name, array in ARRAYS.items():
            assert view[name][:].tobytes() == array[rows].tobytes()
        assert not np.array_equal(rows, np.sort(rows))
        assert store.sample(700, seed=5, **arguments)["y"][:].tolist() == rows.tolist()
        assert store.sample(700, seed=6, **arguments)["y"][:].tolist() != rows.tolist()


def test_a_column_of_weights_is_an_array_of_them(store: shardstore.Store) -> None:
    for replace in (False, True):
        by_name = store.sample(100, weights="weight", replace=replace)
        by_array = store.sample(100, weights=list(ARRAYS["weight"].tolist()), replace=replace)
        assert by_name["y"][:].tolist() == by_array["y"][:].tolist()


def test_samples_of_views(store: shardstore.Store) -> None:
    view = store.select("y", "label").rows(slice(None, None, -3))
    assert len(set(view.sample(len(view))["y"][:].tolist())) == len(view)
    assert (view.sample(500, replace=True)["y"][:] % 3 == (ROWS - 1) % 3).all()
    chosen = view.where(lambda block: block["label"] == -3, "label")
    assert (chosen.sample(3, stratify="label")["label"][:] == -3).all()
    assert len(store.sample(0)) == len(view.sample(0, weights=np.zeros(len(view)))) == 0


def test_what_cannot_be_drawn_is_refused(store: shardstore.Store) -> None:
    nothing = store.rows([])
    ones = np.ones(ROWS)
    wrong: list[tuple[type[Exception], str, Any, dict[str, Any]]] = [
        (ValueError, "n is -1", -1, {}),
        (TypeError, "n is a float", 1.0, {}),
        (TypeError, "n is a bool", True, {}),
        (TypeError, "seed is a str", 1, {"seed": "a"}),
        (ValueError, "5,001 of 5,000 rows without replacement; draw fewer, or set replace=True", ROWS + 1, {}),
        (ValueError, "weights and stratify", 1, {"weights": "weight", "stratify": "label"}),
        (ValueError, r"weights are float64 of shape \(4999,\); expected one number for each", 1, {"weights": ones[1:]}),
        (ValueError, r"weights are float64 of shape \(5000, 1\)", 1, {"weights": ones[:, None]}),
        (ValueError, r"weights are <?\|?S2 of shape", 1, {"weights": "tag"}),
        (ValueError, "weights are complex128", 1, {"weights": ones.astype(complex)}),
        (ValueError, r"column 'x' has rows of shape \(3,\); expected one value a row", 1, {"weights": "x"}),
        (ValueError, r"stratify: column 'x' has rows of shape \(3,\)", 1, {"stratify": "x"}),
        (TypeError, "stratify is a ndarray; expected the name of a column", 1, {"stratify": ones}),
        (KeyError, "no column 'q'; the columns are x, y", 1, {"stratify": "q"}),
        (KeyError, "no column 'q'", 1, {"weights": "q"}),
    ]
    for error, message, n, arguments in wrong:
        with pytest.raises(error, match=message):
            store.sample(n, **arguments)
    for replace in (False, True):
        with pytest.raises(ValueError, match="cannot draw 1 rows of an empty table"):
            nothing.sample(1, replace=replace)
        assert len(nothing.sample(0, replace=replace, stratify="label")) == 0
        assert len(nothing.sample(0, replace=replace, weights="weight")) == 0
        with pytest.raises(ValueError, match="weights of all rows, 0 to 4,999, are zero"):
            store.sample(1, weights=0 * ones, replace=replace)
        for value, shown in ((-1.5, "-1.5"), (np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")):
            with pytest.raises(ValueError, match=f"the weight of row 4,321 is {shown}; expected finite numbers"):
                store.sample(1, weights=np.where(ARRAYS["y"] == 4321, value, 1), replace=replace)
    few = (ARRAYS["y"] < 7).astype(np.float32)
    with pytest.raises(
        ValueError, match="cannot draw 8 rows without replacement: only 7 of 5,000 weights are not zero"
    ):
        store.sample(8, weights=few)
    assert sorted(store.sample(7, weights=few)["y"][:].tolist()) == list(range(7))
    assert store.sample(8, weights=few, replace=True)["y"][:].max() < 7


# Draws are promises. If these change, SAMPLE_VERSION must change.
WEIGHTS = 1 / np.arange(1, 1001)
GOLDEN: list[tuple[int, dict[str, Any], list[int]]] = [
    (10, {}, [6, 2, 4, 3, 1, 0, 9]),
    (5000, {"seed": 1}, [99, 4633, 1532, 4998, 2147, 4970, 1756]),
    (
        1000000000000,
        {"seed": -1},
        [866679757957, 631911756615, 642595537525, 711312506074, 358056447083, 9329115510, 946778207304],
    ),
    (10, {"replace": True}, [5, 8, 5, 6, 2, 4, 6]),
    (
        4294967297,
        {"replace": True, "seed": 2**70},
        [1441895988, 1030391671, 811731044, 364059275, 1004506243, 494816210, 284196480],
    ),
    (
        1000000000000,
        {"replace": True},
        [505155004222, 883190374426, 574027340942, 625183880867, 246292883411, 450057287265, 668720952956],
    ),
    (1000, {"weights": WEIGHTS}, [81, 1, 17, 10, 0, 48, 20]),
    (1000, {"weights": WEIGHTS, "seed": 9}, [54, 19, 0, 3, 321, 14, 393]),
    (1000, {"weights": WEIGHTS, "replace": True}, [505, 28, 574, 4, 246, 1, 5]),
    (1000, {"strata": np.arange(1000) % 3}, [788, 123, 781, 670, 267, 864, 80]),
    (1000, {"strata": np.arange(1000) % 3, "replace": True}, [479, 432, 724, 760, 501, 600, 92]),
]


def test_golden_values() -> None:
    assert SAMPLE_VERSION == 1
    assert len(GOLDEN) == 11
    for count, arguments, expected in GOLDEN:
        assert draw(count, len(expected), **arguments).tolist() == expected, (count, arguments)


def test_weights_are_numbers_and_not_the_numbers_of_names(tmp_path: Path) -> None:
    with shardstore.Writer(tmp_path / "s", types={"c": "categorical", "h": "bfloat16"}) as writer:
        writer.append({"s": ["a"] * 19 + ["b"], "c": ["a"] * 19 + ["b"], "h": np.array([0.0] * 19 + [1.0])})
    store = shardstore.open(tmp_path / "s")
    for name in ("s", "c"):
        with pytest.raises(TypeError, match=f"weights: column '{name}' holds .* expected one number a row"):
            store.sample(10, weights=name, replace=True)
    assert store.sample(10, weights="h", replace=True)["s"][:].to_list() == ["b"] * 10
    assert sorted(store.sample(20, stratify="s")["s"][:].to_list()) == ["a"] * 19 + ["b"]
