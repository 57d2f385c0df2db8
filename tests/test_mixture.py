"""Mixtures: proportions, rounds and lengths like those of lists that are dealt one row at a time."""

from __future__ import annotations

import json
import math
import pickle
from bisect import bisect_right
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import shardstore
from shardstore.mixture import Mixture, block_quotas, mix
from shardstore.order import (
    BLOCK_ROWS,
    Ends,
    FullShuffle,
    MixtureOrder,
    Order,
    RepeatedWindows,
    Sections,
    Sequential,
    WindowShuffle,
    epoch_key,
    permute,
    source_seed,
)
from tests.stores import write_store

SIZES = (50, 20, 33)

# A mixture's order, dealt one position at a time


def dealt(sizes: list[int], quotas: tuple[int, ...], stop: Ends) -> list[tuple[int, int]]:
    """Return source and position in its own sequence, of all positions of an epoch."""
    size, bounds = sum(quotas), list(accumulate(quotas))
    counts = [0] * len(sizes)
    epoch: list[tuple[int, int]] = []
    while True:
        if len(epoch) % size == 0:
            key = epoch_key(0, 0, f"mixture block {len(epoch) // size}")
            block = permute(size, key, np.arange(size)).tolist()
        source = bisect_right(bounds, block[len(epoch) % size])
        epoch.append((source, counts[source]))
        counts[source] += 1
        if counts[source] % sizes[source]:
            continue
        rounds = [count // rows for count, rows in zip(counts, sizes, strict=True)]
        if (max(rounds) == 1) if stop == "first" else (min(rounds) == stop):
            return epoch


def modelled(orders: list[Order], quotas: tuple[int, ...], stop: Ends, epoch: int) -> list[int]:
    """Return the rows of an epoch."""
    sizes = [order.count for order in orders]
    positions = dealt(sizes, quotas, stop)
    firsts = [0, *accumulate(sizes)]
    begun = [len({own // rows for source, own in positions if source == i}) for i, rows in enumerate(sizes)]
    rounds: dict[tuple[int, int], list[int]] = {}
    rows = []
    for source, own in positions:
        number, inside = divmod(own, sizes[source])
        if (source, number) not in rounds:
            own_epoch = epoch * begun[source] + number
            rounds[source, number] = orders[source].rows(own_epoch, np.arange(sizes[source])).tolist()
        rows.append(firsts[source] + rounds[source, number][inside])
    return rows


@st.composite
def own_orders(draw: st.DrawFn) -> Order:
    rows, seed = draw(st.integers(1, 30)), draw(st.integers(0, 99))
    size = draw(st.integers(1, 8))
    sections = Sections(rows, size, draw(st.integers(0, size - 1)))
    windows = WindowShuffle(sections, draw(st.integers(1, 4)), seed)
    choices: list[Order] = [Sequential(rows), FullShuffle(rows, seed), windows]
    return draw(st.sampled_from(choices))


@st.composite
def mixture_orders(draw: st.DrawFn) -> MixtureOrder:
    orders = draw(st.lists(own_orders(), min_size=1, max_size=5))
    quotas = draw(st.lists(st.integers(1, 9), min_size=len(orders), max_size=len(orders)))
    return MixtureOrder(tuple(orders), tuple(quotas), draw(st.sampled_from(["first", 1, 2, 3])), 0)


def every_row(order: Order, epoch: int) -> list[int]:
    return [int(row) for row in order.rows(epoch, np.arange(order.count))]


@given(mixture_orders(), st.integers(0, 3), st.data())
def test_rows_come_as_if_dealt_one_by_one(order: MixtureOrder, epoch: int, data: st.DataObject) -> None:
    expected = modelled(list(order.orders), order.quotas, order.stop, epoch)
    assert order.count == len(expected)
    assert every_row(order, epoch) == expected
    some = data.draw(st.lists(st.integers(0, order.count - 1), max_size=20))
    assert order.rows(epoch, np.array(some, np.int64)).tolist() == [expected[i] for i in some]


@given(mixture_orders(), st.integers(0, 3))
def test_a_round_has_every_row_once_in_the_sources_own_order(order: MixtureOrder, epoch: int) -> None:
    rows = every_row(order, epoch)
    firsts = [0, *accumulate(own.count for own in order.orders)]
    for i, own in enumerate(order.orders):
        mine = [row - firsts[i] for row in rows if firsts[i] <= row < firsts[i + 1]]
        begun = -(-len(mine) // own.count)
        assert order.sources[i].rounds == begun
        for number in range(begun):
            part = mine[number * own.count : (number + 1) * own.count]
            assert part == every_row(own, epoch * begun + number)[: len(part)]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 3))
def test_where_an_epoch_ends(sizes: list[int], rounds: int) -> None:
    quotas = tuple(1 + i % 3 for i in range(len(sizes)))
    orders = tuple(Sequential(size) for size in sizes)
    for stop in ("first", rounds):
        order = MixtureOrder(orders, quotas, stop, 0)
        counts = [0] * len(sizes)
        for source, where, _ in order.deal(np.arange(order.count)):
            counts[source] = len(where)
        through = [count // size for count, size in zip(counts, sizes, strict=True)]
        last = order.deal(np.array([order.count - 1]))[0][0]
        if stop == "first":
            assert [i for i, number in enumerate(through) if number] == [last]
            assert counts[last] == sizes[last]
        else:
            assert min(through) == rounds
            assert counts[last] == rounds * sizes[last]


@pytest.mark.parametrize(
    ("sizes", "weights"),
    [
        ([1, 1], [1, 1]),
        ([1, 1000], [1, 1000]),
        ([100, 1], [1, 1000]),
        ([70, 70_000], [1, 1000]),
        ([40_000, 40_000], [1, 1]),
        ([65_536, 3], [1, 1]),
        ([30_000, 30_001, 2], [0.5, 0.3, 0.2]),
    ],
)
@pytest.mark.parametrize("stop", ["first", 1, 2])
def test_lengths_with_whole_blocks(sizes: list[int], weights: list[float], stop: Ends) -> None:
    quotas = block_quotas([Fraction(str(weight)) for weight in weights])
    assert sum(quotas) > 60_000
    order = MixtureOrder(tuple(Sequential(size) for size in sizes), quotas, stop, 0)
    assert order.count == len(dealt(sizes, quotas, stop))


def test_epochs_and_rounds_and_equal_sources_all_differ() -> None:
    order = MixtureOrder(tuple(FullShuffle(50, source_seed(1, i)) for i in range(2)), (1, 1), 3, 1)
    seen = []
    for epoch in range(3):
        rows = np.array(every_row(order, epoch))
        for source in (0, 1):
            mine = rows[rows // 50 == source] - 50 * source
            seen += [tuple(mine[start : start + 50]) for start in range(0, 150, 50)]
    assert all(sorted(rows) == list(range(50)) for rows in seen)
    assert len(set(seen)) == len(seen) == 18


@pytest.mark.parametrize("in_rounds", [True, False])
def test_windows_hold_the_rows_of_every_position(in_rounds: bool) -> None:
    order = RepeatedWindows(WindowShuffle(Sections(20, 3), 2, 7), 3)
    rng = np.random.default_rng(0)
    rounds = [20 * number + rng.permutation(20) for number in range(3)]
    positions = np.concatenate(rounds) if in_rounds else rng.permutation(60)
    rows = np.full(60, -1)
    for window, where, places in order.windows(4, positions):
        rows[where] = window.rows(places)
    assert rows.tolist() == order.rows(4, positions).tolist()


def test_an_order_too_long_to_count() -> None:
    order = MixtureOrder((Sequential(2**61), Sequential(2**61)), (1, 1), 2, 0)
    with pytest.raises(ValueError, match="an epoch of the mixture would have 9,223,37"):
        _ = order.count


def test_an_order_takes_no_memory() -> None:
    order = MixtureOrder((FullShuffle(2**40, 1), Sequential(2**41)), (1, 2), "first", 0)
    assert 3 * 2**40 - 6 < order.count <= 3 * 2**40 + 3
    rows = order.rows(0, np.arange(order.count - 1000, order.count))
    assert len(set(rows.tolist())) == 1000
    assert len(pickle.dumps(order)) < 1000


GOLDEN_SEEDS = [13729969076077058299, 12742112484317775371, 14671614889584614602]
GOLDEN_COUNT = 400_101
GOLDEN_ROWS = [
    [71030, 84872, 46783, 64497, 83293, 170616, 165945, 197406, 37007, 84994, 79728, 47097, 17510],
    [92622, 78797, 706, 44597, 25657, 152792, 155217, 164708, 4252, 9199, 29412, 64477, 70939],
]


# Orders are promises. If these change, ORDER_VERSION must change, and the old version must stay readable.
def test_golden_values() -> None:
    assert block_quotas([Fraction(3), Fraction(1)]) == (49152, 16384)
    assert [source_seed(seed, number) for seed, number in ((0, 0), (0, 1), (-7, 2))] == GOLDEN_SEEDS
    order = MixtureOrder(tuple(FullShuffle(100_000, source_seed(0, i)) for i in range(2)), (49152, 16384), 1, 0)
    assert order.count == GOLDEN_COUNT
    places = [0, 1, 2, 3, 4, 5, 6, 7, 65_535, 65_536, 200_000, 300_000, 399_000]
    for epoch in (0, 1):
        assert order.rows(epoch, np.array(places)).tolist() == GOLDEN_ROWS[epoch]


# Proportions

weights = st.one_of(
    st.integers(1, 10**6),
    st.floats(1e-300, 1e300),
    st.sampled_from([0.1, 0.2, 0.7, 1 / 3, 2.5, Fraction(2, 7)]),
)


@given(st.lists(weights, min_size=1, max_size=30))
def test_quotas_are_the_weights_parts(weights: list[Any]) -> None:
    exact = [Fraction(weight) for weight in weights]
    quotas, total = block_quotas(exact), sum(exact)
    assert min(quotas) >= 1
    assert BLOCK_ROWS // 2 < sum(quotas) <= BLOCK_ROWS
    rare = sum(weight * BLOCK_ROWS < total for weight in exact)
    for weight, quota in zip(exact, quotas, strict=True):
        share = weight / total * sum(quotas)
        # What rare sources have more than their part, the others have less.
        assert quota == 1 or -1 - rare * weight / total < quota - share < 1
    ratio = [weight / exact[0] for weight in exact]
    whole = math.lcm(*(part.denominator for part in ratio))
    if sum(part * whole for part in ratio) <= BLOCK_ROWS:
        assert [Fraction(quota, quotas[0]) for quota in quotas] == ratio


@pytest.mark.parametrize(
    ("weights", "quotas"),
    [
        ({"a": 0.7, "b": 0.2, "c": 0.1}, (45_871, 13_106, 6_553)),
        ({"a": 1 / 3, "b": 2 / 3}, (21_845, 43_690)),
        ({"a": 1, "b": np.float32(2), "c": np.int8(1)}, (16_384, 32_768, 16_384)),
        ({"a": 10**400, "b": 10**400}, (32_768, 32_768)),
        ({"a": 1e300, "b": 1e-300}, (65_535, 1)),
        ({"a": math.pi, "b": 1.0}, (49_712, 15_824)),
    ],
)
def test_weights_become_quotas(stores: dict[str, Path], weights: dict[str, Any], quotas: tuple[int, ...]) -> None:
    paths = dict(zip(weights, stores.values(), strict=False))
    order = mix({paths[name]: weight for name, weight in weights.items()}).plan(1).order
    assert isinstance(order, MixtureOrder)
    assert order.quotas == quotas


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=5))
@settings(max_examples=10)
def test_every_block_has_its_quotas(weights: list[int]) -> None:
    quotas = block_quotas([Fraction(weight) for weight in weights])
    order = MixtureOrder(tuple(Sequential(10**6) for _ in weights), quotas, 1, 0)
    patterns = set()
    for block in range(3):
        parts = order.deal(block * sum(quotas) + np.arange(sum(quotas)))
        assert [(source, len(where)) for source, where, _ in parts] == list(enumerate(quotas))
        for (_, _, own), quota in zip(parts, quotas, strict=True):
            assert own.tolist() == list(range(block * quota, (block + 1) * quota))
        patterns.add(tuple(parts[0][1].tolist()))
    assert len(patterns) == (3 if len(weights) > 1 else 1)


def test_more_sources_than_a_byte_counts() -> None:
    sizes = [1 + i % 3 for i in range(300)]
    quotas = block_quotas([Fraction(1)] * 300)
    order = MixtureOrder(tuple(FullShuffle(size, 5) for size in sizes), quotas, 1, 0)
    assert every_row(order, 2) == modelled(list(order.orders), quotas, 1, 2)


# Streams over stores


def columns_of(source: int, rows: int) -> dict[str, NDArray[Any]]:
    numbers = np.arange(rows) + 1000 * source
    return {
        "id": numbers,
        "x": np.stack([numbers, -numbers], 1).astype(np.float32),
        f"only{source}": np.zeros(rows),
    }


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stores")
    codecs = {"raw": "raw", "zstd": "zstd", "lz4": "blosc:lz4"}
    parts = enumerate(zip(codecs.items(), SIZES, strict=True))
    return {name: write_store(folder / name, columns_of(i, rows), codec) for i, ((name, codec), rows) in parts}


@pytest.fixture(scope="module")
def mixture(stores: dict[str, Path]) -> Mixture:
    return mix(dict(zip(stores.values(), (3, 1, 2), strict=True)), stop="all")


def ids(batches: Any) -> list[int]:
    """Return the ids of all rows that are no copies, after a look at their other columns."""
    found: list[int] = []
    for batch in batches:
        numbers = batch["id"]
        assert batch["x"].tolist() == [[number, -number] for number in numbers.tolist()]
        if "rows" in batch:
            assert (batch["source"] * 1000 + batch["rows"]).tolist() == numbers.tolist()
        found += numbers[batch.get("mask", slice(None))].tolist()
    return found


def planned(mixture: Mixture, epoch: int, **options: Any) -> list[int]:
    """Return the ids that an epoch's order has."""
    numbers = np.concatenate([1000 * i + np.arange(rows) for i, rows in enumerate(SIZES)])
    return [int(number) for number in numbers[every_row(mixture.plan(1, **options).order, epoch)]]


def test_what_a_mixture_is(mixture: Mixture, stores: dict[str, Path]) -> None:
    assert mixture.columns == ("id", "x")
    assert mixture.select("x").columns == ("x",)
    assert mixture.schema == {name: shardstore.open(stores["zstd"]).schema[name] for name in ("id", "x")}
    assert mixture.sources == tuple(map(str, stores.values()))
    assert repr(mixture).startswith(f"Mixture({len(mixture):,} rows of {{id: int64, x: float32[2]}} from 50% '")
    assert repr(mixture).endswith("stop=1)")
    assert shardstore.mix is mix


@pytest.mark.parametrize("shuffle", [False, True, "full", "window"])
@pytest.mark.parametrize("stop", ["first", "all", 3])
def test_batches_are_the_plans_rows(stores: dict[str, Path], shuffle: Any, stop: Any) -> None:
    mixture = mix(dict(zip(stores.values(), (3, 1, 2), strict=True)), stop)
    options = {"shuffle": shuffle, "seed": 4, "window_bytes": 800}
    for batch_size in (1, 7, 1000):
        stream = mixture.batches(batch_size, with_rows=True, **options)
        for epoch in range(2):
            batches = list(stream)
            assert len(batches) == len(stream) == -(-len(mixture) // batch_size)
            assert ids(batches) == planned(mixture, epoch, **options)
            assert all(batch["rows"].dtype == batch["source"].dtype == np.int64 for batch in batches)
    assert (planned(mixture, 0, **options) == planned(mixture, 1, **options)) is (shuffle is False)


def test_sources_in_their_own_order(mixture: Mixture) -> None:
    found = ids(mixture.batches(10))
    for source, rows in enumerate(SIZES):
        mine = [number - 1000 * source for number in found if number // 1000 == source]
        assert mine == [k % rows for k in range(len(mine))]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("remainder", ["drop", "pad"])
@pytest.mark.parametrize("shuffle", [False, "full", "window"])
def test_ranks_share_an_epoch(mixture: Mixture, world_size: int, remainder: Any, shuffle: Any) -> None:
    options = {"shuffle": shuffle, "seed": 2, "window_bytes": 800}
    expected = planned(mixture, 0, **options)
    for batch_size in (1, 4, 9):
        streams = [
            mixture.batches(
                batch_size, remainder=remainder, rank=rank, world_size=world_size, with_rows=True, **options
            )
            for rank in range(world_size)
        ]
        steps = list(zip(*streams, strict=True))
        found = ids(batch for step in steps for batch in step)
        whole = len(expected) // (batch_size * world_size) * batch_size * world_size
        assert found == (expected if remainder == "pad" else expected[:whole])
        assert all(len(batch["id"]) == batch_size for step in steps for batch in step)


@given(
    st.sampled_from([False, "full", "window"]),
    st.lists(
        st.tuples(st.integers(1, 25), st.integers(1, 4), st.sampled_from(["drop", "pad"]), st.integers(0, 6)),
        min_size=1,
        max_size=4,
    ),
)
def test_a_state_goes_on_with_exactly_the_rest(
    mixture: Mixture, shuffle: Any, runs: list[tuple[int, int, Any, int]]
) -> None:
    options = {"shuffle": shuffle, "seed": 3, "window_bytes": 800, "with_rows": True}
    expected = planned(mixture, 0, shuffle=shuffle, seed=3, window_bytes=800)
    state: dict[str, Any] | None = None
    found: list[int] = []
    for batch_size, world_size, remainder, steps in runs:
        streams = [
            mixture.batches(batch_size, remainder=remainder, rank=rank, world_size=world_size, **options)
            for rank in range(world_size)
        ]
        if state is not None:
            for stream in streams:
                stream.load_state_dict(state)
        iterators = [iter(stream) for stream in streams]
        left = (len(expected) - len(found)) // (batch_size * world_size)  # whole steps only, so none is a copy
        for _ in range(min(steps, left)):
            found += ids(next(iterator) for iterator in iterators)
        states = [json.dumps(stream.state_dict()) for stream in streams]
        assert len(set(states)) == 1
        assert len(states[0]) < 1024
        state = json.loads(states[0])
    last = mixture.batches(5, **options)
    last.load_state_dict(state or {})
    if len(found) < len(expected):
        assert found + ids(last) == expected
    else:
        assert found == expected


def test_states_of_other_mixtures_are_refused(stores: dict[str, Path], mixture: Mixture) -> None:
    state = mixture.batches(5, shuffle=True, seed=1).state_dict()
    paths = list(stores.values())
    weights = dict(zip(paths, (3, 1, 2), strict=True))
    others = [
        (mix(weights, "all").batches(5, shuffle=True, seed=2), "seed=1, this stream has seed=2"),
        (mix(weights, "all").batches(5, shuffle="full", seed=1), "orders="),
        (mix({**weights, paths[0]: 4}, "all").batches(5, shuffle=True, seed=1), "weights="),
        (mix(weights, "first").batches(5, shuffle=True, seed=1), "stop=1, this stream has stop='first'"),
        (mix({path: weights[path] for path in paths[::-1]}, "all").batches(5, shuffle=True, seed=1), "store="),
        (shardstore.open(paths[0]).batches(5, shuffle=True, seed=1), "store="),
    ]
    for stream, message in others:
        with pytest.raises(shardstore.StateError, match=message):
            stream.load_state_dict(state)
    same = mix(weights, "all").select("x").batches(7, shuffle=True, seed=1)
    same.load_state_dict(state)


def test_a_state_is_small_with_many_sources(stores: dict[str, Path]) -> None:
    store = shardstore.open(stores["zstd"])
    mixture = mix({store.rows(slice(k, None)): 1 + k / 7 for k in range(20)}, stop=10**6)
    stream = mixture.batches(100, shuffle=True, seed=2**70, epochs=None)
    stream.set_epoch(10**9)
    assert len(json.dumps(stream.state_dict())) < 1024


@pytest.mark.parametrize("batch_size", [1, 6, 100])
def test_chunks_are_decoded_once_a_round(tmp_path: Path, batch_size: int) -> None:
    columns = {"id": np.arange(208)}
    small = shardstore.open(write_store(tmp_path / "small", columns, "zstd"))  # 26 chunks of 8 rows
    other = shardstore.open(write_store(tmp_path / "other", columns, "zstd"))
    # Three chunks a window each; what has the smaller weight is through last, at the end of its second round.
    stream = mix({small: 1, other: 3}, stop=2).batches(batch_size, shuffle=True, window_bytes=2 * 3 * 64)
    windows = [order.window for order in stream.plan.order.orders]  # type: ignore[attr-defined]
    assert windows == [3, 3]
    counts = np.zeros(208, np.int64)
    for batch in stream:
        np.add.at(counts, batch["id"], 1)
    assert small.chunks_decoded == 2 * 26
    rounds = (counts.sum() - 2 * 208) / 208
    assert int(rounds) * 26 <= other.chunks_decoded <= math.ceil(rounds) * 26


@given(st.data(), st.sampled_from([False, "full", "window"]))
def test_feeds_give_the_rows_of_any_positions(stores: dict[str, Path], data: st.DataObject, shuffle: Any) -> None:
    mixture = mix(dict(zip(stores.values(), (1, 2, 3), strict=True)), stop=2)
    options = {"shuffle": shuffle, "window_bytes": 800}
    expected = planned(mixture, 1, **options)
    feed = mixture.source(mixture.plan(1, **options).order).feed()
    for _ in range(2):
        first = data.draw(st.integers(0, len(expected) - 1))
        last = data.draw(st.integers(first, len(expected) - 1))  # few of them are of one round, in any order
        rng = np.random.default_rng(data.draw(st.integers(0, 999)))
        positions = rng.integers(first, last + 1, data.draw(st.integers(1, 200)))
        located = feed.locate(1, positions)
        start = data.draw(st.integers(0, len(positions) - 1))
        stop = data.draw(st.integers(start + 1, len(positions)))
        batch = {**located.gather(start, stop), **located.names(start, stop)}
        assert ids([batch]) == [expected[position] for position in positions[start:stop]]


def test_views_are_sources(stores: dict[str, Path]) -> None:
    raw, zstd = shardstore.open(stores["raw"]), shardstore.open(stores["zstd"])
    some, odd, last = raw.rows([5, 1, 9]), zstd.rows(slice(1, None, 2)).select("x", "id"), raw.rows(slice(-4, None))
    mixture = mix({some: 1, odd: 2, last: 1, str(stores["lz4"]): 1, stores["lz4"]: 1}, stop=2)
    assert mixture.columns == ("id", "x")
    assert mixture.sources[0] == mixture.sources[2] == str(stores["raw"])
    rows = [[5, 1, 9], list(range(1, 20, 2)), [46, 47, 48, 49], list(range(33)), list(range(33))]
    stores_of = [0, 1, 0, 2, 2]
    for shuffle in (False, True):
        batches = list(mixture.batches(11, shuffle=shuffle, with_rows=True))
        found = {name: np.concatenate([batch[name] for batch in batches]) for name in ("rows", "source", "id", "x")}
        assert (found["x"][:, 1] == -found["id"]).all()
        assert (found["id"] == found["rows"] + 1000 * np.array(stores_of)[found["source"]]).all()
        for source, own in enumerate(rows):
            mine = found["rows"][found["source"] == source].tolist()
            assert len(mine) >= 2 * len(own)
            assert sorted(mine[: len(own)]) == sorted(own)
            if not shuffle:
                assert mine == [own[k % len(own)] for k in range(len(mine))]


def test_batches_are_fresh_and_writable(mixture: Mixture) -> None:
    for batch in mixture.batches(1, with_rows=True):
        for array in batch.values():
            assert array.flags.writeable
            array[:] = 0
    assert ids(mixture.batches(7)) == planned(mixture, 0)


def test_pickling(mixture: Mixture, stores: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    data = pickle.dumps(mixture)
    assert len(data) < 1500
    stream = mixture.batches(10, shuffle=True, with_rows=True)
    next(iter(stream))
    streamed = pickle.dumps(stream)
    assert len(streamed) < 3000
    with monkeypatch.context() as patch:
        patch.setattr("shardstore.store_files.OpenedStore", None)  # nothing is opened
        copy, copied = pickle.loads(data), pickle.loads(streamed)
    assert copy.sources == mixture.sources
    assert ids(copy.batches(10, shuffle=True)) == planned(mixture, 0, shuffle=True)
    assert ids(copied) == ids(stream)
    assert copied.state_dict() == stream.state_dict()


def test_windowed_sources_share_the_window_bytes(mixture: Mixture) -> None:
    def windows(**options: Any) -> list[int | None]:
        order = mixture.plan(1, **options).order
        assert isinstance(order, MixtureOrder)
        return [own.window if isinstance(own, WindowShuffle) else None for own in order.orders]

    # All columns of these stores are compressed: chunks of 8 rows of 24 bytes.
    assert windows(shuffle=True, window_bytes=2 * 5 * 8 * 24) == [None, 5, 5]
    assert windows(shuffle="window", window_bytes=1) == [1, 1, 1]
    assert windows(shuffle="full") == [None, None, None]


# Bad input


@pytest.mark.parametrize(
    ("weight", "error"),
    [
        (0, ValueError),
        (0.0, ValueError),
        (-1, ValueError),
        (-0.5, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        ("1", TypeError),
        (None, TypeError),
        (True, TypeError),
        (1j, TypeError),
    ],
)
def test_bad_weights(stores: dict[str, Path], weight: Any, error: type[Exception]) -> None:
    shown = type(weight).__name__ if error is TypeError else str(weight)
    with pytest.raises(error, match=rf"the weight of .*zstd.* is (a )?{shown}; expected a positive"):
        mix({stores["raw"]: 1, stores["zstd"]: weight})


@pytest.mark.parametrize(
    ("stop", "error", "message"),
    [
        ("last", ValueError, "stop is 'last'; expected 'first', 'all' or a number"),
        (0, ValueError, "stop is 0; expected at least 1"),
        (-3, ValueError, "stop is -3"),
        (True, TypeError, "stop is a bool"),
        (1.0, TypeError, "stop is a float"),
        (None, TypeError, "stop is a NoneType"),
    ],
)
def test_bad_stops(stores: dict[str, Path], stop: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mix({stores["raw"]: 1}, stop)


def test_bad_sources(stores: dict[str, Path], tmp_path: Path) -> None:
    bad: list[tuple[Any, type[Exception], str]] = [
        ({}, ValueError, "at least one source, found none"),
        ([stores["raw"]], TypeError, "sources are a list; expected a dict"),
        ({3: 1}, TypeError, "a source is a int"),
        (dict.fromkeys(range(BLOCK_ROWS + 1), 1), ValueError, "at most 65,536 sources, found 65,537"),
        ({tmp_path / "none": 1}, shardstore.FormatError, "none"),
        ({shardstore.open(stores["raw"]).rows([]): 1}, ValueError, "raw has no rows to mix"),
    ]
    for sources, error, message in bad:
        with pytest.raises(error, match=message):
            mix(sources)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"id": np.zeros(3, np.int32)}, "column 'id' is int64 in .*raw, but int32 in .*other"),
        ({"x": np.zeros((3, 3), np.float32)}, r"column 'x' is float32\[2\] in .*raw, but float32\[3\] in .*other"),
        ({"y": np.zeros(3)}, "no column in common: .*raw has id, x, only0; .*other has y"),
    ],
)
def test_columns_that_do_not_fit(
    stores: dict[str, Path], tmp_path: Path, column: dict[str, NDArray[Any]], message: str
) -> None:
    other = write_store(tmp_path / "other", column)
    with pytest.raises(shardstore.SchemaError, match=message):
        mix({stores["raw"]: 1, other: 1})


def test_bad_arguments_of_streams(mixture: Mixture) -> None:
    bad: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"lanes": 2, "shuffle": "window"}, ValueError, "lanes is 2; a mixture has one lane"),
        ({"seed": 1.5}, TypeError, "seed is a float"),
        ({"shuffle": "some"}, ValueError, "shuffle is 'some'"),
        ({"window_bytes": "x"}, shardstore.SchemaError, "not a size in bytes"),
        ({"columns": "q"}, KeyError, "no column 'q'"),
        ({"columns": ["x", "x"]}, ValueError, "expected different column names"),
        ({"columns": "only0"}, KeyError, "no column 'only0'"),
        ({"world_size": 2}, ValueError, "remainder='keep'"),
    ]
    for arguments, error, message in bad:
        with pytest.raises(error, match=message):
            mixture.batches(10, **arguments)
    with pytest.raises(TypeError, match="found a Sequential"):
        mixture.source(Sequential(10))


def test_a_column_named_source(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", {"source": np.arange(9), "x": np.arange(9)})
    mixture = mix({store: 1})
    with pytest.raises(ValueError, match="adds 'source' to a batch, but there is a column of this name: leave it out"):
        mixture.batches(4, with_rows=True)
    assert [batch["source"].tolist() for batch in mixture.batches(9)] == [list(range(9))]
    batch = next(iter(mixture.batches(9, columns="x", with_rows=True)))
    assert batch["source"].tolist() == [0] * 9
    plain = next(iter(shardstore.open(store).batches(9, with_rows=True)))
    assert plain["source"].tolist() == plain["rows"].tolist() == list(range(9))


def test_ragged_columns_and_categories_mix(tmp_path: Path) -> None:
    stores = {}
    for number, name in enumerate(("a", "b")):
        codec = {"r": ("raw", "zstd")[number]}
        with shardstore.Writer(tmp_path / name, types={"c": "categorical", "r": "ragged"}, codec=codec) as writer:
            rows = [np.arange(i % 7) + 1000 * number for i in range(100)]
            writer.append({"r": rows, "t": [f"{name}{i}" for i in range(100)], "c": ["x", "y"] * 50})
        stores[name] = shardstore.open(tmp_path / name)
    for shuffle in (False, "full", "window"):
        seen = []
        for batch in shardstore.mix({stores["a"]: 1, stores["b"]: 1}).batches(7, shuffle=shuffle, with_rows=True):
            for row, text, source, number in zip(batch["r"], batch["t"], batch["source"], batch["rows"], strict=True):
                assert row.tolist() == [i + 1000 * source for i in range(number % 7)]
                assert text == f"{'ab'[source]}{number}"
            seen += batch["t"].to_list()
        assert len(set(seen)) == len(seen) > 100  # it ends with the source that is first through
    with shardstore.Writer(tmp_path / "c", types={"c": "categorical"}) as writer:
        writer.append({"c": ["y", "x"]})
    with pytest.raises(shardstore.SchemaError, match="categorical of 2 with other categories"):
        shardstore.mix({stores["a"]: 1, tmp_path / "c": 1})
