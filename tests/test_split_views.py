"""Splits of tables into parts: bijective at every size, exact, random enough, and read like any other view."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores import write_store
from test_selection import indices, model

import shardstore
from shardstore.sampling import parts
from shardstore.sampling.hashing import key_of
from shardstore.sampling.parts import (
    MAX_ROWS,
    SPLIT_VERSION,
    Part,
    block_rows,
    part_sizes,
    split_by_group,
    split_by_value,
    split_evenly,
)
from shardstore.selection import Selection, normalize

KEY = key_of("test")
BLOCK_ROWS = block_rows(0)  # of all but huge tables
HARD = (0, 1, 2, 255, 256, 257, 511, 512, 513, 8192)
ROWS = 10_001
ARRAYS = {
    "x": np.random.default_rng(0).random((ROWS, 3)).astype(np.float32),
    "y": np.arange(ROWS),
    "label": np.random.default_rng(1).choice(np.array([-3, 7, 20], np.int16), ROWS, p=[0.01, 0.3, 0.69]),
    "patient": np.random.default_rng(2).integers(0, 200, ROWS) ** 2,
}

hard_counts = st.sampled_from(HARD) | st.integers(0, 20_000)
seeds = st.integers(-(2**70), 2**70)


@pytest.fixture(scope="module", params=["raw", "zstd"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> shardstore.Store:
    path = tmp_path_factory.mktemp("split_views") / request.param
    return shardstore.open(write_store(path, ARRAYS, request.param, shard_bytes=8192, chunk_bytes=1024))


@st.composite
def sizes_of(draw: st.DrawFn, count: int) -> list[int]:
    cuts = draw(st.lists(st.integers(0, count), max_size=5).map(sorted))
    return np.diff([0, *cuts, count]).tolist()


def whole(part: Part | Selection) -> np.ndarray:
    return part.resolve(np.arange(len(part), dtype=np.int64))


def both(count: int, left: int, key: bytes = KEY) -> tuple[Part, Part]:
    return Part(count, left, True, key), Part(count, left, False, key)


def are_a_partition(rows: Sequence[np.ndarray], count: int) -> bool:
    return np.array_equal(np.sort(np.concatenate(rows)), np.arange(count))


# The two parts of a split


@given(hard_counts, st.data(), st.binary(min_size=64, max_size=64))
def test_every_row_is_in_one_of_two_parts(count: int, data: st.DataObject, key: bytes) -> None:
    left = data.draw(st.integers(0, count) | st.sampled_from([0, min(1, count), max(0, count - 1), count]))
    halves = both(count, left, key)
    assert [len(half) for half in halves] == [left, count - left]
    rows = [whole(half) for half in halves]
    assert all(found.dtype == np.int64 for found in rows)
    assert are_a_partition(rows, count)
    # Blocks come in order, and all full ones give the left part as many rows as any, or one more.
    assert all((np.diff(found // BLOCK_ROWS) >= 0).all() for found in rows)
    full = np.bincount(rows[0] // BLOCK_ROWS, minlength=count // BLOCK_ROWS + 1)[: count // BLOCK_ROWS]
    assert not len(full) or full.max() - full.min() <= 1
    # Any positions, in any order.
    for half, found in zip(halves, rows, strict=True):
        if len(half):
            positions = np.array(data.draw(st.lists(st.integers(0, len(half) - 1), max_size=20)), np.int64)
            assert half.resolve(positions).tolist() == found[positions].tolist()


@given(
    st.sampled_from([10**12, 10**12 - 1, 10**12 // 4096 * 4096, MAX_ROWS, 2**39 - 1, 2**39, 2**39 + 1])
    | st.integers(10**6, MAX_ROWS),
    st.data(),
)
def test_whole_blocks_of_huge_tables(count: int, data: st.DataObject) -> None:
    """Python's integers say which positions of both parts a block has; they must hold just its rows."""
    left = data.draw(
        st.sampled_from([1, count // 10**6, count // 3, count // 10 * 9, count - 1]) | st.integers(0, count)
    )
    halves = both(count, left)
    size = block_rows(count)
    blocks, tail = divmod(count, size)
    left_in_tail = halves[0]._left_in_tail
    assert abs(Fraction(left * tail, count) - left_in_tail) < 1
    inside = left - left_in_tail
    near_the_ends = st.sampled_from([0, 1, blocks // 2, blocks - 2, blocks - 1])
    block = data.draw(near_the_ends | st.integers(0, blocks - 1))
    begin, end = (b * inside // blocks for b in (block, block + 1))
    rows = [
        halves[0].resolve(np.arange(begin, end)),
        halves[1].resolve(np.arange(block * size - begin, (block + 1) * size - end)),
    ]
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(size) + block * size)
    in_tail = (left_in_tail, tail - left_in_tail)
    last = [half.resolve(np.arange(len(half) - n, len(half))) for half, n in zip(halves, in_tail, strict=True)]
    assert np.array_equal(np.sort(np.concatenate(last)), np.arange(blocks * size, count))


def test_too_many_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="too many to split"):
        Part(MAX_ROWS + 1, 1, True, KEY)


def defects(count: int, left: int, key: bytes) -> list[str]:
    """Return what is not random about which rows are in the left part, each check at six standard deviations."""
    rows, found = whole(Part(count, left, True, key)), []
    share, offsets = left / count, rows % BLOCK_ROWS
    blocks = count // BLOCK_ROWS

    def check(name: str, seen: np.ndarray, expected: np.ndarray | float, freedom: int) -> None:
        # Without replacement: the variance is smaller by 1 - share.
        chi2 = ((seen - expected) ** 2 / expected).sum() / (1 - share)
        if abs(chi2 - freedom) > 6 * math.sqrt(2 * freedom):
            found.append(name)

    check("offset", np.bincount(offsets, minlength=BLOCK_ROWS), blocks * share, BLOCK_ROWS - 1)
    for bits in (2, 4, 16, 64):
        check(f"offset modulo {bits}", np.bincount(offsets % bits, minlength=bits), left / bits, bits - 1)
        check(f"piece of {bits}", np.bincount(offsets * bits // BLOCK_ROWS, minlength=bits), left / bits, bits - 1)
    # How many of the even rows, in each block.
    quotas = np.bincount(rows // BLOCK_ROWS, minlength=blocks)
    even = np.bincount(rows[rows % 2 == 0] // BLOCK_ROWS, minlength=blocks)
    check("parity in a block", np.stack([even, quotas - even]), quotas / 2, blocks)
    # What two neighbouring blocks, and two neighbouring rows, have in common.
    member = np.zeros((blocks, BLOCK_ROWS), bool)
    member.ravel()[rows] = True
    for name, pairs in (("blocks", member[1:] & member[:-1]), ("rows", member[:, 1:] & member[:, :-1])):
        # Of one block without replacement, of two blocks independent.
        both = share**2 if name == "blocks" else share * (share * BLOCK_ROWS - 1) / (BLOCK_ROWS - 1)
        if abs(pairs.mean() - both) > 6 * math.sqrt(share**2 * (1 - share**2) / pairs.size):
            found.append(f"neighbouring {name}")
    # The order within a block is random, too.
    steps = np.diff(offsets) > 0
    if abs(steps.mean() - 0.5) > 6 * 0.5 / math.sqrt(len(steps)) + 1 / 1000:
        found.append("order")
    return found


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_which_rows_are_in_a_part_is_random(share: float, seed: int) -> None:
    count = 16_000 * BLOCK_ROWS
    assert defects(count, int(count * share), key_of(str(seed))) == []


def test_the_checks_find_what_is_not_random(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 16_000 * BLOCK_ROWS
    good = parts._shuffled
    bad: dict[str, Any] = {
        "as they are": lambda blocks, places, key, bits: places,
        "all blocks alike": lambda blocks, places, key, bits: good(blocks * 0, places, key, bits),
        "a progression": lambda blocks, places, key, bits: (places * 97 + blocks * 31) % BLOCK_ROWS,
        "pairs stay together": lambda blocks, places, key, bits: (
            good(blocks, places >> 1, key, bits) // 2 * 2 + places % 2
        ),
    }
    for name, shuffled in bad.items():
        monkeypatch.setattr(parts, "_shuffled", shuffled)
        assert defects(count, count // 10, KEY), name
    # Nor would half of the rounds do.
    monkeypatch.setattr(parts, "_shuffled", good)
    monkeypatch.setattr(parts, "_ROUNDS", 3)
    assert defects(count, count // 10, KEY)


# Sizes


@given(hard_counts | st.just(10**12), st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_fractions_become_exact_sizes(count: int, hundredths: list[int]) -> None:
    names = [f"p{i}" for i in range(len(hundredths))]
    exact = [Fraction(n, sum(hundredths)) for n in hundredths]
    sizes = part_sizes(count, {name: float(share) for name, share in zip(names, exact, strict=True)})
    assert list(sizes) == names
    assert sum(sizes.values()) == count
    # float fractions are off by 1e-16 of the rows
    assert all(abs(sizes[name] - share * count) < 1 + 1e-3 for name, share in zip(names, exact, strict=True))


def test_fractions_mean_what_was_written() -> None:
    assert part_sizes(10, {"a": 0.9, "b": 0.1}) == {"a": 9, "b": 1}
    assert part_sizes(5, {"a": 0.3, "b": 0.7}) == {"a": 2, "b": 3}  # 1.5 and 3.5: the first wins
    assert part_sizes(5, {"a": 0.7, "b": 0.3}) == {"a": 4, "b": 1}
    assert part_sizes(4, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}) == {"a": 2, "b": 1, "c": 1}
    assert part_sizes(1, {"a": 0.5, "b": 0.5}) == {"a": 1, "b": 0}
    assert part_sizes(7, {"a": np.int32(3), "b": 0, "c": 4}) == {"a": 3, "b": 0, "c": 4}
    assert part_sizes(0, {"a": 0.5, "b": 0.5}) == part_sizes(0, {"a": 0, "b": 0}) == {"a": 0, "b": 0}


@pytest.mark.parametrize(
    ("shares", "error", "message"),
    [
        ({}, ValueError, "at least one part, such as"),
        ({"a": 0.5, "b": 0.4}, ValueError, "fractions a=0.5, b=0.4 sum to 0.9; expected 1"),
        ({"a": 0.5, "b": 0.5 + 1e-8}, ValueError, "sum to 1.00000001"),
        ({"a": 0.0, "b": 1.0}, ValueError, "part 'a' is 0.0; expected a fraction above 0"),
        ({"a": -0.5, "b": 1.5}, ValueError, "part 'a' is -0.5"),
        ({"a": math.nan, "b": 0.5}, ValueError, "part 'a' is nan"),
        ({"a": math.inf}, ValueError, "part 'a' is inf"),
        ({"a": True}, TypeError, "part 'a' is a bool"),
        ({"a": "0.5"}, TypeError, "part 'a' is a str"),
        ({"a": 0.9, "b": 10}, ValueError, "mix fractions and numbers of rows"),
        ({"a": 60, "b": 41}, ValueError, "sum to 101 rows, but there are 100"),
        ({"a": 101, "b": -1}, ValueError, "part 'b' is to have -1 rows"),
    ],
)
def test_what_are_no_parts_is_refused(shares: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        part_sizes(100, shares)


def test_fractions_may_be_a_billionth_off() -> None:
    assert part_sizes(100, {"a": 0.5, "b": 0.5 + 5e-10}) == {"a": 50, "b": 50}


# Selections


@given(st.data(), hard_counts, seeds)
def test_several_parts_are_a_partition(data: st.DataObject, count: int, seed: int) -> None:
    sizes = data.draw(sizes_of(count))
    chosen = split_evenly(Selection.all(count), sizes, seed)
    assert [len(part) for part in chosen] == sizes
    assert are_a_partition([whole(part) for part in chosen], count)


@given(st.data(), st.sampled_from([*HARD, 40]), seeds)
def test_parts_nest_with_every_index(data: st.DataObject, count: int, seed: int) -> None:
    selection, expected = Selection.all(count), np.arange(count)
    for level in range(data.draw(st.integers(1, 4))):
        if data.draw(st.booleans()):
            chosen = split_evenly(selection, data.draw(sizes_of(len(selection))), seed + level)
            selection = chosen[data.draw(st.integers(0, len(chosen) - 1))]
            expected = whole(selection)
            assert len(np.unique(expected)) == len(expected)
        else:
            index = data.draw(indices(len(expected)) if len(expected) <= 40 else st.builds(slice, st.integers(0, 50)))
            selection, expected = selection.pick(normalize(index, len(selection))), model(expected, index)
            expected, first = np.unique(expected, return_index=True)
            selection = selection.pick(np.sort(first))
            expected = whole(selection)
        assert len(selection) == len(expected)
        assert whole(selection).tolist() == expected.tolist()
        backwards = selection.stride(*slice(None, None, -2).indices(len(selection)))
        assert whole(backwards).tolist() == expected[::-2].tolist()
        assert [selection.row(i) for i in range(min(3, len(expected)))] == expected[:3].tolist()
        assert selection.is_progression == (selection.rows is None and selection.mapped is None)
        if selection.is_contiguous:
            assert (np.diff(expected) == 1).all()


def test_parts_of_huge_tables_take_no_memory_and_keep_near_the_order() -> None:
    table = Selection.all(10**12).pick(slice(10**12 - 1, None, -1))
    train, val, test = split_evenly(table, [8 * 10**11, 10**11, 10**11], 0)
    inner = split_evenly(val.pick(slice(7, -7, 3)), [10**10, (10**11 - 14 + 2) // 3 - 10**10], 1)
    for part in (train, val, test, *inner):
        assert part.rows is None
        assert not part.is_contiguous
        assert len(pickle.dumps(part)) < 1500
        rows = part.pick(slice(10**9, 10**9 + 10**5)).resolve(np.arange(10**5))
        assert len(np.unique(rows)) == 10**5
        # Of a tenth of the rows, nested: no further apart than a few blocks of ten blocks.
        assert np.abs(rows - np.linspace(rows[0], rows[-1], len(rows))).max() < 2 * 30 * 10 * BLOCK_ROWS


def test_fingerprints_tell_selections_apart() -> None:
    table = Selection.all(10_000)
    left, right = split_evenly(table, [9000, 1000], 0)
    different = [
        *(Selection.all(count) for count in (0, 1, 2, 9000, 10_000)),
        table.pick(slice(1, None)),
        table.pick(slice(None, None, -1)),
        table.pick(slice(None, None, 2)),
        table.pick(np.arange(10_000)),
        table.pick(np.arange(10_000)[::-1]),
        *(left, right, left.pick(slice(1, None)), left.pick(slice(None, 1000)), left.pick(np.arange(9000))),
        *split_evenly(table, [9000, 1000], 1),
        *split_evenly(table, [9001, 999], 0),
        *split_evenly(Selection.all(10_001), [9000, 1001], 0),
        *split_evenly(left, [8000, 1000], 0),
        *split_evenly(table.pick(slice(None, None, -1)), [9000, 1000], 0),
    ]
    found = [selection.fingerprint() for selection in different]
    assert len(set(found)) == len(found)
    assert all(len(text) == 16 and int(text, 16) >= 0 for text in found)
    again = [pickle.loads(pickle.dumps(selection)).fingerprint() for selection in different]
    assert again == found
    # Equal choices that were made differently.
    assert table.pick(slice(2, 8)).pick(slice(1, 3)).fingerprint() == table.pick(slice(3, 5)).fingerprint()
    assert table.pick(slice(5, 6, 3)).fingerprint() == table.pick(slice(5, 6)).fingerprint()
    assert table.pick(slice(5, 5)).fingerprint() == table.pick(slice(7, 7, 2)).fingerprint()


# By value and by group


@given(st.lists(st.integers(0, 4), max_size=80), st.data(), seeds)
def test_stratified_parts_are_exact(column: list[int], data: st.DataObject, seed: int) -> None:
    values, count = np.array(column, np.int64), len(column)
    sizes = data.draw(sizes_of(count))
    chosen = split_by_value(values, sizes, seed)
    assert [len(rows) for rows in chosen] == sizes
    assert are_a_partition(chosen, count)
    for rows in chosen:
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()
    levels = max(1, math.ceil(math.log2(len(sizes))))
    for rows, size in zip(chosen, sizes, strict=True):
        for value in set(column):
            quota = size * column.count(value) / count
            assert abs((values[rows] == value).sum() - quota) < levels  # one rounding each


def test_every_row_of_a_value_is_as_likely_in_a_part() -> None:
    column = np.repeat([5, 3, 9], [60, 30, 10])
    seen = np.zeros(100)
    for seed in range(1000):
        seen[split_by_value(column, [80, 20], seed)[1]] += 1
    chi2 = ((seen - 200) ** 2 / 200 / 0.8).sum()
    assert abs(chi2 - 97) < 6 * math.sqrt(2 * 97)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(1, 4), seeds)
def test_no_group_is_in_two_parts(column: list[int], number: int, seed: int) -> None:
    values, count = np.array(column), len(column)
    sizes = {f"p{i}": size for i, size in enumerate(np.diff([i * count // number for i in range(number + 1)]).tolist())}
    largest = max(column.count(value) for value in column)
    if largest > max(sizes.values()):
        with pytest.raises(ValueError, match="groups larger than a split"):
            split_by_group(values, sizes, seed)
        return
    try:
        chosen = split_by_group(values, sizes, seed)
    except ValueError as error:
        assert "gets none of the" in str(error)  # noqa: PT017
        assert len(set(column)) < 2 * number
        return
    assert are_a_partition(chosen, count)
    in_parts = [set(values[rows].tolist()) for rows in chosen]
    assert sum(map(len, in_parts)) == len(set(column))
    # The greedy choice never overfills a part by more than its last group.
    assert all(len(rows) <= size + largest for rows, size in zip(chosen, sizes.values(), strict=True))


def test_groups_of_one_size_fill_parts_exactly_and_at_random() -> None:
    column = np.repeat(np.arange(100), 7)[np.random.default_rng(0).permutation(700)]
    seen = np.zeros(100)
    for seed in range(500):
        train, val = split_by_group(column, {"train": 560, "val": 140}, seed)
        assert (len(train), len(val)) == (560, 140)
        seen[np.unique(column[val])] += 1
    chi2 = ((seen - 100) ** 2 / 100 / 0.8).sum()
    assert abs(chi2 - 99) < 6 * math.sqrt(2 * 99)


# On tables


def test_parts_read_their_rows(store: shardstore.Store) -> None:
    chosen = store.split(train=0.8, val=0.15, test=0.05, seed=4)
    assert list(chosen) == ["train", "val", "test"]
    assert [len(view) for view in chosen.values()] == [8001, 1500, 500]
    assert are_a_partition([view["y"][:] for view in chosen.values()], ROWS)
    for view in chosen.values():
        assert isinstance(view, shardstore.View)
        assert len(pickle.dumps(view)) < 1500
        rows = view["y"][:]
        assert pickle.loads(pickle.dumps(view))["y"][:].tolist() == rows.tolist()
        for index in (slice(10, 20), slice(None, None, -7), slice(3, 3), [5, -1, 5], 7, rows % 2 == 0):
            for name, array in ARRAYS.items():
                expected = array[rows[index]]
                for found in (view[name][index], view[index][name]):
                    assert found.dtype == expected.dtype
                    assert found.shape == expected.shape
                    assert found.tobytes() == expected.tobytes()
                if not isinstance(index, int):
                    assert view.rows(index)[name][:].tobytes() == expected.tobytes()
        assert view.rows(slice(10, 20)).selection.rows is None
        assert view.where(lambda block: block["y"] % 2 == 0, "y")["y"][:].tolist() == rows[rows % 2 == 0].tolist()
        batches = list(view.batches(97, columns="y", with_rows=True))
        assert np.concatenate([batch["y"] for batch in batches]).tolist() == rows.tolist()
        assert np.concatenate([batch["rows"] for batch in batches]).tolist() == rows.tolist()
        shuffled = [batch["y"] for batch in view.batches(97, columns="y", shuffle=True)]
        assert sorted(np.concatenate(shuffled).tolist()) == sorted(rows.tolist())
        assert [int(row["y"]) for row in view.rows(slice(5, 8))] == rows[5:8].tolist()


def test_parts_of_views_and_of_parts(store: shardstore.Store) -> None:
    for view in (
        store.rows(slice(None, None, -3)),
        store.where(lambda block: block["label"] == 7, "label"),
        store.split(a=0.5, b=0.5)["b"].select("y"),
        store.split(a=0.5, b=0.5)["b"].rows(slice(1, None, 2)),
        store.sample(4500, seed=1),
    ):
        chosen = view.split(train=len(view) - 100, val=100)
        assert chosen["train"].columns == view.columns
        assert len(chosen["val"]) == 100
        found = np.concatenate([part["y"][:] for part in chosen.values()])
        assert sorted(found.tolist()) == sorted(view["y"][:].tolist())
        by_value = store.rows(view["y"][:]).split(train=0.9, val=0.1, stratify="label")
        assert sum(map(len, by_value.values())) == len(view)


def test_the_seed_decides(store: shardstore.Store) -> None:
    for how in ({}, {"stratify": "label"}, {"group": "patient"}):
        first, again, other = (store.split(a=0.5, b=0.5, seed=seed, **how)["a"]["y"][:] for seed in (1, 1, 2))
        assert first.tolist() == again.tolist()
        common = len(np.intersect1d(first, other))
        assert abs(common - ROWS / 4) < 6 * math.sqrt(ROWS / 16) + (1000 if how == {"group": "patient"} else 0)


def test_splits_by_the_values_of_a_column(store: shardstore.Store) -> None:
    chosen = store.split(train=0.8, val=0.2, stratify="label")
    for value in (-3, 7, 20):
        count = (ARRAYS["label"] == value).sum()
        assert abs((chosen["val"]["label"][:] == value).sum() - count / 5) < 1
    assert [len(view) for view in chosen.values()] == [8001, 2000]
    groups = store.split(train=0.8, val=0.2, group="patient")
    assert not np.intersect1d(groups["train"]["patient"][:], groups["val"]["patient"][:]).size
    assert abs(len(groups["val"]) - 2000) < 60
    for views in (chosen, groups):
        assert are_a_partition([view["y"][:] for view in views.values()], ROWS)
        assert all((np.diff(view["y"][:]) > 0).all() for view in views.values())


def test_splits_that_make_no_sense_are_refused(store: shardstore.Store) -> None:
    with pytest.raises(ValueError, match="stratify and group do not go together"):
        store.split(a=1.0, stratify="label", group="patient")
    with pytest.raises(ValueError, match="at least one part"):
        store.split()
    with pytest.raises(ValueError, match="sum to 5 rows, but there are 10,001"):
        store.split(a=5)
    with pytest.raises(TypeError, match="seed is a float"):
        store.split(a=1.0, seed=0.5)  # type: ignore[arg-type]
    for argument in ("stratify", "group"):
        with pytest.raises(KeyError, match="no column 'q'"):
            store.split(a=1.0, **{argument: "q"})
        with pytest.raises(ValueError, match=rf"{argument}: column 'x' has rows of shape \(3,\)"):
            store.split(a=1.0, **{argument: "x"})
        with pytest.raises(TypeError, match=f"{argument} is a list; expected the name of a column"):
            store.split(a=1.0, **{argument: [1]})
    count = int((ARRAYS["label"] == 20).sum())
    with pytest.raises(ValueError, match=rf"20 has {count:,} rows, but the largest part, 'b', is to have 5,001"):
        store.split(a=5000, b=5001, group="label")
    with pytest.raises(ValueError, match="part 'c' is to have 10 rows but gets none of the 3 groups"):
        store.split(a=7000, b=2991, c=10, group="label")


def test_empty_tables_have_empty_parts(store: shardstore.Store) -> None:
    nothing = store.rows([])
    for how in ({}, {"stratify": "label"}, {"group": "patient"}):
        for shares in ({"a": 0.5, "b": 0.5}, {"a": 0, "b": 0}):
            chosen = nothing.split(**shares, **how)
            assert [len(view) for view in chosen.values()] == [0, 0]
            assert chosen["a"][:]["x"].shape == (0, 3)


# Splits are promises. If these change, SPLIT_VERSION must change.
GOLDEN: dict[tuple[int, int], list[list[int]]] = {
    (10, 0): [[7, 5, 9, 2, 0], [1, 1, 3, 3, 4], [6, 6, 6, 6, 8]],
    (4096, 0): [[134, 976, 1966, 2834, 3902], [210, 1503, 2178, 3553, 3757], [360, 748, 1853, 2882, 4010]],
    (10000, 0): [[134, 2356, 4996, 7627, 9998], [210, 2148, 4926, 7242, 9800], [360, 2316, 4646, 7449, 9927]],
    (10000, 1180591620717411303424): [
        [151, 2515, 4874, 7672, 9992],
        [485, 2321, 4848, 7415, 9810],
        [172, 2303, 4628, 7439, 9854],
    ],
    (1000000000000, -1): [
        [3438, 250000000102, 500000000278, 750000000129, 999999999418],
        [986, 250000001142, 499999999817, 750000000134, 999999998496],
        [1782, 250000001212, 499999999635, 749999998613, 999999997076],
    ],
}
GOLDEN_BY_VALUE: list[list[int]] = [[0, 2, 4, 5, 6, 13, 15, 17, 18, 19], [1, 3, 8, 10, 12, 14], [7, 9, 11, 16]]
GOLDEN_BY_GROUP: list[list[int]] = [[0, 1, 2, 3, 6, 7, 12, 13, 14, 15, 16, 17, 18, 19], [4, 5, 8, 9, 10, 11]]
GOLDEN_FINGERPRINTS: list[str] = [
    "86d6f2e0935ff822",
    "4101aa0d3f5b6063",
    "3e88b613f5fee4fc",
    "94b1f2118e0a69d8",
    "b153a21fb7a95f08",
]


def golden_parts(count: int, seed: int) -> list[list[int]]:
    sizes = list(part_sizes(count, {"a": 0.5, "b": 0.3, "c": 0.2}).values())
    chosen = split_evenly(Selection.all(count), sizes, seed)
    return [part.resolve(np.arange(5) * (len(part) - 1) // 4).tolist() for part in chosen]


def golden_fingerprints() -> list[str]:
    table = Selection.all(10_000)
    slices = [table, table.pick(slice(9, 2, -2)), table.pick(np.array([3, 1]))]
    return [part.fingerprint() for part in (*slices, *split_evenly(table, [9000, 1000], 0))]


def test_golden_values() -> None:
    assert SPLIT_VERSION == 1
    assert len(GOLDEN) == 5
    for (count, seed), expected in GOLDEN.items():
        assert golden_parts(count, seed) == expected, (count, seed)
    column = np.arange(20) % 3
    assert [rows.tolist() for rows in split_by_value(column, [10, 6, 4], 0)] == GOLDEN_BY_VALUE
    assert [rows.tolist() for rows in split_by_group(np.arange(20) // 2, {"a": 14, "b": 6}, 0)] == GOLDEN_BY_GROUP
    assert golden_fingerprints() == GOLDEN_FINGERPRINTS
