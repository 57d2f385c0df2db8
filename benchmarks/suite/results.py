"""What is kept of the runs: plain values that become `results/suite.json`, and are read again for the report."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.suite.jobs import Job
from benchmarks.suite.measuring import Pass, Reading


@dataclass
class Sample:
    """One run.

    Attributes:
        round: which round it was of.
        open_seconds: until the peer was opened.
        first: its first pass.
        again: its second one, if it had one.
        anonymous: bytes of memory of its own at the peak, beyond those that it began with.
        problem: what was wrong with the rows, or nothing.
        ours: rows a second of our own run beside it, if that worked.
        cached: the part of its files that was in the page cache at the start.
    """

    round: int
    open_seconds: float
    first: Pass
    again: Pass | None
    anonymous: int
    problem: str
    ours: float | None
    cached: float

    @property
    def rate(self) -> float:
        """Rows a second, once there is nothing more to warm up."""
        return (self.again or self.first).rate

    @property
    def rate_from_start(self) -> float:
        """Rows a second of the first pass, opening included, whether it came to its end or not."""
        return self.first.rows / (self.open_seconds + self.first.first_seconds + self.first.later_seconds)

    @classmethod
    def of(cls, number: int, reading: Reading, anonymous: int, ours: float | None, cached: float) -> Sample:
        """Return what is kept of a reading."""
        own = max(0, anonymous - reading.check_nbytes)
        return cls(number, reading.open_seconds, reading.first, reading.again, own, reading.problem, ours, cached)

    def document(self) -> list[Any]:
        """Return the sample as JSON values."""
        passes = [_pass_document(self.first), _pass_document(self.again)]
        ours = None if self.ours is None else round(self.ours)
        return [self.round, _short(self.open_seconds), *passes, self.anonymous, self.problem, ours, self.cached]

    @classmethod
    def from_document(cls, values: list[Any]) -> Sample:
        """Return the sample that a document was made of."""
        number, seconds, first, again, *rest = values
        return cls(number, seconds, Pass(*first), Pass(*again) if again else None, *rest)


SAMPLE_FIELDS = (
    "round, open_seconds, first pass [first_seconds, later_seconds, first_rows, rows, ended], second pass or null, "
    "anonymous bytes, problem, rows/s of shardstore beside it, part of the files in the page cache"
)


def _pass_document(given: Pass | None) -> list[Any] | None:
    if given is None:
        return None
    return [_short(given.first_seconds), _short(given.later_seconds), given.first_rows, given.rows, given.ended]


def _short(seconds: float) -> float:
    return float(f"{seconds:.5g}")


@dataclass
class Cell:
    """All runs of one peer in one mode, or the reason why there are none.

    Attributes:
        peer: its name.
        mode: one of `peer.MODES`.
        temperature: `"warm"` or `"cold"`.
        rows: the rows it had.
        reason: why there is no sample: `"no random access"`, `"hung: …"`, `"failed: …"`.
        samples: the runs.
    """

    peer: str
    mode: str
    temperature: str
    rows: int
    reason: str = ""
    samples: list[Sample] = field(default_factory=list)

    def ratio(self) -> float | None:
        """Return the median of our speed by the peer's, of the same round, or None without samples of both."""
        ratios = [sample.ours / self.speed(sample) for sample in self.samples if sample.ours]
        return median(ratios) if ratios else None

    def rate(self) -> float:
        """Return the median of the rows a second."""
        return median(map(self.speed, self.samples))

    def speed(self, sample: Sample) -> float:
        """Return a sample's rows a second: cold from the opening on, else once there is nothing more to warm up."""
        return sample.rate_from_start if self.temperature == "cold" else sample.rate

    def problem(self) -> str:
        """Return the first thing that was wrong with the rows of any run."""
        return next((sample.problem for sample in self.samples if sample.problem), "")


@dataclass
class Stored:
    """What it took to ingest a job.

    Attributes:
        peer: its name.
        rows: the rows it had.
        seconds: until they were on the disk.
        nbytes: what they take there.
        reason: why there is nothing.
    """

    peer: str
    rows: int
    seconds: float = 0.0
    nbytes: int = 0
    reason: str = ""


@dataclass
class JobResults:
    """All of one job.

    Attributes:
        job: the job's name.
        title: what rows it has.
        group: the word for several jobs that differ in one number.
        row_nbytes: bytes of a row, about.
        shards: files that the rows were cut into.
        dump_nbytes: bytes of the dumps of all rows.
        stored: by peer.
        cells: by peer, mode and temperature.
    """

    job: str
    title: str
    group: str
    row_nbytes: int
    shards: int
    dump_nbytes: int = 0
    stored: dict[str, Stored] = field(default_factory=dict)
    cells: dict[tuple[str, str, str], Cell] = field(default_factory=dict)

    @classmethod
    def of(cls, job: Job) -> JobResults:
        """Return the results of a job before its first run."""
        return cls(job.name, job.title, job.group, job.row_nbytes, job.shards)

    def cell(self, peer: str, mode: str, temperature: str, rows: int) -> Cell:
        """Return a cell; a new one where there is none yet."""
        return self.cells.setdefault((peer, mode, temperature), Cell(peer, mode, temperature, rows))

    def update(self, newer: JobResults) -> None:
        """Take over what was measured anew."""
        self.stored |= newer.stored
        self.cells |= newer.cells
        self.dump_nbytes = newer.dump_nbytes or self.dump_nbytes

    def document(self) -> dict[str, Any]:
        """Return the results as JSON values."""
        plain = {name: value for name, value in vars(self).items() if name not in ("stored", "cells")}
        cells = [vars(cell) | {"samples": [s.document() for s in cell.samples]} for cell in self.cells.values()]
        stored = [vars(one) | {"seconds": _short(one.seconds)} for one in self.stored.values()]
        return plain | {"stored": stored, "cells": cells}

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> JobResults:
        """Return the results that a document was made of."""
        plain = {name: value for name, value in document.items() if name not in ("stored", "cells")}
        results = cls(**plain)
        for one in document["stored"]:
            results.stored[one["peer"]] = Stored(**one)
        for values in document["cells"]:
            cell = Cell(**values | {"samples": [Sample.from_document(sample) for sample in values["samples"]]})
            results.cells[cell.peer, cell.mode, cell.temperature] = cell
        return results


@dataclass
class Results:
    """Everything that the suite knows, by job.

    Attributes:
        machine: see `machine.describe`.
        versions: of the packages.
        settings: how it was measured.
        jobs: by name.
    """

    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    jobs: dict[str, JobResults] = field(default_factory=dict)

    def add(self, measured: JobResults) -> None:
        """Take over a job, or what was measured anew of it."""
        if measured.job in self.jobs:
            self.jobs[measured.job].update(measured)
        else:
            self.jobs[measured.job] = measured

    def group(self, name: str) -> list[JobResults]:
        """Return the jobs of one group."""
        return [job for job in self.jobs.values() if job.group == name]

    def save(self, path: Path) -> None:
        """Write all as JSON: a cell a line."""
        jobs = []
        for job in self.jobs.values():
            document = job.document()
            lists = [(name, document.pop(name)) for name in ("stored", "cells")]
            lines = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in document.items()]
            for name, values in lists:
                inner = ",\n  ".join(json.dumps(v, ensure_ascii=False, separators=(",", ":")) for v in values)
                lines.append(f' "{name}": [\n  {inner}]')
            jobs.append("{\n" + ",\n".join(lines) + "}")
        head = {"machine": self.machine, "versions": self.versions, "settings": self.settings, "sample": SAMPLE_FIELDS}
        lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False, indent=1)}" for key, value in head.items()]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{" + ",\n".join([*lines, '"jobs": [\n' + ",\n".join(jobs) + "]"]) + "}\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what was saved."""
        document = json.loads(path.read_text())
        jobs = [JobResults.from_document(job) for job in document["jobs"]]
        heads = {name: document[name] for name in ("machine", "versions", "settings")}
        return cls(**heads, jobs={job.job: job for job in jobs})
