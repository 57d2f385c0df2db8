"""Batches of 256 random documents of about 280 bytes: a ragged column beside slices of an array in RAM, and mmap_ninja.

200,000 documents of uint8, warm. RAM is what one writes by hand: a slice for each document, np.concatenate, and the
offsets. mmap_ninja's RaggedMmap gives a list of arrays; it is left out where it is not installed. The compressed column
is read through its cache of decoded chunks (a window shuffle decodes each chunk once; that is window_epoch.py).

    python benchmarks/ragged.py [--json PATH]
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
from numpy.typing import NDArray

import shardstore

DOCUMENTS = 200_000
PICKED = 256
Take = Callable[[NDArray[np.int64]], Any]


def documents(mean: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the bytes of all documents, and where each begins."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(mean // 2, mean * 3 // 2 + 1, DOCUMENTS)
    return rng.integers(97, 113, lengths.sum(), np.uint8), np.concatenate([[0], np.cumsum(lengths)])


def from_ram(values: NDArray[Any], offsets: NDArray[np.int64]) -> Take:
    """Return the loop that one writes by hand."""

    def take(rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        starts, stops = offsets[rows], offsets[rows + 1]
        joined = np.concatenate([values[a:b] for a, b in zip(starts.tolist(), stops.tolist(), strict=True)])
        return joined, np.concatenate([[0], np.cumsum(stops - starts)])

    return take


def way(take: Take, takes: int) -> common.Way:
    """Return a way that takes `takes` times other documents, and returns the seconds of one take."""
    rng = np.random.default_rng(1)

    def run() -> float:
        picked = rng.integers(0, DOCUMENTS, (takes, PICKED))
        return common.timed(lambda: [None for rows in picked if take(rows) is None])() / takes

    return run


def ninja(directory: Path, values: NDArray[Any], offsets: NDArray[np.int64]) -> Take | None:
    """Return mmap_ninja's way, or None where it is not installed."""
    if importlib.util.find_spec("mmap_ninja") is None:
        return None
    from mmap_ninja.ragged import RaggedMmap

    rows = (values[a:b] for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))
    memmap: Any = RaggedMmap.from_generator(directory / "ninja", rows, 10_000)
    return lambda index: memmap[index]


def main() -> None:
    options = common.parser(__doc__, repeats=15).parse_args()
    figures, raw = [], {}
    for mean in (280, 16):
        values, offsets = documents(mean)
        with common.workspace(options.dir) as directory:
            for codec in ("raw", "zstd"):
                with shardstore.Writer(directory / codec, codec=codec) as writer:
                    writer.append({"document": shardstore.Ragged(values, offsets)})
            stores = {codec: shardstore.open(directory / codec)["document"] for codec in ("raw", "zstd")}
            check = np.random.default_rng(2).integers(0, DOCUMENTS, PICKED)
            ram = from_ram(values, offsets)
            for column in stores.values():
                np.testing.assert_array_equal(column.take(check).values, ram(check)[0])
            stores["raw"][:].values.sum()  # populates the page tables
            ways = {
                "store": way(stores["raw"].take, 1000),
                "RAM": way(ram, 1000),
                "zstd store": way(stores["zstd"].take, 20),
            }
            if mean == 280 and (peer := ninja(directory, values, offsets)) is not None:
                np.testing.assert_array_equal(np.concatenate(peer(check)), ram(check)[0])
                ways["mmap_ninja"] = way(peer, 200)
            seconds = common.alternate(ways, options.repeats)
        raw[str(mean)] = seconds
        about = f"{mean} bytes"
        figures += [
            common.Figure(f"{about}, {name}", [PICKED / s for s in runs], "documents/s")
            for name, runs in seconds.items()
        ]
        target = 0.5 if mean == 280 else None
        figures.append(
            common.Figure(f"{about}, store / RAM", common.speed_ratios(seconds, "store", "RAM"), "×", target)
        )
        if "mmap_ninja" in seconds:
            ratios = common.speed_ratios(seconds, "store", "mmap_ninja")
            figures.append(common.Figure(f"{about}, store / mmap_ninja", ratios, "×", 4))
    common.report(f"Takes of {PICKED} random documents", figures, options.json, seconds=raw)


if __name__ == "__main__":
    main()
