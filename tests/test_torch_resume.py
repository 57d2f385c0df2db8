"""Datasets and loaders that are saved, restored, and told an epoch, with and without worker processes."""

from __future__ import annotations

import gc
import itertools
import json
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the torch extra is not installed")

from torch.utils.data import DataLoader  # noqa: E402

import shardstore  # noqa: E402
from shardstore.torch import StoreIterableDataset, StoreLoader  # noqa: E402

# A loader says so when it makes more workers than there are cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

ROWS = 1000


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("torch") / "s"
    with shardstore.Writer(path, codec={"y": "zstd"}, shard_bytes=4096, chunk_bytes=512) as writer:
        x = np.arange(ROWS * 4, dtype=np.float32).reshape(ROWS, 4)
        writer.append({"x": x, "y": np.arange(ROWS)})
    return path


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    gc.collect()
    left = [thread for thread in threading.enumerate() if thread not in before and "loader" in thread.name]
    assert not left


def values(items: Any) -> list[list[int]]:
    return [item["y"].tolist() for item in items]


def flat(items: Any) -> list[int]:
    return [value for item in items for value in np.atleast_1d(item["y"].numpy()).tolist()]


def epochs_of(path: Path, count: int, batch_size: int, **arguments: Any) -> list[list[list[int]]]:
    stream = shardstore.open(path).batches(batch_size, **arguments)
    return [values(stream) for _ in range(count)]


def loader_over(dataset: StoreIterableDataset, workers: int, **arguments: Any) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=None, num_workers=workers, **arguments)


@pytest.mark.parametrize("cut", [0, 1, 5, 15, 16])
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_dataset_goes_on_in_any_shape(path: Path, cut: int, epoch: int) -> None:
    expected = epochs_of(path, epoch + 2, 64, shuffle="full")
    dataset = StoreIterableDataset(path, batch_size=64, shuffle="full")
    for _ in range(epoch):
        list(dataset)
    got = values(itertools.islice(loader_over(dataset, 0), cut))
    assert got == expected[epoch][:cut]
    state = json.loads(json.dumps(dataset.state_dict()))
    assert len(json.dumps(state)) < 1000
    for workers in (0, 1, 3):
        for batch_size in (64, 50, 7):
            other = StoreIterableDataset(path, batch_size=batch_size, shuffle="full")
            other.load_state_dict(state)
            rest = flat(loader_over(other, workers))
            assert sum(got, []) + rest == sum(expected[epoch], []), (workers, batch_size)
            if batch_size == 64:
                assert values(loader_over(other, workers)) == expected[epoch + 1]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_do_not_tell_what_was_delivered(path: Path, workers: int, persistent: bool) -> None:
    expected = epochs_of(path, 3, 64, shuffle=True)
    dataset = StoreIterableDataset(path, batch_size=64, shuffle=True)
    loader = loader_over(dataset, workers, persistent_workers=persistent)
    list(loader)
    got = values(itertools.islice(loader, 6))
    with pytest.raises(shardstore.StateError, match=r"state_dict\(delivered=…\)"):
        dataset.state_dict()
    state = dataset.state_dict(delivered=6)
    assert (state["epoch"], state["delivered"]) == (1, 384)
    with pytest.raises(ValueError, match="delivered is 1 more than the pass has"):
        dataset.state_dict(delivered=17)
    # The same code is right without workers.
    here = StoreIterableDataset(path, batch_size=64, shuffle=True)
    list(here)
    list(itertools.islice(here, 6))
    assert here.state_dict(delivered=6) == here.state_dict() == state
    assert here.state_dict(delivered=16)["delivered"] == ROWS
    other = StoreIterableDataset(path, batch_size=64, shuffle=True)
    other.load_state_dict(state)
    assert got + values(loader_over(other, workers)) == expected[1]
    assert values(loader_over(other, 0)) == expected[2]
    # The dataset itself can go on from its own state, in living workers too.
    dataset.load_state_dict(state)
    assert dataset.state_dict() == state
    assert got + values(loader) == expected[1]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("persistent", [False, True])
def test_set_epoch_reaches_workers(path: Path, workers: int, persistent: bool) -> None:
    if persistent and not workers:
        pytest.skip("torch has no such thing")
    expected = epochs_of(path, 6, 64, shuffle=True)
    dataset = StoreIterableDataset(path, batch_size=64, shuffle=True)
    loader = loader_over(dataset, workers, persistent_workers=persistent)
    for epoch in (0, 5, 5, 2, 3, 0):
        dataset.set_epoch(epoch)
        assert values(loader) == expected[epoch]
    # At the top of a loop, also of the epoch that is being resumed.
    state = StoreIterableDataset(path, batch_size=64, shuffle=True)
    list(itertools.islice(state, 4))
    dataset.load_state_dict(state.state_dict())
    dataset.set_epoch(0)
    assert values(loader) == expected[0][4:]
    dataset.set_epoch(1)
    assert values(loader) == expected[1]


def test_set_epoch_settles_passes_with_the_same_seed(path: Path) -> None:
    """Passes that draw the same seed, one of them left before all workers had begun."""
    expected = epochs_of(path, 4, 300, shuffle=True)
    dataset = StoreIterableDataset(path, batch_size=300, shuffle=True)
    loader = loader_over(dataset, 2)
    for epoch in (3, 1, 2, 0, 3):
        torch.manual_seed(0)
        iterator = iter(loader)
        next(iterator)
        del iterator
        dataset.set_epoch(epoch)
        torch.manual_seed(0)
        assert values(loader) == expected[epoch]


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_single_rows_go_on_too(path: Path, workers: int) -> None:
    expected = StoreIterableDataset(path, shuffle="full")
    order = [row["y"].item() for row in expected]
    dataset = StoreIterableDataset(path, shuffle="full")
    loader = DataLoader(dataset, batch_size=64)
    got = flat(itertools.islice(loader, 5))
    assert got == order[:320]
    other = StoreIterableDataset(path, shuffle="full")
    other.load_state_dict(dataset.state_dict())
    rest = flat(DataLoader(other, batch_size=50, num_workers=workers))
    assert sorted(got + rest) == list(range(ROWS))
    # And as ready batches, or from a thread.
    ready = StoreLoader(path, 50, shuffle="full")
    ready.load_state_dict(dataset.state_dict())
    assert got + flat(ready) == order


def test_states_are_shared_by_streams_datasets_and_loaders(path: Path) -> None:
    stream = shardstore.open(path).batches(30, shuffle=True)
    got = values(itertools.islice(stream, 3))
    dataset = StoreIterableDataset(path, batch_size=40, shuffle=True)
    dataset.load_state_dict(stream.state_dict())
    got += values(itertools.islice(dataset, 3))
    loader = StoreLoader(path, 50, shuffle=True)
    loader.load_state_dict(dataset.state_dict())
    got += values(itertools.islice(loader, 3))
    stream.load_state_dict(loader.state_dict())
    got += values(stream)
    assert sum(got, []) == sum(epochs_of(path, 1, 1, shuffle=True)[0], [])


@pytest.mark.parametrize("epochs", [2, None])
def test_states_in_the_middle_of_a_pass_of_several_epochs(path: Path, epochs: int | None) -> None:
    def make() -> StoreIterableDataset:
        return StoreIterableDataset(path, batch_size=300, shuffle=True, epochs=epochs)

    whole = values(itertools.islice(make(), 8))
    for cut in range(8):
        dataset = make()
        got = values(itertools.islice(dataset, cut))
        for workers in (0, 2):
            other = make()
            other.load_state_dict(dataset.state_dict())
            rest = values(itertools.islice(loader_over(other, workers), 8 - cut))
            assert got + rest == whole, (cut, workers)
    dataset = make()
    list(itertools.islice(loader_over(dataset, 2), 5))
    state = dataset.state_dict(delivered=5)
    assert (state["epoch"], state["delivered"], state["pass_start"]) == (1, 300, 0)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"seed": 3}, "saved with seed=3, this stream has seed=0"),
        ({"worker": 0, "workers": 2, "taken": 1}, "state of worker 0 of 2 alone"),
        ({"_snapshot": {}}, "no state of a StatefulDataLoader"),
        ({"_snapshot": {"_worker_snapshots": {}}, "_steps_since_snapshot": 0}, "no state of a StatefulDataLoader"),
        (
            {"_snapshot": {"_worker_snapshots": {"worker_0": {"dataset_state": None}}}, "_steps_since_snapshot": 0},
            "no state of a StatefulDataLoader",
        ),
        ({"dataset_state": None}, "found a NoneType"),
    ],
)
def test_states_that_do_not_fit(path: Path, edit: dict[str, Any], message: str) -> None:
    dataset = StoreIterableDataset(path, batch_size=64, shuffle=True)
    with pytest.raises(shardstore.StateError, match=message):
        dataset.load_state_dict({**dataset.state_dict(), **edit})
    with pytest.raises(shardstore.StateError, match="found a NoneType"):
        dataset.load_state_dict(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("shuffle", [False, "full", "window"])
@pytest.mark.parametrize("arguments", [{}, {"remainder": "drop"}, {"remainder": "pad"}, {"with_rows": True}])
def test_a_loader_gives_the_streams_batches(path: Path, shuffle: Any, arguments: dict[str, Any]) -> None:
    stream = shardstore.open(path).batches(64, shuffle=shuffle, **arguments)
    loader = StoreLoader(path, 64, shuffle=shuffle, **arguments)
    assert len(loader) == len(stream)
    for _ in range(2):
        for batch, expected in zip(loader, stream, strict=True):
            assert list(batch) == list(expected)
            for name, tensor in batch.items():
                assert type(tensor) is torch.Tensor
                assert tensor.numpy().dtype == expected[name].dtype
                assert tensor.tolist() == expected[name].tolist()
                tensor.zero_()


def test_a_loader_counts_what_was_delivered_not_what_was_read(path: Path) -> None:
    loader = StoreLoader(path, 10, shuffle=True)
    for batch, _ in zip(loader, range(7), strict=False):
        del batch
    assert loader.state_dict()["delivered"] == 80  # zip took one more than it used
    rest = values(loader)
    assert len(rest) == 92
    loader.set_epoch(4)
    assert values(loader) == epochs_of(path, 5, 10, shuffle=True)[4]


def test_a_loader_that_is_left_ends_its_thread(path: Path) -> None:
    def threads() -> int:
        return sum("shardstore-loader" in thread.name for thread in threading.enumerate())

    loader = StoreLoader(path, 10, shuffle=True)
    assert threads() == 0
    for _ in loader:
        assert threads() == 1
        break
    assert threads() == 0
    iterator = iter(loader)
    next(iterator)
    assert threads() == 1
    later = iter(loader)
    next(later)
    with pytest.raises(RuntimeError, match="another pass"):
        next(iterator)
    assert threads() == 1
    del later
    assert threads() == 0
    with StoreLoader(path, 10) as closed:
        iterator = iter(closed)
        next(iterator)
    with pytest.raises(ValueError, match="closed"):
        next(iterator)
    assert threads() == 0


def test_errors_of_the_thread_come_in_their_turn(path: Path) -> None:
    failing = iter([False] * 5 + [True] + [False] * 20)

    def transform(batch: dict[str, Any]) -> Any:
        if next(failing):
            raise OSError("not now")
        return {"y": batch["y"], "sum": batch["x"].sum(1)}

    loader = StoreLoader(path, 100, shuffle=True, transform=transform)
    got: list[Any] = []
    with pytest.raises(OSError, match="not now") as raised:
        got.extend(loader)
    assert any(entry.name == "transform" for entry in raised.traceback)
    assert len(got) == 5, "in the middle of a group"
    assert values([*got, *loader]) == epochs_of(path, 1, 100, shuffle=True)[0]


def test_a_transform_cannot_end_a_pass(path: Path) -> None:
    def transform(batch: dict[str, Any]) -> Any:
        return next(iter([])) if batch["y"][0] == 256 else batch

    streams = (shardstore.open(path).batches(32, transform=transform), StoreLoader(path, 32, transform=transform))
    for stream in streams:
        got = []
        with pytest.raises(RuntimeError, match="StopIteration"):
            got.extend(stream)
        assert len(got) == 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*use of fork")
def test_a_forked_process_does_not_wait_for_a_thread_that_it_has_not(path: Path) -> None:
    loader = StoreLoader(path, 10, shuffle=True)
    iterator = iter(loader)
    next(iterator)
    expected = epochs_of(path, 1, 10, shuffle=True)[0]
    child = os.fork()
    if child == 0:  # whatever happens, pytest must not go on twice
        code = 1
        try:
            signal.alarm(60)
            try:
                list(iterator)
            except RuntimeError as error:
                code = 0 if "begin a new pass" in str(error) else 2
            rest = values(loader)
            code = code or (0 if rest == expected[len(expected) - len(rest) :] and len(rest) > 50 else 3)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert values(loader) == expected[1:]


def test_closing_ends_the_thread(path: Path) -> None:
    with StoreLoader(path, 10) as loader:
        iterator = iter(loader)
        next(iterator)
    assert not any("shardstore-loader" in thread.name for thread in threading.enumerate())
    with pytest.raises(ValueError, match="closed"):
        next(iterator)


def test_loaders_pickle_with_their_position(path: Path) -> None:
    loader = StoreLoader(path, 100, shuffle=True)
    iterator = iter(loader)
    got = values([next(iterator), next(iterator)])
    data = pickle.dumps(loader)
    assert len(data) < 4000
    assert got + values(pickle.loads(data)) == got + values(iterator) == epochs_of(path, 1, 100, shuffle=True)[0]


def test_set_epoch_forgets_what_was_left(path: Path) -> None:
    for workers in (0, 2):
        dataset = StoreIterableDataset(path, batch_size=32, shuffle=True)
        list(itertools.islice(loader_over(dataset, workers), 3))
        dataset.set_epoch(1)
        state = dataset.state_dict()
        assert (state["epoch"], state["delivered"]) == (1, 0)


def test_a_loader_puts_tensors_where_they_are_wanted(path: Path) -> None:
    x, y = next(iter(StoreLoader(path, 8, columns=["x", "y"], as_tuple=True, device="cpu")))
    assert (x.shape, y.tolist()) == ((8, 4), list(range(8)))
    batch = next(iter(StoreLoader(path, 8, device="meta", transform=lambda batch: {"n": [batch["y"]], "s": "text"})))
    assert batch["n"][0].device.type == "meta"
    assert batch["s"] == "text"


def test_the_mask_counts_every_row_once(path: Path) -> None:
    rows = []
    for rank in range(3):
        dataset = StoreIterableDataset(path, batch_size=64, remainder="pad", rank=rank, world_size=3, as_tuple=True)
        assert len(dataset) == 6
        for x, y, mask in loader_over(dataset, 2):
            assert len(x) == len(y) == len(mask) == 64
            assert mask.dtype == torch.bool
            rows += y[mask].tolist()
    assert sorted(rows) == list(range(ROWS))


@pytest.mark.parametrize(("remainder", "each"), [("drop", 333), ("pad", 334)])
def test_single_rows_are_dealt_to_ranks_equally(path: Path, remainder: Any, each: int) -> None:
    rows = []
    for rank in range(3):
        dataset = StoreIterableDataset(path, shuffle="full", remainder=remainder, rank=rank, world_size=3)
        assert len(dataset) == each
        items = [item for batch in DataLoader(dataset, batch_size=50, num_workers=2) for item in _items(batch)]
        assert len(items) == each
        rows += [row for row, real in items if real]
    assert len(rows) == len(set(rows)) == (999 if remainder == "drop" else ROWS)


def _items(batch: dict[str, Any]) -> list[tuple[int, bool]]:
    mask = batch.get("mask", torch.ones(len(batch["y"]), dtype=torch.bool))
    return list(zip(batch["y"].tolist(), mask.tolist(), strict=True))


def test_batches_of_workers_arrive_as_plain_writable_tensors(path: Path) -> None:
    def collate(batch: dict[str, Any]) -> Any:
        assert isinstance(batch["x"], torch.Tensor)
        assert type(batch["x"] * 2) is torch.Tensor
        return {**batch, "twice": batch["y"] * 2}

    dataset = StoreIterableDataset(path, batch_size=64)
    for arguments in ({}, {"collate_fn": collate}):
        for batch in loader_over(dataset, 2, **arguments):
            assert batch["x"][:, 0].tolist() == (4 * batch["y"]).tolist()
            for tensor in batch.values():
                assert type(tensor) is torch.Tensor
                tensor.zero_()
