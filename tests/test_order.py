"""The permutation: a bijection at every size, the same for ever, and uniform; `test_quality` measures the rest."""

from __future__ import annotations

import math
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardstore.order import ORDER_VERSION, FullShuffle, epoch_key, permute
from shardstore.order.permutation import SORTED_ROWS

KEY = epoch_key(0, 0)


def whole(count: int, key: bytes = KEY) -> np.ndarray:
    return permute(count, key, np.arange(count, dtype=np.int64))


def is_permutation(values: np.ndarray) -> bool:
    return bool((np.bincount(values, minlength=len(values)) == 1).all()) if len(values) else True


def test_bijective_for_every_small_count() -> None:
    for count in range(5001):
        assert is_permutation(whole(count)), count


@pytest.mark.parametrize("bits", range(12, 22))
def test_bijective_around_powers_of_two(bits: int) -> None:
    for count in (2**bits - 1, 2**bits, 2**bits + 1):
        assert is_permutation(whole(count)), count


@given(st.integers(SORTED_ROWS - 2, 200_000), st.integers(), st.integers(0, 10**6))
def test_bijective_for_any_count_seed_and_epoch(count: int, seed: int, epoch: int) -> None:
    assert is_permutation(whole(count, epoch_key(seed, epoch)))


@given(st.integers(1, 2**62), st.integers(0, 2**62), st.binary(min_size=64, max_size=64))
def test_windows_of_huge_ranges_stay_inside_and_apart(count: int, start: int, key: bytes) -> None:
    start %= count
    positions = np.arange(start, min(start + 1000, count), dtype=np.int64)
    rows = permute(count, key, positions)
    assert rows.dtype == np.int64
    assert rows.min() >= 0
    assert rows.max() < count
    assert len(np.unique(rows)) == len(positions)


@given(st.integers(1, 50_000), st.data())
def test_any_positions_in_any_order_give_the_same_rows(count: int, data: st.DataObject) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=50)), np.int64)
    assert permute(count, KEY, positions).tolist() == whole(count)[positions].tolist()


@pytest.mark.parametrize("count", [2**32 - 1, 2**32, 2**32 + 1])
def test_walking_at_the_end_of_32_bits(count: int) -> None:
    positions = np.arange(count - 5000, count, dtype=np.int64)
    rows = permute(count, KEY, positions)
    assert rows.max() < count
    assert len(np.unique(rows)) == 5000


# Orders are promises. If these change, ORDER_VERSION must change, and the old version must stay readable.
GOLDEN = {
    (1, 0, 0): [0],
    (2, 0, 0): [1, 0],
    (10, 0, 0): [2, 6, 1, 3, 0, 8, 4, 5],
    (10, 0, 1): [5, 6, 0, 8, 1, 4, 9, 2],
    (10, 1, 0): [1, 7, 0, 6, 4, 8, 9, 2],
    (10, -1, 0): [9, 3, 4, 2, 1, 6, 7, 5],
    (4096, 0, 0): [2935, 1960, 3526, 472, 1760, 1843, 1632, 2102],
    (4097, 0, 0): [294, 2566, 1688, 3129, 2116, 2040, 3723, 958],
    (60000, 0, 0): [56280, 13982, 56541, 32011, 19693, 38046, 47945, 47238],
    (60000, 1180591620717411303424, 3): [26887, 11187, 2252, 8607, 27767, 9706, 3489, 49033],
    (600000, 0, 0): [226370, 11776, 245850, 112242, 316487, 565517, 113699, 361692],
    (600000, 41, 1): [552751, 592728, 570072, 248861, 304280, 588417, 354239, 80626],
    (1000000007, 0, 0): [374652958, 532783167, 561270813, 813414726, 258153135, 950883124, 585520147, 505702347],
    (4294967296, 0, 0): [2156269652, 179293448, 3190952558, 1835791141, 941983039, 3519942667, 3595163903, 2199551861],
    (4294967297, 0, 0): [636934954, 2382962089, 2910141116, 2960088616, 1409592481, 415622999, 800926346, 4231729556],
    (1000000000000, 0, 0): [
        169915626620,
        61360658700,
        451060106416,
        208366868001,
        134212133476,
        310350268457,
        225695202104,
        159920641010,
    ],
    (4611686018427387904, 5, 7): [
        2309593544118057823,
        1433623138362158772,
        1946386515466522570,
        925032102647450054,
        1189753410725618393,
        4055325142355651643,
        3265033489168620777,
        2234754083188034203,
    ],
}


def test_golden_values() -> None:
    assert ORDER_VERSION == 1
    for (count, seed, epoch), expected in GOLDEN.items():
        steps = max(1, len(expected) - 1)
        positions = np.array([i * (count - 1) // steps for i in range(len(expected))], np.int64)
        assert FullShuffle(count, seed).rows(epoch, positions).tolist() == expected, (count, seed, epoch)


def test_seed_and_epoch_are_hashed_not_added() -> None:
    keys = {epoch_key(seed, epoch) for seed in range(-20, 20) for epoch in range(20)}
    assert len(keys) == 800
    assert epoch_key(41, 1) != epoch_key(42, 0)
    # Neither do the digits of one run into the other.
    assert epoch_key(1, 11) != epoch_key(11, 1)


def test_every_permutation_of_few_rows_is_as_likely() -> None:
    for count in (2, 3, 4, 5):
        trials = math.factorial(count) * 50
        seen = Counter(tuple(whole(count, epoch_key(seed, 0)).tolist()) for seed in range(trials))
        chi2 = sum((seen[p] - 50) ** 2 / 50 for p in permutations(range(count)))
        freedom = math.factorial(count) - 1
        assert abs(chi2 - freedom) < 5 * math.sqrt(2 * freedom), count


def test_epochs_and_neighbouring_seeds_are_unrelated() -> None:
    count = 50_000
    orders = [whole(count, epoch_key(seed, epoch)) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert abs(np.corrcoef(one, other)[0, 1]) < 5 / math.sqrt(count)
            assert (one == other).sum() < 12  # one is expected
