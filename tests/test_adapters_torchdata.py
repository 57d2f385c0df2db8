"""The dataset in torchdata's StatefulDataLoader, which asks it and its copies in worker processes for their state."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("torchdata", reason="torchdata is not installed")

from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import shardstore
from shardstore.torch import StoreIterableDataset, StoreLoader

pytestmark = [
    # Every StatefulDataLoader says so.
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
    # A loader says so when it makes more workers than there are cores.
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    # With single rows, each worker has a short last batch of its own.
    pytest.mark.filterwarnings("ignore:Length of IterableDataset:UserWarning"),
]

ROWS = 600
Batches = list[list[int]]
Loader = StatefulDataLoader[Any]

CONFIGURATIONS = {
    "no workers": {"num_workers": 0},
    "2 workers": {"num_workers": 2},
    "2 persistent workers": {"num_workers": 2, "persistent_workers": True},
    "2 workers, a snapshot every 3 steps": {"num_workers": 2, "snapshot_every_n_steps": 3},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("torchdata") / "s"
    with shardstore.Writer(path, shard_bytes=2048, chunk_bytes=256) as writer:
        writer.append({"y": np.arange(ROWS)})
    return path


@pytest.fixture(params=list(CONFIGURATIONS))
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return CONFIGURATIONS[request.param]


@pytest.fixture(params=["ready batches", "rows"])
def make(request: pytest.FixtureRequest, path: Path, options: dict[str, Any]) -> Callable[[], Loader]:
    """Return what makes a new loader over a new dataset."""
    if request.param == "rows":
        return lambda: StatefulDataLoader(StoreIterableDataset(path, shuffle=True, seed=3), batch_size=110, **options)
    return lambda: StatefulDataLoader(
        StoreIterableDataset(path, batch_size=128, shuffle=True, seed=3), batch_size=None, **options
    )


def values(batches: Any) -> Batches:
    return [batch["y"].tolist() for batch in batches]


def copied(state: Any) -> Any:
    """Return a state as it comes from a file."""
    return pickle.loads(pickle.dumps(state))


def points(loader: Loader) -> Iterator[tuple[Any, Batches]]:
    """Yield the state before each batch of a pass and behind the last, each with the batches before it; then that
    behind the end of the pass, with None.
    """
    got: Batches = []
    iterator = iter(loader)
    while True:
        yield copied(loader.state_dict()), list(got)
        batch = next(iterator, None)
        if batch is None:
            return
        got += values([batch])


def test_every_state_of_two_epochs_goes_on_exactly(make: Callable[[], Loader]) -> None:
    uninterrupted = make()
    epochs = [values(uninterrupted) for _ in range(4)]
    assert all(sorted(sum(epoch, [])) == list(range(ROWS)) for epoch in epochs)
    assert len({str(epoch) for epoch in epochs}) == 4
    running = make()
    for epoch in range(2):
        for state, got in points(running):
            resumed = make()
            resumed.load_state_dict(state)
            passes = [values(resumed) for _ in range(2)]
            assert got + passes[0] == epochs[epoch]
            assert passes[1] == epochs[epoch + 1], (epoch, len(got))
        # Behind its StopIteration the epoch is over.
        resumed = make()
        resumed.load_state_dict(copied(running.state_dict()))
        assert [values(resumed) for _ in range(2)] == epochs[epoch + 1 : epoch + 3]


def test_saving_and_restoring_behind_every_batch(make: Callable[[], Loader]) -> None:
    uninterrupted = make()
    epochs = [values(uninterrupted) for _ in range(2)]
    loader = make()
    for expected in epochs:
        for batch in expected:
            assert values([next(iter(loader))]) == [batch]
            state = copied(loader.state_dict())
            loader = make()
            loader.load_state_dict(state)
        assert values(loader) == []  # such a state is one of an epoch that is not over


def test_a_state_of_a_resumed_epoch_behind_its_end(make: Callable[[], Loader]) -> None:
    uninterrupted = make()
    epochs = [values(uninterrupted) for _ in range(3)]
    loader = make()
    next(iter(loader))
    for epoch in range(2):
        state = copied(loader.state_dict())
        loader = make()
        loader.load_state_dict(state)
        assert values(loader) == epochs[epoch][1:] if epoch == 0 else epochs[epoch]


def test_set_epoch_before_every_epoch_changes_nothing(make: Callable[[], Loader]) -> None:
    uninterrupted = make()
    epochs = [values(uninterrupted) for _ in range(3)]
    for stop in (0, 2):
        running = make()
        assert values(running) == epochs[0]
        running.dataset.set_epoch(1)
        got = values(itertools.islice(running, stop))
        state = copied(running.state_dict())
        resumed = make()
        resumed.dataset.set_epoch(1)
        resumed.load_state_dict(state)
        assert got + values(resumed) == epochs[1]
        resumed.dataset.set_epoch(2)
        assert values(resumed) == epochs[2]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_states_of_ready_batches_fit_any_loader(path: Path, workers: int) -> None:
    def new(batch_size: int = 128) -> StoreIterableDataset:
        return StoreIterableDataset(path, batch_size=batch_size, shuffle=True, seed=3)

    loader: Loader = StatefulDataLoader(new(), batch_size=None, num_workers=workers)
    one = new(96)
    whole = [sum(values(one), []) for _ in range(2)]
    for state, got in points(loader):
        given = json.loads(json.dumps(state)) if workers == 0 else state
        before = sum(got, [])
        for others in (0, 1, 3):
            dataset = new(100)
            dataset.load_state_dict(given)
            resumed = DataLoader(dataset, batch_size=None, num_workers=others)
            assert before + sum(values(resumed), []) == whole[0]
            assert sum(values(resumed), []) == whole[1]
        dataset = new()
        dataset.load_state_dict(given)
        in_thread = StoreLoader(path, 77, shuffle=True, seed=3)
        in_thread.load_state_dict(json.loads(json.dumps(dataset.state_dict())))
        assert before + sum(values(in_thread), []) == whole[0]
        assert sum(values(in_thread), []) == whole[1]


def test_states_of_rows(path: Path) -> None:
    def new() -> StoreIterableDataset:
        return StoreIterableDataset(path, shuffle=True, seed=3)

    whole = [row["y"].item() for row in new()]
    for workers in (0, 1):
        loader: Loader = StatefulDataLoader(new(), batch_size=60, num_workers=workers)
        for state, got in points(loader):
            dataset = new()
            dataset.load_state_dict(state)
            before = sum(got, [])
            rest = sum(values(DataLoader(dataset, batch_size=50, num_workers=2)), [])
            assert sorted(before + rest) == list(range(ROWS))
            assert before == whole[: len(before)]
    # To fill a short last batch the loader asks for a row behind the end: then the next epoch is what comes.
    loader = StatefulDataLoader(new(), batch_size=64)
    *_, (state, got) = points(loader)
    assert sum(got, []) == whole
    dataset = new()
    dataset.load_state_dict(state)
    assert dataset.state_dict()["epoch"] == 1
    loader = StatefulDataLoader(new(), batch_size=64, num_workers=2)
    next(iter(loader))
    state = loader.state_dict()
    for dataset in (new(), StoreIterableDataset(path, batch_size=1, shuffle=True, seed=3)):
        with pytest.raises(shardstore.StateError, match="fits only 2 workers again"):
            dataset.load_state_dict(state)
    loader = StatefulDataLoader(new(), batch_size=64, num_workers=1, snapshot_every_n_steps=3)
    next(iter(loader))
    with pytest.raises(shardstore.StateError, match="how many rows these had"):
        new().load_state_dict(loader.state_dict())


@pytest.mark.parametrize(("batch_size", "remainder", "epochs"), [(128, "keep", 3), (64, "drop", 3), (64, "drop", None)])
def test_states_of_a_pass_of_several_epochs(path: Path, batch_size: int, remainder: Any, epochs: int | None) -> None:
    dataset = StoreIterableDataset(path, batch_size, shuffle=True, epochs=epochs, remainder=remainder)
    loader: Loader = StatefulDataLoader(dataset, batch_size=None, num_workers=2, snapshot_every_n_steps=2)
    iterator = iter(loader)
    for step in range(1, 15):
        next(iterator)
        other = StoreIterableDataset(path, 10, shuffle=True)
        other.load_state_dict(loader.state_dict())
        state = other.state_dict()
        epoch, steps = divmod(step - 1, len(dataset.plan))
        assert (state["epoch"], state["delivered"]) == (epoch, min(ROWS, (steps + 1) * batch_size))


def test_workers_do_not_go_on_in_batches_of_another_size(path: Path) -> None:
    def new(batch_size: int, **arguments: Any) -> Loader:
        dataset = StoreIterableDataset(path, batch_size, shuffle=True, **arguments)
        return StatefulDataLoader(dataset, batch_size=None, num_workers=2)

    loader = new(128)
    next(iter(loader))
    for other in (new(100), new(128, remainder="drop"), new(128, rank=0, world_size=2, remainder="drop")):
        other.load_state_dict(loader.state_dict())
        with pytest.raises(shardstore.StateError, match="load the whole loader's state into the dataset"):
            next(iter(other))


def test_states_go_on_with_another_number_of_ranks(path: Path) -> None:
    def new(rank: int, world_size: int) -> StoreIterableDataset:
        return StoreIterableDataset(path, 50, shuffle=True, remainder="pad", rank=rank, world_size=world_size)

    def real_rows(batches: Any) -> list[int]:
        return [row for batch in batches for row in batch["y"][batch["mask"]].tolist()]

    got, states = [], []
    for rank in range(2):
        loader: Loader = StatefulDataLoader(new(rank, 2), batch_size=None, num_workers=2)
        got += real_rows(itertools.islice(loader, 3))
        states.append(loader.state_dict())
    for rank in range(3):
        dataset = new(rank, 3)
        dataset.load_state_dict(states[rank % 2])  # every rank's state is good for all of them
        got += real_rows(DataLoader(dataset, batch_size=None, num_workers=2))
    assert sorted(got) == list(range(ROWS))


def test_states_of_other_rows_and_half_states_are_refused(path: Path) -> None:
    loader: Loader = StatefulDataLoader(StoreIterableDataset(path, batch_size=128), batch_size=None, num_workers=2)
    next(iter(loader))
    state = loader.state_dict()
    with pytest.raises(shardstore.StateError, match="shuffle"):
        StoreIterableDataset(path, batch_size=128, shuffle=True).load_state_dict(state)
    worker = state["_snapshot"]["_worker_snapshots"]["worker_1"]["dataset_state"]
    with pytest.raises(shardstore.StateError, match="of worker 1 of 2 alone"):
        StoreIterableDataset(path, batch_size=128).load_state_dict(worker)
    del state["_snapshot"]["_worker_snapshots"]
    with pytest.raises(shardstore.StateError, match="no state of a StatefulDataLoader"):
        StoreIterableDataset(path, batch_size=128).load_state_dict(state)
