"""Ways to feed 256-row batches from .npy dumps, side by side on one job: speed, memory, and how far they shuffle.

The job: dumps of float32 `(n, 129)`, a few hundred MB in files of uneven length, the last column a label; one epoch in
batches of 256 rows, as torch tensors, with the sum of every batch. Each way runs in a fresh process and includes
whatever it must do at every start (loading files, opening maps); what is done only once (an ingest, one big file) is
listed beside it. Page tables are cold, the page cache is warm.

- RAM: all dumps are loaded into one array, then np.take in the order of a permutation.
- generator: shuffles the list of files, loads whole files, cuts the label off, glues files together for batches.
- rows: an IterableDataset that yields torch tensors of single rows, in DataLoader(batch_size=256).
- memmap: one big file, np.memmap, fancy indexing in the order of a permutation.
- shardstore: `store.batches(256, shuffle=True)`, and StoreIterableDataset in a DataLoader with two workers.

Anonymous memory is what a process and its workers hold beyond what they hold once torch is imported; file-backed memory
is page cache, which the system takes back when it needs it. Shuffle reach is the mean distance, in the dumps, of two
rows delivered one after the other, relative to that of a perfect shuffle (a third of all rows): 0 none, 1 perfect.

    python benchmarks/approaches.py [--json PATH] [--png PATH]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import common
import numpy as np

if TYPE_CHECKING:
    import torch

BATCH = 256
WIDTH = 129
FILES = 40
Pair = tuple["torch.Tensor", "torch.Tensor"]


@dataclass(frozen=True)
class Data:
    """The job's rows, in every form that one of the ways needs.

    Attributes:
        dumps: the `.npy` files, in order.
        rows: rows of all of them.
        joined: the same as one `.npy` file.
        store: the same as a store.
    """

    dumps: list[Path]
    rows: int
    joined: Path
    store: Path


# The ways. Each yields the (x, y) batches of one epoch; torch is imported by the process that runs it.


def from_ram(data: Data) -> Iterator[Pair]:
    """Load everything, then gather shuffled batches."""
    import torch

    x, y = np.empty((data.rows, WIDTH - 1), np.float32), np.empty(data.rows, np.int64)
    first = 0
    for path in data.dumps:
        dump = np.load(path)
        x[first : first + len(dump)], y[first : first + len(dump)] = dump[:, :-1], dump[:, -1]
        first += len(dump)
    order = np.random.default_rng(0).permutation(data.rows)
    for start in range(0, data.rows, BATCH):
        index = order[start : start + BATCH]
        yield torch.from_numpy(np.take(x, index, axis=0)), torch.from_numpy(np.take(y, index))


def from_generator(data: Data) -> Iterator[Pair]:
    """Load whole files in shuffled order and glue them together for batches."""
    import torch

    rest = np.empty((0, WIDTH), np.float32)
    for number in np.random.default_rng(0).permutation(len(data.dumps)):
        glued = np.concatenate([rest, np.load(data.dumps[number])])
        whole = len(glued) // BATCH * BATCH
        for start in range(0, whole, BATCH):
            batch = glued[start : start + BATCH]
            yield torch.from_numpy(batch[:, :-1]), torch.from_numpy(batch[:, -1].astype(np.int64))
        rest = glued[whole:]
    if len(rest):
        yield torch.from_numpy(rest[:, :-1]), torch.from_numpy(rest[:, -1].astype(np.int64))


def from_rows(data: Data) -> Iterable[Pair]:
    """Yield rows one by one, for a DataLoader to collate."""
    import torch
    from torch.utils.data import DataLoader, IterableDataset

    class Rows(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Pair]:
            for path in data.dumps:
                for row in np.load(path):
                    yield torch.tensor(row[:-1]), torch.tensor(row[-1])

    return DataLoader(Rows(), batch_size=BATCH)


def from_memmap(data: Data) -> Iterator[Pair]:
    """Gather shuffled batches from one mapped file by fancy indexing."""
    import torch

    mapped = np.load(data.joined, mmap_mode="r")
    order = np.random.default_rng(0).permutation(data.rows)
    for start in range(0, data.rows, BATCH):
        batch = mapped[order[start : start + BATCH]]
        yield torch.from_numpy(batch[:, :-1]), torch.from_numpy(batch[:, -1].astype(np.int64))


def from_store(data: Data) -> Iterator[Pair]:
    """Stream shuffled batches of a store."""
    import torch

    import shardstore

    for batch in shardstore.open(data.store).batches(BATCH, shuffle=True):
        yield torch.from_numpy(batch["x"]), torch.from_numpy(batch["y"])


def from_store_workers(data: Data) -> Iterable[Pair]:
    """Stream shuffled batches of a store through a DataLoader with two workers."""
    from torch.utils.data import DataLoader

    from shardstore.torch import StoreIterableDataset

    dataset = StoreIterableDataset(data.store, batch_size=BATCH, shuffle=True, as_tuple=True)
    return DataLoader(dataset, batch_size=None, num_workers=2)


@dataclass(frozen=True)
class Way:
    """A way to read: its name, its batches, what it needs done once, and its shuffle in words."""

    name: str
    batches: Callable[[Data], Iterable[Pair]]
    once: str | None
    shuffle: str


WAYS = (
    Way("all in RAM", from_ram, None, "all rows"),
    Way("generator over files", from_generator, None, "order of files only"),
    Way("rows through a DataLoader", from_rows, None, "none"),
    Way("one np.memmap", from_memmap, "join", "all rows"),
    Way("shardstore, batches", from_store, "ingest", "all rows"),
    Way("shardstore, 2 workers", from_store_workers, "ingest", "all rows"),
)


@dataclass(frozen=True)
class Epoch:
    """What one epoch showed.

    Attributes:
        start_seconds: from the beginning to the first batch.
        rest_seconds: from the first batch to the last.
        reach: the shuffle reach.
        complete: whether every row came exactly once.
        total: the sum of all batches.
    """

    start_seconds: float
    rest_seconds: float
    reach: float
    complete: bool
    total: float


def run_epoch(batches: Callable[[Data], Iterable[Pair]], data: Data) -> Epoch:
    """Do the job: sum every batch, and note where in the dumps its rows come from (their label says so)."""
    delivered = np.full(data.rows, -1, np.int64)
    position, total = 0, 0.0
    begin = first = time.perf_counter()
    for x, y in batches(data):
        if not position:
            first = time.perf_counter()
        total += float(x.sum())
        delivered[position : position + len(y)] = y
        position += len(y)
    end = time.perf_counter()
    complete = bool((np.bincount(delivered, minlength=data.rows) == 1).all())
    reach = float(np.abs(np.diff(delivered)).mean()) / (data.rows / 3)
    return Epoch(first - begin, end - first, reach, complete, total)


def join(dumps: list[Path], target: Path) -> float:
    """Write the dumps as one file; return the seconds."""

    def work() -> None:
        rows = sum(len(np.load(path, mmap_mode="r")) for path in dumps)
        joined = np.lib.format.open_memmap(target, "w+", np.float32, (rows, WIDTH))
        first = 0
        for path in dumps:
            dump = np.load(path)
            joined[first : first + len(dump)] = dump
            first += len(dump)
        joined.flush()

    return common.timed(work)()


def ingest(dumps: list[Path], target: Path) -> float:
    """Ingest the dumps; return the seconds."""
    import shardstore

    return common.timed(lambda: shardstore.ingest(dumps, target, split="x=:-1,y=-1@int64", progress=False))()


def draw(path: Path, results: list[dict[str, Any]], rows: int, nbytes: int) -> None:
    """Draw the chart."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = [result["name"] for result in results]
    colors = ["#d1652a" if name.startswith("shardstore") else "#7f8fa6" for name in names]
    panels = [
        ("rows_per_second", "Speed", "rows/s, whole epoch (log scale)"),
        ("anonymous_mb", "Anonymous memory, peak", "MB beyond the imports"),
        ("file_backed_mb", "File-backed memory, peak", "MB of page cache mapped"),
        ("reach", "Shuffle reach", "0 = none, 1 = perfect"),
    ]
    label: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 9}
    figure, axes = plt.subplots(1, len(panels), figsize=(15, 4.4), sharey=True, layout="constrained")
    for axis, (key, title, unit) in zip(axes, panels, strict=True):
        values = [max(0.0, result[key]) for result in results]
        axis.barh(names, values, color=colors)
        if key == "rows_per_second":
            later = [result["later_rows_per_second"] for result in results]
            low = min(values) / 20
            axis.plot(later, names, "D", color="black", markersize=5, label="after the first batch")
            axis.set_xscale("log")
            axis.set_xlim(low, max(values + later) * 25)
            axis.legend(loc="lower right", fontsize=8, frameon=False, handletextpad=0)
            for place, (whole, rest) in enumerate(zip(values, later, strict=True)):
                axis.annotate(f"{whole:,.0f}", (low, place), (4, 0), color="white", **label)
                axis.annotate(f"{rest:,.0f}", (rest, place), (7, 0), **label)
        else:
            axis.set_xlim(0, 1.25 * max(values))
            for place, value in enumerate(values):
                axis.annotate(f"{value:.2f}" if key == "reach" else f"{value:,.0f}", (value, place), (5, 0), **label)
        axis.set_title(title, fontsize=11, fontweight="bold")
        axis.set_xlabel(unit, fontsize=9)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    axes[-1].set_xticks([0, 0.5, 1])
    axes[0].invert_yaxis()
    figure.suptitle(f"One epoch of {rows:,} rows ({nbytes / common.MB:,.0f} MB of .npy dumps) in batches of {BATCH}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = common.parser(__doc__, repeats=5)
    parser.add_argument("--png", type=Path, help="file for the chart (needs matplotlib)")
    parser.add_argument("--rows", type=int, default=600_000)
    options = parser.parse_args()
    if options.png is not None:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            sys.exit("--png needs matplotlib: python -m pip install matplotlib")
    runs: dict[str, list[common.ChildRun]] = {way.name: [] for way in WAYS}
    with common.workspace(options.dir) as directory:
        dumps = common.write_dumps(directory / "dumps", options.rows, WIDTH, FILES)
        nbytes = sum(path.stat().st_size for path in dumps)
        data = Data(dumps, options.rows, directory / "joined.npy", directory / "store")
        once = {
            "join": common.run_in_child(join, dumps, data.joined).result,
            "ingest": common.run_in_child(ingest, dumps, data.store).result,
        }

        def way_of(way: Way) -> common.Way:
            def run() -> float:
                imports = ("torch", "torch.utils.data", "shardstore", "shardstore.torch")
                child = common.run_in_child(run_epoch, way.batches, data, imports=imports, interval=0.02)
                runs[way.name].append(child)
                return float(child.result.start_seconds + child.result.rest_seconds)

            return run

        seconds = common.alternate({way.name: way_of(way) for way in WAYS}, options.repeats, warm_up=False)
    results = []
    for way in WAYS:
        children = runs[way.name]
        epochs = [child.result for child in children]
        anonymous = [child.peak.anonymous - child.before.anonymous for child in children]
        file_backed = [child.peak.file_backed - child.before.file_backed for child in children]
        results.append(
            {
                "name": way.name,
                "once_seconds": once[way.once] if way.once else 0.0,
                "start_seconds": median(epoch.start_seconds for epoch in epochs),
                "rows_per_second": options.rows / median(seconds[way.name]),
                "later_rows_per_second": median((options.rows - BATCH) / epoch.rest_seconds for epoch in epochs),
                "anonymous_mb": median(anonymous) / common.MB,
                "file_backed_mb": median(file_backed) / common.MB,
                "imports_mb": median(child.before.anonymous for child in children) / common.MB,
                "reach": median(epoch.reach for epoch in epochs),
                "shuffle": way.shuffle,
                "complete": all(epoch.complete for epoch in epochs),
                "epochs": [asdict(epoch) for epoch in epochs],
                "seconds": seconds[way.name],
            }
        )
    common.print_table(
        f"One epoch of {options.rows:,} rows ({nbytes / common.MB:,.0f} MB in {FILES} dumps), batches of {BATCH}",
        [
            "way",
            "once, s",
            "to first batch, s",
            "rows/s",
            "rows/s after it",
            "anonymous, MB",
            "file-backed, MB",
            "shuffle",
            "reach",
            "once each",
        ],
        [
            [
                result["name"],
                f"{result['once_seconds']:.2f}" if result["once_seconds"] else "",
                f"{result['start_seconds']:.2f}",
                f"{result['rows_per_second']:,.0f}",
                f"{result['later_rows_per_second']:,.0f}",
                f"{result['anonymous_mb']:,.0f}",
                f"{result['file_backed_mb']:,.0f}",
                result["shuffle"],
                f"{result['reach']:.2f}",
                "yes" if result["complete"] else "NO",
            ]
            for result in results
        ],
        caption=f"Medians of {options.repeats} rounds. Memory is the peak beyond what the imports hold "
        f"({results[0]['imports_mb']:.0f} MB anonymous).",
    )
    common.save_json(options.json, "approaches", rows=options.rows, nbytes=nbytes, results=results)
    if options.png is not None:
        draw(options.png, results, options.rows, nbytes)


if __name__ == "__main__":
    main()
