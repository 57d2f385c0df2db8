"""The PyTorch datasets in real DataLoaders with real worker processes."""

from __future__ import annotations

import multiprocessing
import pickle
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the torch extra is not installed")

from torch.utils.data import BatchSampler, DataLoader, RandomSampler  # noqa: E402

import shardstore  # noqa: E402
from shardstore.torch import StoreIterableDataset, StoreMapDataset  # noqa: E402

# A loader says so when it makes more workers than there are cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

ROWS = 1000
WORKERS = (0, 1, 2, 5)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("torch") / "s"
    with shardstore.Writer(path, codec={"y": "zstd"}, shard_bytes=4096, chunk_bytes=512) as writer:
        x = np.arange(ROWS * 4, dtype=np.float32).reshape(ROWS, 4)
        writer.append({"x": x, "y": np.arange(ROWS), "b": np.arange(ROWS) % 2 == 0, "h": x[:, :1].astype("f2")})
    return path


def values(items: Any) -> list[list[int]]:
    return [item["y"].tolist() for item in items]


@pytest.fixture(params=[False, True], ids=["in order", "shuffled"])
def shuffle(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("remainder", ["keep", "drop"])
def test_batches_are_the_same_for_any_number_of_workers(path: Path, shuffle: bool, remainder: Any) -> None:
    expected = shardstore.open(path).batches(64, shuffle=shuffle, seed=5, remainder=remainder)
    epochs = [values(expected) for _ in range(2)]
    for workers in WORKERS:
        dataset = StoreIterableDataset(path, batch_size=64, shuffle=shuffle, seed=5, remainder=remainder)
        loader = DataLoader(dataset, batch_size=None, num_workers=workers)
        assert len(loader) == len(expected)
        for epoch in epochs:
            assert values(loader) == epoch, workers


@pytest.mark.parametrize("workers", WORKERS)
def test_rows_come_once_for_any_number_of_workers(path: Path, shuffle: bool, workers: int) -> None:
    dataset = StoreIterableDataset(path, shuffle=shuffle)
    assert len(dataset) == ROWS
    orders = []
    for _ in range(2):
        batches = list(DataLoader(dataset, batch_size=64, num_workers=workers))
        assert all(batch["x"][:, 0].tolist() == (4 * batch["y"]).tolist() for batch in batches)
        rows = [row for batch in batches for row in batch["y"].tolist()]
        assert sorted(rows) == list(range(ROWS))
        orders.append(rows)
    if workers < 2 and not shuffle:
        assert orders[0] == list(range(ROWS))
    assert (orders[0] != orders[1]) == shuffle


@pytest.mark.parametrize("workers", WORKERS)
def test_several_and_endless_epochs(path: Path, workers: int) -> None:
    one = StoreIterableDataset(path, batch_size=300, shuffle=True)
    expected = [batch for _ in range(6) for batch in values(one)]
    three = StoreIterableDataset(path, batch_size=300, shuffle=True, epochs=3)
    assert len(three) == 12
    loader = DataLoader(three, batch_size=None, num_workers=workers)
    assert values(loader) + values(loader) == expected
    endless = StoreIterableDataset(path, batch_size=300, shuffle=True, epochs=None)
    iterator = iter(DataLoader(endless, batch_size=None, num_workers=workers))
    assert [next(iterator)["y"].tolist() for _ in range(24)] == expected
    with pytest.raises(TypeError, match="no length"):
        len(endless)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_persistent_workers_and_start_methods(path: Path, method: str) -> None:
    dataset = StoreIterableDataset(path, batch_size=256, shuffle=True, columns=["y"])
    expected = values(StoreIterableDataset(path, batch_size=256, shuffle=True))
    loader = DataLoader(
        dataset, batch_size=None, num_workers=2, persistent_workers=True, multiprocessing_context=method
    )
    passes = [values(loader) for _ in range(3)]
    assert passes[0] == expected
    assert len({str(p) for p in passes}) == 3
    # Another loader over the same dataset goes on with the next epoch, in this process too.
    later = [values(DataLoader(dataset, batch_size=None, num_workers=2)), values(dataset)]
    fresh = StoreIterableDataset(path, batch_size=256, shuffle=True)
    assert [values(fresh) for _ in range(5)] == passes + later


def test_passes_that_are_left_early_or_run_side_by_side(path: Path) -> None:
    fresh = StoreIterableDataset(path, batch_size=64, shuffle=True)
    epochs = [values(fresh) for _ in range(6)]
    dataset = StoreIterableDataset(path, batch_size=64, shuffle=True)
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    # Two batches, one of each worker: a pass that is left before all its workers have begun may be counted twice.
    assert values(islice(loader, 2)) == epochs[0][:2]
    assert values(loader) == epochs[1]
    first, second = zip(*zip(loader, loader, strict=True), strict=True)
    assert sorted([values(first), values(second)]) == sorted([epochs[2], epochs[3]])
    persistent = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True)
    assert values(islice(persistent, 2)) == epochs[4][:2]
    assert values(persistent) == epochs[5]


def test_tensors_are_writable_and_keep_their_dtype(path: Path) -> None:
    for workers in (0, 2):
        for batch in DataLoader(StoreIterableDataset(path, batch_size=64), batch_size=None, num_workers=workers):
            dtypes = {name: tensor.dtype for name, tensor in batch.items()}
            assert dtypes == {"x": torch.float32, "y": torch.int64, "b": torch.bool, "h": torch.float16}
            for tensor in batch.values():
                tensor.zero_()
    assert values(StoreIterableDataset(path, batch_size=ROWS)) == [list(range(ROWS))]


def test_tuples(path: Path) -> None:
    x, y = next(iter(StoreIterableDataset(path, batch_size=8, columns=["x", "y"], as_tuple=True)))
    assert (x.shape, y.shape) == ((8, 4), (8,))
    x, y = next(iter(DataLoader(StoreIterableDataset(path, columns=["x", "y"], as_tuple=True), batch_size=16)))
    assert (x.shape, x.dtype, y.tolist()) == ((16, 4), torch.float32, list(range(16)))
    x, y = StoreMapDataset(path, columns=["x", "y"], as_tuple=True)[3]
    assert (x.tolist(), y.item()) == ([12, 13, 14, 15], 3)


def test_transform_gets_arrays_and_gives_what_it_likes(path: Path) -> None:
    def batches(batch: dict[str, np.ndarray]) -> Any:
        assert all(isinstance(array, np.ndarray) for array in batch.values())
        return [batch["x"] * 2, {"y": torch.from_numpy(batch["y"]), "name": "n"}, batch["y"].max()]

    x, rest, top = next(iter(StoreIterableDataset(path, batch_size=8, transform=batches)))
    assert (x[1].tolist(), rest["y"].tolist(), rest["name"]) == ([8, 10, 12, 14], list(range(8)), "n")
    assert isinstance(top, torch.Tensor)
    row = next(iter(StoreIterableDataset(path, transform=lambda row: (row["x"] + 1, row["y"]))))
    assert (row[0].tolist(), row[1].item()) == ([1, 2, 3, 4], 0)


def test_views_are_datasets_too(path: Path) -> None:
    view = shardstore.open(path).where(lambda block: block["y"] % 10 == 3, "y")
    dataset = StoreIterableDataset(view, batch_size=7, shuffle=True)
    for workers in (0, 2):
        got = values(DataLoader(dataset, batch_size=None, num_workers=workers))
        assert sorted(sum(got, [])) == list(range(3, ROWS, 10))


def test_map_dataset_under_torchs_samplers(path: Path) -> None:
    dataset = StoreMapDataset(path)
    assert len(dataset) == ROWS
    assert dataset[-1]["y"].item() == ROWS - 1
    with pytest.raises(IndexError, match="out of range"):
        dataset[ROWS]
    for workers in (0, 2):
        loader = DataLoader(dataset, batch_size=64, shuffle=True, num_workers=workers)
        assert sorted(sum(values(loader), [])) == list(range(ROWS))
        sampler = BatchSampler(RandomSampler(dataset), 64, drop_last=False)
        loader = DataLoader(dataset, sampler=sampler, batch_size=None, num_workers=workers)
        assert sorted(sum(values(loader), [])) == list(range(ROWS))
    assert dataset[5:8]["y"].tolist() == [5, 6, 7]
    assert [row["y"].item() for row in dataset.__getitems__([9, 9, 2])] == [9, 9, 2]
    batch = dataset[[3, 1]]
    batch["x"].zero_()
    assert dataset[3]["x"].tolist() == [12, 13, 14, 15]


def test_datasets_pickle_as_path_and_position(path: Path) -> None:
    dataset = StoreIterableDataset(path, batch_size=100, shuffle=True)
    first = values(dataset)
    data = pickle.dumps(dataset)
    assert len(data) < 3000
    copy = pickle.loads(data)
    second = values(copy)
    assert second != first
    assert values(dataset) == second
    assert pickle.loads(pickle.dumps(StoreMapDataset(path)))[2]["y"].item() == 2


def test_creating_a_dataset_does_not_settle_the_start_method(path: Path) -> None:
    StoreIterableDataset(path, batch_size=100)
    before = multiprocessing.get_start_method(allow_none=True)
    StoreIterableDataset(path, batch_size=100)
    assert multiprocessing.get_start_method(allow_none=True) == before


@pytest.fixture(scope="module")
def times(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("torch") / "times"
    with shardstore.Writer(path) as writer:
        writer.append({"t": np.arange(10).astype("M8[s]"), "u": np.arange(10, dtype=np.uint16)})
    return path


def test_times_are_their_numbers(times: Path) -> None:
    for read in (lambda: next(iter(StoreIterableDataset(times, batch_size=10))), lambda: StoreMapDataset(times)[:]):
        assert read()["t"].dtype == torch.int64
        assert read()["t"].tolist() == list(range(10))
    assert StoreMapDataset(times, columns=["u"])[9]["u"].dtype == torch.uint16


def test_dtypes_that_torch_lacks_are_named(times: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = StoreIterableDataset(times, batch_size=2, transform=lambda batch: batch["u"].astype(np.longdouble))
    with pytest.raises(shardstore.SchemaError, match=r"has dtype float(128|96), which torch .* does not have"):
        next(iter(dataset))
    with shardstore.Writer(tmp_path / "s", types={"x": "float8_e8m0fnu"}) as writer:
        writer.append({"x": np.arange(3, dtype=np.uint8)})
    monkeypatch.delattr(torch, "float8_e8m0fnu")  # as in releases before it came
    with pytest.raises(shardstore.SchemaError, match=r"column 'x' has dtype float8_e8m0fnu, which torch .* not have"):
        StoreMapDataset(tmp_path / "s")[0]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"batch_size": 0}, ValueError),
        ({"remainder": "fill"}, ValueError),
        ({"rank": 1}, ValueError),
        ({"rank": 2, "world_size": 2, "remainder": "drop"}, ValueError),
        ({"rank": 0, "world_size": 2}, ValueError),
        ({"epochs": 0}, ValueError),
        ({"columns": ["q"]}, KeyError),
        ({"shuffle": "yes"}, ValueError),
    ],
)
def test_senseless_arguments(path: Path, arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        StoreIterableDataset(path, **arguments)


@pytest.mark.parametrize("persistent", [False, True])
def test_passes_that_draw_the_same_seed_are_still_different_epochs(path: Path, persistent: bool) -> None:
    fresh = StoreIterableDataset(path, batch_size=300, shuffle=True)
    epochs = [values(fresh) for _ in range(3)]
    dataset = StoreIterableDataset(path, batch_size=300, shuffle=True)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=persistent)
    for epoch in epochs:
        torch.manual_seed(0)
        assert values(loader) == epoch


def test_wide_rows_come_few_at_a_time(tmp_path: Path) -> None:
    with shardstore.Writer(tmp_path / "wide") as writer:
        writer.append({"x": np.arange(20.0)[:, None] * np.ones(100_000)})  # 800 kB a row
    dataset = StoreIterableDataset(tmp_path / "wide")
    first = next(iter(dataset))["x"]
    assert first.shape == (100_000,)
    assert [row["x"][0].item() for row in dataset] == list(range(20))
    assert dataset._rows_of_a_turn == 2


class Pair(NamedTuple):
    x: Any
    y: Any


def test_transforms_may_return_any_array(path: Path) -> None:
    def transform(batch: dict[str, np.ndarray]) -> Pair:
        constant = np.broadcast_to(np.float32(7), len(batch["y"]))
        return Pair(batch["x"][:, ::-1], {"big": batch["y"].astype(">i8"), "constant": constant})

    item = next(iter(StoreIterableDataset(path, batch_size=4, transform=transform)))
    assert isinstance(item, Pair)
    assert item.x[0].tolist() == [3, 2, 1, 0]
    assert item.y["big"].tolist() == [0, 1, 2, 3]
    item.y["constant"].zero_()
    dataset = StoreIterableDataset(path, batch_size=4, transform=lambda b: {"y": b["y"], "x": b["x"]}, as_tuple=True)
    assert [tensor.shape for tensor in next(iter(dataset))] == [(4,), (4, 4)]


def test_tensors_are_row_numbers(path: Path) -> None:
    dataset, store = StoreMapDataset(path), shardstore.open(path)
    assert dataset[torch.tensor(3)]["y"].item() == 3
    assert dataset[torch.tensor([3])]["y"].tolist() == [3]
    assert store["y"][torch.tensor([5])].tolist() == [5]
    assert store["y"][torch.tensor([5, 6])].tolist() == [5, 6]
    assert store["y"][torch.tensor(5)] == 5
    assert store.rows(slice(0, 1))["y"][torch.tensor([True])].tolist() == [0]
