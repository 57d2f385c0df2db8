"""The demo: real handwriting from `.npy` files into a store, and from the store into a classifier."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

import shardstore
from shardstore.errors import ShardStoreError
from shardstore.memory import PeakMemory, current_memory

SPLIT = "x=:-1,y=-1@int64"
SEED = 0
BATCH_SIZE = 64
EPOCHS = 25
HELD_OUT = 0.2


@dataclass
class DemoResult:
    """What the demo measured.

    Attributes:
        accuracy: share of the held-out rows that were classified right.
        held_out: how many those are.
        peak_anonymous: highest anonymous memory while it ingested, trained and evaluated, in bytes.
    """

    accuracy: float
    held_out: int
    peak_anonymous: int


def run_demo(say: Callable[[str], None], directory: Path | None = None) -> DemoResult:
    """Ingest the digits, train on shuffled batches, evaluate on held-out rows; tell what happens through `say`.

    Args:
        say: gets a line of text at a time.
        directory: where to put the store, which then stays there; by default a temporary place.

    Raises:
        ShardStoreError: if torch is not installed.
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise ShardStoreError("the demo trains a PyTorch model: install it with python -m pip install torch") from None
    from shardstore.torch import StoreIterableDataset

    before = current_memory()
    held = _mib(before.anonymous) if before else "an unknown amount"
    say(f"0. Before: Python and PyTorch hold {held} of anonymous memory")
    with PeakMemory() as peak, _store_directory(directory) as path, resources.as_file(_data()) as dumps:
        say(f"1. Ingest: {len(list(dumps.glob('*.npy')))} .npy files, split as {SPLIT}")
        begin = time.perf_counter()
        store = shardstore.ingest(dumps, path, split=SPLIT)
        seconds = time.perf_counter() - begin
        say(
            f"   {len(store):,} rows, {_mib(store.nbytes)} in {seconds:.2f} s: {store.nbytes / seconds / 1e6:,.0f} MB/s"
        )
        for name, field in store.schema.items():
            say(f"   column {name}: {field}, {_mib(store[name].nbytes)}")

        # A held-out set is a view: row numbers, no copy of any data.
        held_out_mask = np.random.default_rng(SEED).random(len(store)) < HELD_OUT
        training, held_out = store.rows(~held_out_mask), store.rows(held_out_mask)

        torch.manual_seed(SEED)
        model = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        dataset = StoreIterableDataset(training, batch_size=BATCH_SIZE, shuffle=True, seed=SEED, as_tuple=True)
        say(f"2. Train: {EPOCHS} epochs of {len(dataset)} shuffled batches, each epoch in an order of its own")
        begin = time.perf_counter()
        for epoch in range(EPOCHS):
            losses = []
            for x, y in dataset:
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(x / 16), y)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                losses.append(loss.item())
            if epoch % 6 == 0 or epoch == EPOCHS - 1:
                say(f"   epoch {epoch:2}: loss {np.mean(losses):.3f}")
        seconds = time.perf_counter() - begin
        say(f"   {EPOCHS * len(training) / seconds:,.0f} rows/s with the model's own work")

        begin = time.perf_counter()
        rows = sum(len(batch["y"]) for batch in training.batches(BATCH_SIZE, shuffle=True, seed=SEED, epochs=100))
        say(f"   {rows / (time.perf_counter() - begin):,.0f} rows/s from the store alone")

        # Random access: the held-out rows in a random order, taken by number.
        order = np.random.default_rng(SEED).permutation(len(held_out))
        right = 0
        for start in range(0, len(order), 128):
            batch = held_out.take(order[start : start + 128])
            with torch.no_grad():
                guess = model(torch.from_numpy(batch["x"]) / 16).argmax(1).numpy()
            right += int((guess == batch["y"]).sum())
        accuracy = right / len(held_out)
        say(f"3. Evaluate: {right} of {len(held_out)} held-out digits right, drawn by random access")
        store.close()
    say(f"   accuracy {accuracy:.3f}")
    if peak.anonymous:
        say(f"   peak anonymous memory {_mib(peak.anonymous)}, PyTorch included")
    if directory is not None:
        say(f"The store is at {directory}; look at it with: shardstore info {directory}")
    return DemoResult(accuracy, len(held_out), peak.anonymous)


def _data() -> resources.abc.Traversable:
    return resources.files("shardstore") / "demo_data"


@contextmanager
def _store_directory(directory: Path | None) -> Iterator[Path]:
    if directory is not None:
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="shardstore-demo-") as temporary:
        yield Path(temporary) / "digits"


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.1f} MiB"
