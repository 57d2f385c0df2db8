"""Accelerate in two real processes: an epoch is shared once, and sharing it twice is an error that says what to do."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("torchdata", reason="torchdata is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

import torch
import torch.distributed
from accelerate import Accelerator, DataLoaderConfiguration
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import shardstore
from shardstore.torch import StoreIterableDataset, StoreLoader

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork"),
]

ROWS = 320
RANKS = 2
# In a process that was not forked, forking would not be the default; processes that import torch again take seconds.
FORKED: dict[str, Any] = {"num_workers": 2, "multiprocessing_context": "fork"}
SPAWNED: dict[str, Any] = {"num_workers": 1, "multiprocessing_context": "spawn"}
Job = Callable[[Path, Path], Any]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("accelerate") / "s"
    with shardstore.Writer(path) as writer:
        writer.append({"y": np.arange(ROWS)})
    return path


def on_all_ranks(job: Job, path: Path) -> list[Any]:
    """Run a job in two processes of one group, and return what it returned in each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Not forked from this process: torch's threads would not come along.
        context = multiprocessing.get_context("forkserver")
        processes = [context.Process(target=_rank, args=(job, path, folder, rank)) for rank in range(RANKS)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        answers = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]
    for error, _ in answers:
        assert error is None, error
    return [result for _, result in answers]


def _rank(job: Job, path: Path, folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    # Asked for, but not used: the processes meet at a file.
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": "lo"}
    torch.distributed.init_process_group("gloo", f"file://{folder / 'group'}", rank=rank, world_size=RANKS)
    error = result = None
    try:
        result = job(path, folder)
    except Exception:
        error = traceback.format_exc()
    (folder / f"{rank}.json").write_text(json.dumps([error, result]))
    torch.distributed.destroy_process_group()


def accelerator(**options: Any) -> Accelerator:
    return Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options))


def rows(batches: Any) -> list[int]:
    return [row for batch in batches for row in batch["y"].tolist()]


def dispatched(path: Path, folder: Path) -> list[list[int]]:
    passes = []
    for options in ({}, FORKED):
        dataset = StoreIterableDataset(path, 32, shuffle=True, rank=0, world_size=1)
        loader = accelerator().prepare(DataLoader(dataset, batch_size=None, **options))
        passes += [rows(loader) for _ in range(2)]
    return passes


def test_prepare_deals_the_batches_of_a_dataset_that_is_not_shared_out(path: Path) -> None:
    stream = shardstore.open(path).batches(32, shuffle=True)
    epochs = [[batch["y"].tolist() for batch in stream] for _ in range(2)]
    first, second = on_all_ranks(dispatched, path)
    for number, epoch in enumerate(epochs * 2):
        assert first[number] == sum(epoch[::2], [])
        assert second[number] == sum(epoch[1::2], [])


LOADERS: dict[str, Callable[[Path], Any]] = {
    "StoreLoader": lambda path: StoreLoader(path, 32, shuffle=True, remainder="drop"),
    "StatefulDataLoader": lambda path: StatefulDataLoader(
        StoreIterableDataset(path, 32, shuffle=True, remainder="drop"), batch_size=None, **FORKED
    ),
}


def saved_and_resumed(path: Path, folder: Path) -> dict[str, list[list[int]]]:
    results = {}
    for name, make in LOADERS.items():
        running = accelerator()
        loader = make(path)
        running.register_for_checkpointing(loader)
        got = rows(itertools.islice(loader, 2))
        running.save_state(str(folder / name), safe_serialization=False)
        running.wait_for_everyone()  # rank 0 writes
        going_on = accelerator()
        loader = make(path)
        going_on.register_for_checkpointing(loader)
        going_on.load_state(str(folder / name))
        results[name] = [got + rows(loader), rows(loader)]
    return results


def test_a_loader_that_shares_out_itself_is_saved_and_resumed(path: Path) -> None:
    first, second = on_all_ranks(saved_and_resumed, path)
    for name in LOADERS:
        for rank, found in enumerate([first, second]):
            stream = shardstore.open(path).batches(32, shuffle=True, remainder="drop", rank=rank, world_size=RANKS)
            assert found[name] == [rows(stream), rows(stream)], (name, rank)
        assert sorted(first[name][0] + second[name][0]) == list(range(ROWS))


# How Accelerate is told to deal, the size of the loader's batches, and its worker processes.
TWICE: list[tuple[bool | None, int | None, dict[str, Any]]] = [
    (None, None, {}),
    (True, None, {}),
    (None, None, FORKED),
    (None, None, SPAWNED),
    (None, 4, {}),
    (False, 4, {}),
    (False, 4, FORKED),
    (False, 4, SPAWNED),
]


def shared_out_twice(path: Path, folder: Path) -> list[str]:
    messages = []
    for dispatch, batch_size, options in TWICE:
        dataset = StoreIterableDataset(path, None if batch_size else 32, remainder="drop")
        loader = accelerator(dispatch_batches=dispatch).prepare(
            DataLoader(dataset, batch_size=batch_size, **options)  # type: ignore[arg-type]
        )
        try:
            messages.append(f"no error, and {len(rows(loader))} rows")
        except shardstore.StateError as error:
            messages.append(str(error))
    return messages


def test_sharing_out_twice_is_an_error(path: Path) -> None:
    for rank, messages in enumerate(on_all_ranks(shared_out_twice, path)):
        for case, message in zip(TWICE, messages, strict=True):
            assert f"gives rank {rank} of 2 its share" in message, (case, message)
            assert "keep its loader out of what wraps it (accelerator.prepare), or make the dataset with" in message
