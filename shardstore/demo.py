"""The demo: real handwriting from `.npy` files into a store, and from the store into a classifier.

Its training process is killed in the middle of an epoch, and goes on from where it was saved with another batch size.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

import shardstore
from shardstore.errors import ShardStoreError
from shardstore.memory import PeakMemory, current_memory

SPLIT = "x=:-1,y=-1@int64"
SEED = 0
BATCH_SIZE = 64
RESUMED_BATCH_SIZE = 50
EPOCHS = 25
KILLED_EPOCH = 8
HELD_OUT = 0.2


@dataclass
class DemoResult:
    """What the demo measured.

    Attributes:
        accuracy: share of the held-out rows that were classified right.
        held_out: how many those are.
        saved_rows: rows of the interrupted epoch that were trained on before the save.
        resumed_rows: rows of that epoch that came after the restart.
        every_row_once: whether both together are every row of the training set, once.
        peak_anonymous: highest anonymous memory while it ingested, trained and evaluated, in bytes.
    """

    accuracy: float
    held_out: int
    saved_rows: int
    resumed_rows: int
    every_row_once: bool
    peak_anonymous: int


def run_demo(say: Callable[[str], None], directory: Path | None = None) -> DemoResult:
    """Ingest the digits, train on shuffled batches with an interruption, evaluate on held-out rows.

    Args:
        say: gets a line of text at a time.
        directory: where to put the store, which then stays there; by default a temporary place.

    Raises:
        ShardStoreError: if torch is not installed, or if the training process does not do its part.
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise ShardStoreError("the demo trains a PyTorch model: install it with python -m pip install torch") from None

    before = current_memory()
    held = _mib(before.anonymous) if before else "an unknown amount"
    say(f"0. Before: Python and PyTorch hold {held} of anonymous memory")
    with (
        PeakMemory() as peak,
        _store_directory(directory) as path,
        resources.as_file(_data()) as dumps,
        tempfile.TemporaryDirectory(prefix="shardstore-demo-") as scratch,
    ):
        say(f"1. Ingest: {len(list(dumps.glob('*.npy')))} .npy files, split as {SPLIT}")
        begin = time.perf_counter()
        store = shardstore.ingest(dumps, path, split=SPLIT)
        seconds = time.perf_counter() - begin
        say(
            f"   {len(store):,} rows, {_mib(store.nbytes)} in {seconds:.2f} s: {store.nbytes / seconds / 1e6:,.0f} MB/s"
        )
        for name, field in store.schema.items():
            say(f"   column {name}: {field}, {_mib(store[name].nbytes)}")
        parts = _parts(store)
        held_out = parts["held_out"]

        say(f"2. Train in a process of its own, in shuffled batches of {BATCH_SIZE}")
        checkpoint = Path(scratch) / "checkpoint.pt"
        lost = _train_until_killed(path, checkpoint)
        say(f"   killed in epoch {KILLED_EPOCH}, {lost} batches behind its last save: those are forgotten")

        training = _Training(parts["training"], RESUMED_BATCH_SIZE)
        training.restore(checkpoint)
        saved = list(training.rows)
        say(f"3. Resume in batches of {RESUMED_BATCH_SIZE}: {len(saved):,} rows of the epoch came before the save")
        begin, trained = time.perf_counter(), 0
        resumed, once = [], False
        for epoch, loss in training.epochs():
            trained += len(training.rows)
            if epoch == KILLED_EPOCH:
                resumed = training.rows[len(saved) :]
                trained -= len(saved)
                once = sorted(saved + resumed) == sorted(training.all_rows())
                say(f"   {len(resumed):,} came now; together every row of the epoch once: {'yes' if once else 'NO'}")
            if epoch % 6 == 0 or epoch == EPOCHS - 1:
                say(f"   epoch {epoch:2}: loss {loss:.3f}")
        say(f"   {trained / (time.perf_counter() - begin):,.0f} rows/s with the model's own work")

        begin = time.perf_counter()
        batches = parts["training"].batches(BATCH_SIZE, shuffle=True, seed=SEED, epochs=100)
        rows = sum(len(batch["y"]) for batch in batches)
        say(f"   {rows / (time.perf_counter() - begin):,.0f} rows/s from the store alone")

        # Random access: the held-out rows in a random order, taken by number.
        right = 0
        order = np.random.default_rng(SEED).permutation(len(held_out))
        for start in range(0, len(order), 128):
            batch = held_out.take(order[start : start + 128])
            with torch.no_grad():
                guess = training.model(torch.from_numpy(batch["x"]) / 16).argmax(1).numpy()
            right += int((guess == batch["y"]).sum())
        accuracy = right / len(held_out)
        say(f"4. Evaluate: {right} of {len(held_out)} held-out digits right, drawn by random access")
        store.close()
    say(f"   accuracy {accuracy:.3f}")
    if peak.anonymous:
        say(f"   peak anonymous memory {_mib(peak.anonymous)}, PyTorch included")
    if directory is not None:
        say(f"The store is at {directory}; look at it with: shardstore info {directory}")
    return DemoResult(accuracy, len(held_out), len(saved), len(resumed), once, peak.anonymous)


class _Training:
    """A model, its optimizer and the loader that feeds it; saved and restored together."""

    def __init__(self, table: shardstore.View, batch_size: int) -> None:
        import torch

        from shardstore.torch import StoreLoader

        torch.manual_seed(SEED)
        self._table = table
        self.model = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 10))
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=2e-3)
        self._loader = StoreLoader(table, batch_size, shuffle=True, seed=SEED, as_tuple=True, with_rows=True)
        # The rows of the current epoch that were trained on.
        self.rows: list[int] = []

    def all_rows(self) -> list[int]:
        """Return the numbers of all rows of the training set."""
        return sorted(row for batch in self._table.batches(1024, with_rows=True) for row in batch["rows"].tolist())

    def losses(self) -> Iterator[float]:
        """Train on the rest of an epoch; yield the loss of each step."""
        import torch

        for x, y, rows in self._loader:
            self._optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(self.model(x / 16), y)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            self.rows += rows.tolist()
            yield loss.item()

    def epochs(self) -> Iterator[tuple[int, float]]:
        """Train to the end; yield each epoch's number and mean loss."""
        for epoch in range(self._loader.epoch, EPOCHS):
            loss = float(np.mean(list(self.losses())))
            yield epoch, loss
            self.rows = []

    def save(self, path: Path) -> None:
        """Write a checkpoint, which appears whole or not at all."""
        import torch

        parts: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "loader": self._loader.state_dict(),
            "rows": self.rows,
        }
        torch.save(parts, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint."""
        import torch

        parts = torch.load(path, weights_only=True)
        self.model.load_state_dict(parts["model"])
        self._optimizer.load_state_dict(parts["optimizer"])
        self._loader.load_state_dict(parts["loader"])
        self.rows = parts["rows"]


def _parts(store: shardstore.Store) -> dict[str, shardstore.View]:
    """Split the rows: the parts are views, and take no memory."""
    return store.split(training=1 - HELD_OUT, held_out=HELD_OUT, seed=SEED)


def _train_until_killed(path: Path, checkpoint: Path) -> int:
    """Train in a process, kill it behind a save in the middle of an epoch; return how many batches it was ahead."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_train_and_report, args=(path, checkpoint, sending))
    process.start()
    sending.close()
    lost = 0
    try:
        while lost < 3:
            lost = receiving.recv()
    except EOFError:
        process.join()
        raise ShardStoreError(f"the training process ended by itself, with exit code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
    return lost


def _train_and_report(path: Path, checkpoint: Path, progress: Connection) -> None:
    """Train; save once in the middle of an epoch, and from then on tell how many batches that was ago."""
    training = _Training(_parts(shardstore.open(path))["training"], BATCH_SIZE)
    for _ in range(KILLED_EPOCH):
        for _ in training.losses():
            pass
        training.rows = []
    for step, _ in enumerate(training.losses()):
        if step == 9:
            training.save(checkpoint)
        if step >= 9:
            progress.send(step - 9)
    time.sleep(3600)  # until it is killed


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
