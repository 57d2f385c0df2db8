"""DataLoader with two worker processes: ready batches of a store, beside TensorDataset with default collate.

96,000 rows of float32[128] and an int64, 256-row batches, everything in the page cache; the workers live on between the
epochs. `StoreLoader`, which has a thread instead of workers, is shown beside them.

    python benchmarks/workers.py [--json PATH]
"""

from __future__ import annotations

from typing import Any

import common
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

import shardstore
from shardstore.torch import StoreIterableDataset, StoreLoader

ROWS, WIDTH, BATCH, WORKERS = 96_000, 128, 256, 2


def drain(loader: Any) -> None:
    """Take every batch and look at it."""
    rows = 0
    for batch in loader:
        columns = list(batch.values()) if isinstance(batch, dict) else batch
        rows += len(columns[0])
    assert rows == ROWS


def main() -> None:
    options = common.parser(__doc__, repeats=9).parse_args()
    x, y = common.random_rows(ROWS, WIDTH), np.arange(ROWS, dtype=np.int64)
    with common.workspace(options.dir) as directory:
        with shardstore.Writer(directory / "store", shard_bytes="4MiB") as writer:
            writer.append({"x": x, "y": y})
        workers: dict[str, Any] = {"num_workers": WORKERS, "persistent_workers": True}
        tensors = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
        loaders = {
            "TensorDataset": DataLoader(tensors, batch_size=BATCH, shuffle=True, **workers),
            "StoreIterableDataset": DataLoader(
                StoreIterableDataset(directory / "store", BATCH, shuffle=True), batch_size=None, **workers
            ),
            "StoreLoader": StoreLoader(directory / "store", BATCH, shuffle=True),
        }
        ways = {name: common.timed(lambda loader=loader: drain(loader)) for name, loader in loaders.items()}
        seconds = common.alternate(ways, options.repeats)
        loaders.clear()
    figures = [common.Figure(name, [ROWS / s / 1e3 for s in runs], "k rows/s") for name, runs in seconds.items()]
    for name in ("StoreIterableDataset", "StoreLoader"):
        ratios = common.speed_ratios(seconds, name, "TensorDataset")
        figures.append(common.Figure(f"{name} / TensorDataset", ratios, "×", 5))
    common.report(f"DataLoader with {WORKERS} workers", figures, options.json, seconds=seconds)


if __name__ == "__main__":
    main()
