"""An epoch of a store, watched: every kind of memory and the rows delivered, over time."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

from shardstore.memory import current_memory
from shardstore.memory_report import cached_nbytes_of, shard_paths
from shardstore.planning import Shuffle
from shardstore.residency import resident_nbytes
from shardstore.store import Store

KINDS = ("anonymous", "file_backed", "resident", "page_cache", "mapped")

# Between two samples, and which share of a processor each kind of look may take.
_INTERVAL_SECONDS = 0.005
_MOST_OF_TIME = 1 / 20
# After a look that took long, the next one need not look at everything again.
_LONGEST_PAUSE = 0.05
# A look lets go of the interpreter for every file, and waits so long at most until it has it again.
_SWITCH_SECONDS = 0.0005
# When there are more, every second one goes.
_MOST_SAMPLES = 1000


@dataclass(frozen=True)
class Sample:
    """One look at the process and the store.

    Attributes:
        seconds: since the beginning.
        rows: delivered until now.
        anonymous: see `shardstore.memory_report.MemoryReport`, as for the following ones; in bytes.
        file_backed: resident pages of files.
        resident: of these, of the store's maps; where a look takes long, as it was at the last one.
        page_cache: of the store's files in the page cache; likewise.
        mapped: addresses that lead to the store's files.
    """

    seconds: float
    rows: int
    anonymous: int | None
    file_backed: int | None
    resident: int | None
    page_cache: int | None
    mapped: int


@dataclass(frozen=True)
class Profile:
    """What an epoch, or its beginning, cost.

    Attributes:
        path: the store.
        batch_size: rows of a batch.
        order: how rows were ordered, as a plan says it.
        columns: what was read.
        access: how pages were used.
        memory_budget: in bytes.
        row_nbytes: decoded bytes of a row.
        stored: bytes of the store's files.
        epoch_rows: rows of a whole epoch.
        samples: in order of time; the first one before any batch, the last one after all of them.
    """

    path: str
    batch_size: int
    order: dict[str, Any]
    columns: tuple[str, ...]
    access: str
    memory_budget: int
    row_nbytes: int
    stored: int
    epoch_rows: int
    samples: tuple[Sample, ...]

    @property
    def rows(self) -> int:
        """Rows that were delivered."""
        return self.samples[-1].rows

    @property
    def seconds(self) -> float:
        """How long that took."""
        return self.samples[-1].seconds

    @property
    def rows_per_second(self) -> float:
        """The mean rate."""
        return self.rows / self.seconds

    def moments(self) -> list[Sample]:
        """Return the samples at the start, next to a quarter, half and three quarters of the time, and at the end."""
        places = (0.25, 0.5, 0.75)
        inner = [min(self.samples, key=lambda sample: abs(sample.seconds - at * self.seconds)) for at in places]
        return [self.samples[0], *inner, self.samples[-1]]

    def peak(self, kind: str) -> int | None:
        """Return the highest value of one of `KINDS`; None where the system does not tell."""
        values = [value for sample in self.samples if (value := getattr(sample, kind)) is not None]
        return max(values) if values else None

    def growth(self, kind: str) -> int | None:
        """Return how far a kind rose above its value before the first batch."""
        peak, start = self.peak(kind), getattr(self.samples[0], kind)
        return None if peak is None or start is None else peak - start

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as plain JSON values, with a list for each kind of memory."""
        body = asdict(self)
        samples = body.pop("samples")
        return body | {
            "rows": self.rows,
            "seconds": self.seconds,
            "rows_per_second": self.rows_per_second,
            "peak": {kind: self.peak(kind) for kind in KINDS},
            "growth": {kind: self.growth(kind) for kind in KINDS},
            "samples": {key: [sample[key] for sample in samples] for key in ("seconds", "rows", *KINDS)},
        }


def profile(
    store: Store,
    batch_size: int,
    *,
    columns: Sequence[str] | None = None,
    shuffle: Shuffle = True,
    seed: int = 0,
    seconds: float = 20.0,
) -> Profile:
    """Stream an epoch of a store, for so many seconds at most, and sample what it costs.

    Args:
        store: the store, freshly opened: what it has mapped before counts too.
        batch_size: rows of a batch.
        columns: the columns to read; all by default.
        shuffle: see `Store.batches`.
        seed: of the order.
        seconds: after which the epoch is left.

    Raises:
        ValueError: if there are no rows, or an argument makes no sense.
        KeyError: if a column is unknown.
    """
    if not seconds > 0:
        raise ValueError(f"seconds is {seconds:g}; expected more than 0")
    if not len(store):
        raise ValueError(f"{store.path}: the store has no rows, so there is no epoch to profile")
    names = store.columns if columns is None else tuple(columns)
    stream = store.batches(batch_size, columns=names, shuffle=shuffle, seed=seed)
    with _Sampler(store) as sampler:
        for batch in stream:
            sampler.rows += len(batch[names[0]])
            if sampler.seconds > seconds:
                break
    return Profile(
        path=str(store.path),
        batch_size=batch_size,
        order=stream.plan.order.describe(),
        columns=names,
        access=store.files.budget.options.access,
        memory_budget=store.files.budget.total,
        row_nbytes=store.select(*names).row_nbytes,
        stored=store.stored_nbytes,
        epoch_rows=len(store),
        samples=tuple(sampler.samples),
    )


class _Seldom:
    """A look that takes some time, and so is taken only as often as its share of a processor allows."""

    def __init__(self, look: Callable[[], int | None]) -> None:
        self._look = look
        self._next = 0.0
        self._seen: int | None = None

    def value(self, now: bool = False) -> int | None:
        """Return what was seen last, after a new look if it is time for one, or if it has to be now."""
        clock = time.perf_counter()
        if now or clock >= self._next:
            begin = time.thread_time()  # waiting for a turn costs nothing
            self._seen = self._look()
            self._next = clock + (time.thread_time() - begin) / _MOST_OF_TIME
        return self._seen


class _Sampler:
    """A context manager that samples a store's memory from a thread.

    Attributes:
        rows: what the loop has got; the loop counts.
        samples: what was seen; complete after the end.
    """

    def __init__(self, store: Store) -> None:
        self.rows = 0
        self.samples: list[Sample] = []
        files, paths = store.files, shard_paths(store.files)
        self._ranges = files.mapped_ranges
        self._resident = _Seldom(lambda: resident_nbytes(files.mapped_ranges()))
        self._page_cache = _Seldom(lambda: cached_nbytes_of(paths))
        self._begin = 0.0
        self._switch = 0.0
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._watch, name="shardstore-profile", daemon=True)

    @property
    def seconds(self) -> float:
        """Time since the beginning."""
        return time.perf_counter() - self._begin

    def _sample(self, seconds: float | None = None) -> None:
        """Look; at a given time since the beginning, look at everything."""
        rows, at = self.rows, self.seconds if seconds is None else seconds
        process = current_memory()
        sample = Sample(
            seconds=at,
            rows=rows,
            anonymous=None if process is None else process.anonymous,
            file_backed=None if process is None else process.file_backed,
            resident=self._resident.value(seconds is not None),
            page_cache=self._page_cache.value(seconds is not None),
            mapped=sum(nbytes for _, nbytes in self._ranges()),
        )
        self.samples.append(sample)

    def _watch(self) -> None:
        interval = pause = _INTERVAL_SECONDS
        try:
            while not self._stop.wait(pause):
                begin = time.thread_time()
                self._sample()
                if len(self.samples) > _MOST_SAMPLES:
                    del self.samples[1::2]
                    interval *= 2
                pause = max(interval, min(_LONGEST_PAUSE, (time.thread_time() - begin) / _MOST_OF_TIME))
        except Exception as error:
            self._error = error

    def __enter__(self) -> Self:
        self._sample(0.0)
        self._switch = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_SECONDS)
        self._begin = time.perf_counter()  # what a first look costs is not the epoch's
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = self.seconds
        self._stop.set()
        self._thread.join()
        sys.setswitchinterval(self._switch)
        if error is not None:
            return
        if self._error is not None:
            raise self._error
        # Without one that was being taken when the last batch came.
        self.samples[:] = [sample for sample in self.samples if sample.seconds < seconds]
        self._sample(seconds)
