"""Windows of tokens for a language model: a store beside the loop over one memory-mapped .bin, and RAM.

uint16 tokens of documents of 30 to 3,000 tokens, raw, warm. A batch is 256 windows of 256 tokens.

- Random batches: `Column.take` of any windows, beside the usual loop (a slice of an `np.memmap` for each window, then
  `np.stack`), and beside one indexing operation on the tokens in RAM. Windows begin at multiples of their length, and
  at any token (`stride=1`).
- A shuffled epoch: all windows once, beside the same loop with a permutation that is made each time.
- Documents and positions of every token, for attention masks; the loop looks them up with `np.searchsorted`.

    python benchmarks/token_windows.py [--json PATH]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import common
import numpy as np
from numpy.typing import NDArray

import shardstore

LENGTH = 256
BATCH = 256
Tokens = NDArray[np.uint16]
Read = Callable[[NDArray[np.int64]], Any]


def make_documents(tokens: int) -> shardstore.Ragged:
    """Return documents of random tokens, of `tokens` together."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(30, 3000, tokens // 1500)
    return shardstore.Ragged.from_lengths(rng.integers(0, 50_000, lengths.sum(), np.uint16), lengths)


def stacked(text: Tokens, starts: NDArray[np.int64]) -> Tokens:
    """Return windows the usual way: a slice for each, stacked."""
    return np.stack([text[start : start + LENGTH] for start in starts.tolist()])


def looked_up(offsets: NDArray[np.int64], starts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the document and the position of every token of some windows, by a search for each token."""
    places = starts[:, None] + np.arange(LENGTH)
    documents = np.searchsorted(offsets, places, "right") - 1
    return documents, places - offsets[documents]


def way(read: Read, count: int, takes: int) -> common.Way:
    """Return a way that reads `takes` batches of other windows of `count`, and returns the seconds of one."""
    rng = np.random.default_rng(1)

    def run() -> float:
        picked = rng.integers(0, count, (takes, BATCH))
        return common.timed(lambda: [None for windows in picked if read(windows) is None])() / takes

    return run


def epoch(text: Tokens, count: int) -> common.Way:
    """Return a way that reads all windows once in random order with the usual loop."""
    rng = np.random.default_rng(2)

    def run() -> None:
        order = rng.permutation(count) * LENGTH
        for start in range(0, count, BATCH):
            stacked(text, order[start : start + BATCH])

    return common.timed(run)


def gathered_epoch(text: Tokens, count: int) -> common.Way:
    """Return a way that reads all windows once in random order as rows of a table in RAM."""
    table = text[: count * LENGTH].reshape(count, LENGTH)
    rng = np.random.default_rng(2)

    def run() -> None:
        order = rng.permutation(count)
        for start in range(0, count, BATCH):
            table.take(order[start : start + BATCH], axis=0)

    return common.timed(run)


def streamed(view: shardstore.View) -> common.Way:
    """Return a way that streams all windows once in random order."""
    return common.timed(lambda: sum(1 for _ in view.batches(BATCH, shuffle=True)))


def main() -> None:
    parser = common.parser(__doc__, repeats=15)
    parser.add_argument("--tokens", type=int, default=200_000_000)
    options = parser.parse_args()
    with common.workspace(options.dir) as directory:
        documents = make_documents(options.tokens)
        text, offsets = documents.values, documents.offsets
        with shardstore.Writer(directory / "store") as writer:
            writer.append({"tokens": documents})
        text.tofile(directory / "tokens.bin")
        mapped = np.memmap(directory / "tokens.bin", np.uint16, "r")
        store = shardstore.open(directory / "store")
        windows, anywhere = store.windows("tokens", LENGTH), store.windows("tokens", LENGTH, stride=1)
        told = store.windows("tokens", LENGTH, documents=True, positions=True)
        count, starts = len(windows), len(anywhere)
        check = np.random.default_rng(3).integers(0, count, BATCH)
        np.testing.assert_array_equal(windows["tokens"].take(check), stacked(mapped, check * LENGTH))
        np.testing.assert_array_equal(anywhere["tokens"].take(check), stacked(mapped, check))
        expected = looked_up(offsets, check * LENGTH)
        for name, values in zip(("document", "position"), expected, strict=True):
            np.testing.assert_array_equal(told[name].take(check), values)
        mapped.sum(), np.asarray(store.windows("tokens", LENGTH)["tokens"]).sum()  # populates the page tables
        table, within = text[: count * LENGTH].reshape(count, LENGTH), np.arange(LENGTH)
        seconds = common.alternate(
            {
                "windows, store": way(windows["tokens"].take, count, 500),
                "windows, memmap loop": way(lambda index: stacked(mapped, index * LENGTH), count, 50),
                "windows, RAM": way(lambda index: table.take(index, axis=0), count, 500),
                "any start, store": way(anywhere["tokens"].take, starts, 500),
                "any start, memmap loop": way(lambda index: stacked(mapped, index), starts, 50),
                "any start, RAM": way(lambda index: text[index[:, None] + within], starts, 200),
                "documents and positions, store": way(told.select("document", "position").take, count, 50),
                "documents and positions, search": way(lambda index: looked_up(offsets, index * LENGTH), count, 5),
            },
            options.repeats,
        )
        epochs = common.alternate(
            {
                "epoch, store": streamed(windows),
                "epoch, memmap loop": epoch(mapped, count),
                "epoch, RAM": gathered_epoch(text, count),
            },
            max(3, options.repeats // 3),
        )
    pairs = [
        (seconds, "windows, store", "windows, RAM"),
        (seconds, "windows, store", "windows, memmap loop"),
        (seconds, "any start, store", "any start, RAM"),
        (seconds, "any start, store", "any start, memmap loop"),
        (seconds, "documents and positions, store", "documents and positions, search"),
        (epochs, "epoch, store", "epoch, RAM"),
        (epochs, "epoch, store", "epoch, memmap loop"),
    ]
    figures = [common.Figure(name, [1e6 * s for s in runs], "µs a batch") for name, runs in seconds.items()]
    figures += [
        common.Figure(name, [count * LENGTH / s / 1e6 for s in runs], "M tokens/s") for name, runs in epochs.items()
    ]
    figures += [
        common.Figure(f"{ours} / {theirs.split(', ')[1]}", common.speed_ratios(by_way, ours, theirs), "×")
        for by_way, ours, theirs in pairs
    ]
    common.report(
        f"Batches of {BATCH} windows of {LENGTH} tokens, of {len(text):,}",
        figures,
        options.json,
        seconds=seconds,
        epochs=epochs,
    )


if __name__ == "__main__":
    main()
