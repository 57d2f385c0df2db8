"""StoreLoader with a CUDA device: the bandwidth it keeps, and whether any batch is corrupted on its way.

Bandwidth: 16,384 rows of uint8[3, 224, 224] (2.5 GB) with an int64 each, in the page cache, shuffled, batches of 256
rows (38.5 MB) that `StoreLoader(device="cuda")` reads ahead, pins and copies. Beside it stands the copy of one pinned
batch to the device, again and again, which is what the bus gives.

Corruption: 10,000 batches of 256 rows of int64[64], whose values are all made of the row's number. On the device each
batch is compared with what its row numbers say, while the next ones are on their way; consumers of different speeds
take turns, so that buffers are used again early and late.

Without a CUDA device the program says so, and that is all.

    python benchmarks/cuda.py [--batches 10000] [--json PATH]
"""

from __future__ import annotations

from pathlib import Path

import common
import numpy as np
import torch

import shardstore
from shardstore.torch import StoreLoader

BATCH = 256
IMAGE = (3, 224, 224)
WIDTH = 64
# An odd multiplier: another number for every row, and all bits change.
FACTOR = 0x9E3779B97F4A7C15 - (1 << 64)


def make_images(path: Path, rows: int) -> Path:
    """Write random images, and the number of each."""
    block = np.random.default_rng(0).integers(0, 256, (1024, *IMAGE), np.uint8)
    with shardstore.Writer(path, shard_bytes="64MiB") as writer:
        for start in range(0, rows, len(block)):
            count = min(len(block), rows - start)
            writer.append({"x": block[:count], "y": np.arange(start, start + count)})
    return path


def make_numbers(path: Path, rows: int) -> Path:
    """Write rows whose values are made of their numbers."""
    with shardstore.Writer(path, shard_bytes="4MiB") as writer:
        for start in range(0, rows, 65_536):
            numbers = np.arange(start, min(start + 65_536, rows))
            writer.append({"x": numbers[:, None] * np.int64(FACTOR) + np.arange(WIDTH), "y": numbers})
    return path


def drain(loader: StoreLoader, rows: int) -> None:
    """Take an epoch's batches, and wait until the last one has arrived."""
    taken = sum(len(batch["y"]) for batch in loader)
    torch.cuda.synchronize()
    assert taken == rows


def copies(count: int) -> common.Way:
    """Return a way that copies a pinned batch to the device `count` times."""
    host = torch.empty((BATCH, *IMAGE), dtype=torch.uint8).pin_memory()
    device = torch.empty_like(host, device="cuda")

    def work() -> None:
        for _ in range(count):
            device.copy_(host, non_blocking=True)
        torch.cuda.synchronize()

    return common.timed(work)


def corrupted(path: Path, batches: int) -> tuple[int, int]:
    """Return how many batches were looked at on the device, and how many of these were not what they should be."""
    loader = StoreLoader(path, BATCH, shuffle=True, epochs=None, device="cuda", with_rows=True)
    columns = torch.arange(WIDTH, device="cuda")
    load = torch.rand((2048, 2048), device="cuda")
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    looked = 0
    kept: list[tuple[dict[str, torch.Tensor], torch.Tensor]] = []
    for batch in loader:
        if looked % 1000 < 300:  # a device that is busy looks at the batch long after it was delivered
            load = (load @ load).clamp_(0, 1)
        expected = batch["rows"][:, None] * FACTOR + columns
        bad = (batch["x"] != expected).any() | (batch["y"] != batch["rows"]).any()
        wrong += bad.to(torch.int64)
        kept = [*kept[-7:], (batch, expected)]  # the consumer holds on to some batches for a while
        old, was = kept[0]
        wrong += (old["x"] != was).any().to(torch.int64)
        looked += 1
        if looked % 1000 > 900:
            torch.cuda.synchronize()  # a consumer that waits for each batch
        if looked == batches:
            break
    result = int(wrong)
    loader.close()
    return looked, result


def main() -> None:
    parser = common.parser(__doc__, repeats=7)
    parser.add_argument("--rows", type=int, default=16_384)
    parser.add_argument("--batches", type=int, default=10_000)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was measured")
        return
    nbytes = options.rows * (int(np.prod(IMAGE)) + 8)
    with common.workspace(options.dir) as directory:
        images = make_images(directory / "images", options.rows)
        loader = StoreLoader(images, BATCH, shuffle=True, device="cuda")
        plain = StoreLoader(images, BATCH, shuffle=True, device="cuda", pin_memory=False)
        ways = {
            "pinned copies": copies(options.rows // BATCH),
            "StoreLoader": common.timed(lambda: drain(loader, options.rows)),
            "StoreLoader, not pinned": common.timed(lambda: drain(plain, options.rows)),
        }
        seconds = common.alternate(ways, options.repeats)
        loader.close()
        plain.close()
        looked, wrong = corrupted(make_numbers(directory / "numbers", 1_000_000), options.batches)
    figures = [common.Figure(name, [nbytes / s / 1e9 for s in runs], "GB/s") for name, runs in seconds.items()]
    figures += [
        common.Figure(
            "StoreLoader / pinned copies", common.speed_ratios(seconds, "StoreLoader", "pinned copies"), "×", 0.9
        ),
        common.Figure(f"corrupted of {looked:,} batches", [wrong], "batches", 0, at_least=False),
    ]
    device = torch.cuda.get_device_name()
    common.report(f"StoreLoader and {device}", figures, options.json, seconds=seconds, device=device)


if __name__ == "__main__":
    main()
