"""`BenchReport`: what was measured of a store, where the time goes, and what to set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from shardstore.bench.ceilings import Ceilings
from shardstore.bench.jobs import IN_PROCESS, Job, Run, State

# Where time goes.
DISK = "the disk"
FAULTS = "page faults"
DECODING = "decoding"
GATHERING = "gathering in memory"
OVERHEAD = "per-batch overhead"
REST = "the rest"


@dataclass(frozen=True)
class Subjected:
    """The store that was measured, and the machine.

    Attributes:
        path: its directory.
        columns: what was read of it.
        codecs: the codec of each.
        rows: of the store.
        row_nbytes: decoded bytes of a row of these columns.
        decoded_row_nbytes: of these, what is decoded.
        chunk_nbytes: decoded bytes of a compressed chunk, in the mean.
        stored: bytes of their files.
        mappable: bytes that a process maps of them.
        access: how it was opened.
        memory_budget: in bytes.
        available_memory: what the machine had left, in bytes.
        cpus: processors that the process may use.
        fast_rows: rows, from the first one on, that the runs that are not cold have read.
    """

    path: str
    columns: tuple[str, ...]
    codecs: Mapping[str, str]
    rows: int
    row_nbytes: int
    decoded_row_nbytes: int
    chunk_nbytes: float
    stored: int
    mappable: int
    access: str
    memory_budget: int
    available_memory: int
    cpus: int
    fast_rows: int


@dataclass(frozen=True)
class Breakdown:
    """Where the time of a batch goes, by comparison with what the machine can do.

    Parts come from different measurements, and some run at the same time, so they need not add up to the whole.

    Attributes:
        job: what was read.
        state: `"cold"` or `"warm"`.
        batch_size: rows of a batch.
        seconds: of a batch.
        parts: seconds of each part that was measured.
    """

    job: Job
    state: State
    batch_size: int
    seconds: float
    parts: Mapping[str, float]

    @property
    def bottleneck(self) -> str:
        """The part that takes longest."""
        return max(self.parts, key=self.parts.__getitem__) if self.parts else REST

    def share(self, part: str) -> float:
        """Return a part's share of the time."""
        return self.parts.get(part, 0.0) / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Return the breakdown as plain JSON values."""
        return asdict(self) | {"bottleneck": self.bottleneck}


@dataclass(frozen=True)
class Recommendation:
    """A setting and why."""

    setting: str
    value: str
    reason: str


@dataclass(frozen=True)
class BenchReport:
    """All that `shardstore bench` found.

    Attributes:
        subject: store and machine.
        ceilings: the machine's best.
        runs: every measurement.
        breakdowns: where the time goes.
        recommendations: what to set.
        unmeasured: what could not be measured, and why.
        load: programs that wanted a processor in the minute before; None where the system does not tell.
    """

    subject: Subjected
    ceilings: Ceilings
    runs: tuple[Run, ...]
    breakdowns: tuple[Breakdown, ...] = ()
    recommendations: tuple[Recommendation, ...] = ()
    unmeasured: tuple[str, ...] = ()
    load: float | None = None

    @property
    def batch_sizes(self) -> list[int]:
        """The batch sizes, ascending."""
        return sorted({run.batch_size for run in self.runs})

    @property
    def usual_batch(self) -> int:
        """The batch size in the middle: cold and first runs are made with it."""
        sizes = self.batch_sizes
        return sizes[len(sizes) // 2]

    def rate(self, job: Job, state: State, batch_size: int, way: str = IN_PROCESS) -> float | None:
        """Return the rows a second of a measurement; None if there is none."""
        run = self.run(job, state, batch_size, way)
        return None if run is None else run.rows_per_second

    def run(self, job: Job, state: State, batch_size: int, way: str = IN_PROCESS) -> Run | None:
        """Return a measurement; None if there is none."""
        wanted = (job, state, batch_size, way)
        return next((run for run in self.runs if (run.job, run.state, run.batch_size, run.way) == wanted), None)

    def breakdown(self, job: Job, state: State) -> Breakdown | None:
        """Return where the time of a job goes; None where that was not measured."""
        return next((found for found in self.breakdowns if (found.job, found.state) == (job, state)), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {
            "store": asdict(self.subject),
            "ceilings": self.ceilings.to_dict(),
            "runs": [run.to_dict() for run in self.runs],
            "breakdowns": [found.to_dict() for found in self.breakdowns],
            "bottleneck": {state: self.bottleneck(state) for state in ("cold", "warm")},
            "recommendations": [asdict(found) for found in self.recommendations],
            "unmeasured": list(self.unmeasured),
            "load": self.load,
        }

    def bottleneck(self, state: str) -> str | None:
        """Return what holds a shuffled epoch back, in batches of the usual size; None where it was not measured."""
        found = next((f for f in self.breakdowns if (f.job, f.state) == ("shuffled", state)), None)
        return None if found is None else found.bottleneck
