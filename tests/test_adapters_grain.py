"""Stores and views as random access sources: of Grain's pipelines, and of PyTorch's DataLoader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("grain", reason="grain is not installed")

import grain
from grain.sources import RandomAccessDataSource

import shardstore

ROWS = 300
BATCH = 32


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> shardstore.Store:
    path = tmp_path_factory.mktemp("grain") / "s"
    with shardstore.Writer(path, codec={"z": "zstd"}, shard_bytes=2048, chunk_bytes=256) as writer:
        writer.append({"x": np.arange(ROWS * 2).reshape(ROWS, 2), "y": np.arange(ROWS), "z": np.arange(ROWS) % 7})
    return shardstore.open(path)


@pytest.fixture(params=["store", "view"])
def table(request: pytest.FixtureRequest, store: shardstore.Store) -> shardstore.Store | shardstore.View:
    if request.param == "store":
        return store
    return store.where(lambda block: block["z"] != 3, "z").select("x", "y")


def values(batches: Any) -> list[list[int]]:
    return [batch["y"].tolist() for batch in batches]


def by_gathers(table: Any) -> grain.MapDataset:
    """Return shuffled batches that are one gather each."""
    return grain.MapDataset.range(len(table)).shuffle(seed=3).batch(BATCH, batch_fn=table.take)


def test_tables_are_random_access_sources(table: Any) -> None:
    assert isinstance(table, RandomAccessDataSource)
    batches = list(grain.MapDataset.source(table).shuffle(seed=3).batch(BATCH))
    assert sorted(sum(values(batches), [])) == sorted(table["y"][:].tolist())
    gathered = list(by_gathers(table))
    for found, expected in zip(gathered, batches, strict=True):
        assert list(found) == list(expected) == list(table.columns)
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name], strict=True)
        found["y"][:] = 0  # they are the consumer's own
    assert values(by_gathers(table)) == values(batches)


@pytest.mark.parametrize("rows", [[5], [7, 0, 7, 200], (3, 4), range(10, 20), [np.int64(3)], []])
def test_several_rows_at_once_are_the_rows_one_by_one(table: Any, rows: Any) -> None:
    expected = [table[int(row)] for row in rows]
    for found in (table._getitems(rows), table.__getitems__(rows)):
        assert len(found) == len(rows)
        for one, other in zip(found, expected, strict=True):
            assert list(one) == list(other)
            for name in other:
                np.testing.assert_array_equal(one[name], other[name], strict=True)
                assert type(one[name]) is type(other[name])


def threads(table: Any) -> grain.IterDataset:
    return by_gathers(table).to_iter_dataset(grain.ReadOptions(num_threads=8, prefetch_buffer_size=8))


def processes(table: Any) -> grain.IterDataset:
    return by_gathers(table).to_iter_dataset().mp_prefetch(grain.MultiprocessingOptions(num_workers=2))


def loader(table: Any, workers: int) -> grain.DataLoader:
    sampler = grain.samplers.IndexSampler(
        len(table), shuffle=True, seed=3, num_epochs=1, shard_options=grain.sharding.NoSharding()
    )
    operations = [grain.transforms.Batch(BATCH)]
    return grain.DataLoader(data_source=table, sampler=sampler, operations=operations, worker_count=workers)


@pytest.mark.parametrize("make", [threads, processes])
def test_threads_and_processes_read_the_same_and_resume(table: Any, make: Callable[[Any], Any]) -> None:
    expected = values(by_gathers(table))
    iterator = iter(make(table))
    assert values([next(iterator), next(iterator)]) == expected[:2]
    state = iterator.get_state()
    assert values(iterator) == expected[2:]
    resumed = iter(make(table))
    resumed.set_state(state)
    assert values(resumed) == expected[2:]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_data_loader_resumes_with_a_store_that_was_opened_again(store: shardstore.Store, workers: int) -> None:
    iterator = iter(loader(store, workers))
    first = values([next(iterator), next(iterator)])
    state = iterator.get_state()
    rest = values(iterator)
    assert sorted(sum(first + rest, [])) == list(range(ROWS))
    resumed = iter(loader(shardstore.open(store.path), workers))
    resumed.set_state(state)
    assert values(resumed) == rest


def test_epochs_and_shards(store: shardstore.Store) -> None:
    shuffled = grain.MapDataset.range(len(store)).shuffle(seed=3).repeat(2)
    epochs = values([store.take([int(row) for row in shuffled])])[0]
    assert sorted(epochs[:ROWS]) == sorted(epochs[ROWS:]) == list(range(ROWS))
    assert epochs[:ROWS] != epochs[ROWS:]
    shards = [
        values(grain.MapDataset.range(len(store)).shuffle(seed=3)[rank::2].batch(BATCH, batch_fn=store.take))
        for rank in range(2)
    ]
    assert sorted(sum(sum(shards, []), [])) == list(range(ROWS))


def test_tables_are_datasets_of_torch(table: Any) -> None:
    pytest.importorskip("torch", reason="the torch extra is not installed")
    from torch.utils.data import DataLoader

    for workers in (0, 2):
        batches = list(DataLoader(table, batch_size=BATCH, shuffle=True, num_workers=workers))
        assert sorted(sum(values(batches), [])) == sorted(table["y"][:].tolist())
        assert all((batch["x"][:, 0] == 2 * batch["y"]).all() for batch in batches)
