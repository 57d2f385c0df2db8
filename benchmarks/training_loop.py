"""A training loop on the CPU that is fed by `StoreLoader`, beside the same model on one batch again and again.

51,200 rows of float32[128] and an int64 label, everything in the page cache, shuffled, batches of 256; a small MLP
(128-256-10), cross entropy and SGD, 200 steps a run. Each number of torch's threads is measured with every `prefetch`:

- alone: one batch, which is there from the beginning.
- prefetch N: `StoreLoader(..., prefetch=N)`; 0 reads in the training thread.

A run also adds up the time that the loop waits for its next batch, and the processor time of all its threads; what else
a step costs beyond the model alone is what the loader's thread takes from the model's (cores, caches, the interpreter's
lock).

    python benchmarks/training_loop.py [--threads 1,2] [--prefetch 0,1,2,4,8] [--json PATH]
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from statistics import median

import common
import numpy as np
import torch

import shardstore
from shardstore.torch import StoreLoader

ROWS, WIDTH, CLASSES, BATCH = 51_200, 128, 10, 256
STEPS = ROWS // BATCH
Batch = tuple[torch.Tensor, torch.Tensor]


class Training:
    """A model and what a run of it waits for."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self._model = torch.nn.Sequential(torch.nn.Linear(WIDTH, 256), torch.nn.ReLU(), torch.nn.Linear(256, CLASSES))
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=0.01)
        self._loss = torch.nn.CrossEntropyLoss()

    def run(self, batches: Iterable[Batch]) -> float:
        """Train on all batches; return the seconds spent waiting for them."""
        waited, steps = 0.0, 0
        begin = time.perf_counter()
        for x, y in batches:
            waited += time.perf_counter() - begin
            self._optimizer.zero_grad(set_to_none=True)
            self._loss(self._model(x), y).backward()
            self._optimizer.step()
            steps += 1
            begin = time.perf_counter()
        assert steps == STEPS
        return waited


@dataclass
class Spent:
    """Milliseconds a step of each run: waiting for batches, and of the processor."""

    waiting: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


def way(batches: Callable[[], Iterable[Batch]], threads: int, spent: Spent) -> common.Way:
    """Return a way that trains on `threads` threads, and notes what a run spent."""
    training = Training()

    def run() -> float:
        torch.set_num_threads(threads)
        start, processor = time.perf_counter(), time.process_time()
        waited = training.run(batches())
        seconds = time.perf_counter() - start
        spent.processor.append(1e3 * (time.process_time() - processor) / STEPS)
        spent.waiting.append(1e3 * waited / STEPS)
        return seconds

    return run


def main() -> None:
    parser = common.parser(__doc__, repeats=7)
    parser.add_argument("--threads", default="1,2", help="numbers of torch's threads (default: %(default)s)")
    parser.add_argument("--prefetch", default="0,1,2,4,8", help="settings of the loader (default: %(default)s)")
    options = parser.parse_args()
    settings = [int(text) for text in options.prefetch.split(",")]
    x, y = common.random_rows(ROWS, WIDTH), np.arange(ROWS) % CLASSES
    figures: list[common.Figure] = []
    seconds: dict[str, list[float]] = {}
    raw: dict[str, dict[str, list[float]]] = {}
    with common.workspace(options.dir) as directory:
        with shardstore.Writer(directory / "store", shard_bytes="4MiB") as writer:
            writer.append({"x": x, "y": y})
        batch = (torch.from_numpy(x[:BATCH].copy()), torch.from_numpy(y[:BATCH].copy()))
        loaders = {
            f"prefetch {prefetch}": StoreLoader(
                directory / "store", BATCH, shuffle=True, as_tuple=True, prefetch=prefetch
            )
            for prefetch in settings
        }
        for threads in (int(text) for text in options.threads.split(",")):
            sources: dict[str, Callable[[], Iterable[Batch]]] = {"alone": lambda: itertools.repeat(batch, STEPS)}
            sources |= {name: lambda loader=loader: loader for name, loader in loaders.items()}  # type: ignore[misc]
            spent = {name: Spent() for name in sources}
            ways = {name: way(source, threads, spent[name]) for name, source in sources.items()}
            times = common.alternate(ways, options.repeats)
            prefix = f"{threads} thread{'s' * (threads > 1)}"
            figures += figures_of(prefix, times, spent)
            seconds |= {f"{prefix}, {name}": runs for name, runs in times.items()}
            raw |= {f"{prefix}, {name}": asdict(runs) for name, runs in spent.items()}
        for loader in loaders.values():
            loader.close()
    common.report(
        f"Training on the CPU, {STEPS} steps of {BATCH} rows",
        figures,
        options.json,
        seconds=seconds,
        spent_ms=raw,
    )


def figures_of(prefix: str, seconds: dict[str, list[float]], spent: dict[str, Spent]) -> list[common.Figure]:
    """Return what a step costs, what of it is waiting, and how it compares to the model alone."""
    alone = seconds["alone"]
    figures = [common.Figure(f"{prefix}, alone", [1e3 * s / STEPS for s in alone], "ms a step")]
    for name in seconds:
        if name == "alone":
            continue
        ratios = [ours / theirs for ours, theirs in zip(seconds[name], alone, strict=True)]
        more = [a - b for a, b in zip(spent[name].processor, spent["alone"].processor, strict=True)]
        figures += [
            common.Figure(f"{prefix}, {name} / alone", ratios, "×", 1.05, at_least=False),
            # The first run was the warm-up.
            common.Figure(f"{prefix}, {name}, waiting", spent[name].waiting[1:], "ms a step"),
            common.Figure(f"{prefix}, {name}, processor time more than alone", more[1:], "ms a step"),
        ]
    best = min((name for name in seconds if name != "alone"), key=lambda name: median(seconds[name]))
    print(f"{prefix}: {best} is the fastest")
    return figures


if __name__ == "__main__":
    main()
