"""What each process of a real process group does in `test_distributed.py`: reads, and writes down what it got.

Run as `python ranks.py STORE OUT WORLD_SIZE…`, for a group of each size. Importing torch takes longer than all the
rest: one process does it, and is copied for each rank.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

import shardstore
from shardstore.torch import StoreIterableDataset, StoreLoader

BATCH = 16


def rows(items: Any) -> list[list[int]]:
    """Return the numbers of the rows of each batch that are no copies."""
    return [item["y"][item["mask"]].tolist() if "mask" in item else item["y"].tolist() for item in items]


def read(path: str) -> dict[str, Any]:
    """Read the store in all the ways that find their rank by themselves."""
    found: dict[str, Any] = {"rank": dist.get_rank(), "world_size": dist.get_world_size()}
    for remainder in ("drop", "pad"):
        for shuffle in (False, "full", "window"):
            name = f"{remainder} {shuffle}"
            for workers, method in ((0, None), (2, "fork"), (1, "spawn")):
                # Each spawned worker imports torch; that it knows its rank is seen in the smaller group.
                if method == "spawn" and (remainder, shuffle, dist.get_world_size()) != ("pad", "full", 2):
                    continue
                dataset = StoreIterableDataset(path, BATCH, shuffle=shuffle, remainder=remainder, lanes=1)
                loader = DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context=method)
                found[f"{name} dataset {workers}"] = [rows(loader), rows(loader)]
                assert len(loader) == len(found[f"{name} dataset {workers}"][0])
            store_loader = StoreLoader(path, BATCH, shuffle=shuffle, remainder=remainder)
            found[f"{name} loader"] = [rows(store_loader), rows(store_loader)]
            assert len(store_loader) == len(found[f"{name} loader"][0])
    for workers in (0, 2):
        dataset = StoreIterableDataset(path, shuffle="full", remainder="pad")
        batches = list(DataLoader(dataset, batch_size=BATCH, num_workers=workers))
        found[f"single rows {workers}"] = rows(batches)
        found[f"single rows {workers} count"] = sum(len(batch["y"]) for batch in batches)
    # Persistent workers hear of the epoch.
    dataset = StoreIterableDataset(path, BATCH, shuffle=True, remainder="drop")
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True)
    found["epochs"] = []
    for epoch in (0, 7, 7):
        dataset.set_epoch(epoch)
        found["epochs"].append(rows(loader))
    # A state taken in the middle, which is the same on every rank.
    store_loader = StoreLoader(path, BATCH, shuffle="window", remainder="pad")
    found["before"] = rows(itertools.islice(store_loader, 3))
    state = store_loader.state_dict()
    states: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(states, state)
    assert states == [state] * dist.get_world_size()
    found["state"] = state
    found["after"] = rows(store_loader)
    return found


def refuse(path: str) -> list[str]:
    """Return what is said where a rank would get the wrong rows."""
    errors: list[str] = []
    for make in (
        lambda: StoreIterableDataset(path, BATCH),  # remainder="keep"
        lambda: StoreIterableDataset(path, 200, remainder="drop"),
        lambda: StoreLoader(path, BATCH),
    ):
        try:
            make()
        except ValueError as error:
            errors.append(str(error))
    # The group goes in the middle of the training.
    dataset = StoreIterableDataset(path, BATCH, remainder="drop")
    loader = StoreLoader(path, BATCH, remainder="drop")
    list(dataset)
    next(iter(loader))
    dist.destroy_process_group()
    for iterable in (dataset, loader):
        try:
            list(iterable)
        except shardstore.StateError as error:
            errors.append(str(error))
    return errors


def run(path: str, out: str, rank: int, world_size: int) -> None:
    """Be one rank of a group."""
    torch.set_num_threads(1)
    early = StoreIterableDataset(path, BATCH, remainder="drop")  # made before the group: it finds it later
    meeting = f"file://{out}/meet-{world_size}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    found = read(path)
    found["early"] = rows(early)
    dist.barrier()
    found["errors"] = refuse(path)
    Path(out, f"{rank}-of-{world_size}.json").write_text(json.dumps(found))


def main(path: str, out: str, world_sizes: list[int]) -> None:
    """Run all ranks of all groups. Whoever begins this makes it a process group: it ends as a whole if a rank fails."""
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=run, args=(path, out, rank, world_size))
        for world_size in world_sizes
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    running = processes
    while running and not any(process.exitcode for process in processes):
        wait([process.sentinel for process in running])
        running = [process for process in running if process.is_alive()]
    if any(process.exitcode for process in processes):
        os.killpg(0, signal.SIGKILL)  # the others would wait for the one that failed, and so would their workers


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], list(map(int, sys.argv[3:])))
