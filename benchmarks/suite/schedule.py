"""Which runs there are, and in which order.

All peers of a job are ingested first. Then, for each mode, rounds go through all of them, each round beginning with
another one; before every few of them comes a run of ours, which they are compared with. So a ratio is always of runs
that were close to each other, whatever else the machine is doing.
"""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import common, pagecache
from benchmarks.suite import measuring
from benchmarks.suite.jobs import Job, make_dumps
from benchmarks.suite.machine import missing
from benchmarks.suite.measuring import Reading, Refusal
from benchmarks.suite.peer import Peer
from benchmarks.suite.results import Cell, JobResults, Sample, Stored

Peers = Mapping[str, type[Peer]]
Say = Callable[[str], None]

GROUP = 4
"""Peers that share a run of ours."""
FEW_ROUNDS = {50.0: 1, 10.0: 2}
"""Rounds of a peer that is so many times slower than ours: the larger a ratio, the less matters how exact it is."""
PRELOADED = ("numpy.random", "torch", "torch.utils.data", "shardstore.torch", "benchmarks.suite.measuring")
INTERVAL = 0.01


@dataclass(frozen=True)
class Settings:
    """How it is measured.

    Attributes:
        rounds: rounds of warm runs.
        cold_rounds: rounds of cold runs.
        limit: seconds of a pass, after which it is left.
        timeout: seconds of a run, imports included, after which it counts as hung.
        ingest_timeout: the same for an ingest.
    """

    rounds: int = 3
    cold_rounds: int = 1
    limit: float = 1.5
    timeout: float = 60.0
    ingest_timeout: float = 240.0


def preload() -> None:
    """Have the modules that every run needs imported once, in a process that forks all runs.

    Nothing but imports happens there, so no peer inherits threads or locks.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(PRELOADED))


def run_job(
    job: Job, names: Sequence[str], known: Peers, ours: str, settings: Settings, directory: Path, say: Say = print
) -> JobResults:
    """Ingest and read all peers of a job.

    Args:
        job: the job.
        names: the peers that are measured.
        known: all peers, some of which may have files that others read.
        ours: the one that they are compared with, whether it is one of them or not.
        settings: how.
        directory: an empty directory for the data, which are removed.
        say: gets a line for each step.
    """
    results = JobResults.of(job)
    ready: dict[str, type[Peer]] = {}
    for peer in map(known.__getitem__, names):
        if (job.only_sharded and not peer.sharded) or (peer.workers and not job.with_workers):
            continue
        reason = _reason_against(job, peer)
        if reason:
            _give_up(results, job, peer, reason)
        else:
            ready[peer.name] = peer
    for slow, rows in ((False, job.rows), (True, job.few_rows)):
        members = {name: peer for name, peer in ready.items() if peer.slow_ingest is slow}
        if members:
            place = directory / f"{job.name}-{rows}"
            stage = _Stage(job.of_rows(rows), members, known, ours, settings, place, results, say)
            try:
                stage.ingest()
                stage.read()
            finally:
                shutil.rmtree(stage.directory, ignore_errors=True)
    return results


def _reason_against(job: Job, peer: type[Peer]) -> str:
    """Return why a peer has nothing to do with a job, or nothing."""
    packages = missing(peer)
    if packages:
        return f"not installed: {', '.join(packages)}"
    if peer.slow_ingest and not job.few_rows:
        return "left out: slow to ingest"
    return peer.reason_without(job.layout, "") or ""


def _give_up(results: JobResults, job: Job, peer: type[Peer], reason: str, rows: int = 0) -> None:
    for temperature in job.temperatures:
        for mode in job.modes:
            results.cell(peer.name, mode, temperature, rows).reason = reason


class _Stage:
    """A job with some number of rows, and the peers that get so many."""

    def __init__(
        self,
        job: Job,
        members: Peers,
        known: Peers,
        ours: str,
        settings: Settings,
        directory: Path,
        results: JobResults,
        say: Say,
    ) -> None:
        self.job, self.members, self.known, self.settings = job, dict(members), known, settings
        self.ours = known[ours]
        self.directory, self.results, self.say = directory, results, say
        self.data = make_dumps(job, directory / "dumps")
        nbytes = sum(path.stat().st_size for path in self.data.directory.iterdir())
        self.results.dump_nbytes = max(self.results.dump_nbytes, nbytes)

    # Ingesting

    def ingest(self) -> None:
        """Ingest all peers with files of their own; drop those that cannot."""
        owners = {peer.stored_as or peer.name for peer in self.members.values() if not peer.keeps_dumps}
        for name in dict.fromkeys([self.ours.name, *(name for name in self.known if name in owners)]):
            self.say(f"{self.job.name}, {self.job.rows:,} rows: ingest, {name}")
            stored = self._ingested(self.known[name])
            if name in self.members:
                self.results.stored[name] = stored
            if stored.reason:
                self._drop(name, stored.reason)

    def _ingested(self, peer: type[Peer]) -> Stored:
        target = self._target(peer)
        arguments = (measuring.ingest, peer, self.data, target)
        outcome = self._answer(self.settings.ingest_timeout, peer, "forkserver", *arguments)
        if isinstance(outcome, str):
            return Stored(peer.name, self.job.rows, reason=outcome)
        blocks = sum(file.stat().st_blocks for file in pagecache.files_of(target))
        return Stored(peer.name, self.job.rows, outcome.result, 512 * blocks)

    def _drop(self, name: str, reason: str) -> None:
        for peer in [peer for peer in self.members.values() if name in (peer.name, peer.stored_as)]:
            _give_up(self.results, self.job, peer, reason, self.job.rows)
            del self.members[peer.name]

    def _target(self, peer: type[Peer]) -> Path:
        name = "dumps" if peer.keeps_dumps else peer.stored_as or peer.name
        return self.directory / "".join(c if c.isalnum() else "-" for c in name)

    # Reading

    def read(self) -> None:
        """Read all peers, in all modes, warm and cold."""
        for temperature in self.job.temperatures:
            rounds = self.settings.rounds if temperature == "warm" else self.settings.cold_rounds
            for mode in self.job.modes:
                self.say(f"{self.job.name}, {self.job.rows:,} rows: {temperature}, {mode}")
                for number in range(rounds):
                    self._round(mode, temperature, number)

    def _round(self, mode: str, temperature: str, number: int) -> None:
        due = [peer for peer in self.members.values() if self._is_due(peer, mode, temperature, number)]
        first = number % len(due) if due else 0
        due = due[first:] + due[:first]
        for start in range(0, len(due), GROUP):
            group = due[start : start + GROUP]
            reference = self._run(self.ours, mode, temperature, number, None)
            beside = None
            if isinstance(reference, Sample):
                reference.ours = beside = Cell(self.ours.name, mode, temperature, 0).speed(reference)
            for peer in group:
                found = reference if peer is self.ours else self._run(peer, mode, temperature, number, beside)
                cell = self.results.cell(peer.name, mode, temperature, self.job.rows)
                if isinstance(found, Sample):
                    cell.samples.append(found)
                else:
                    cell.reason = found

    def _is_due(self, peer: type[Peer], mode: str, temperature: str, number: int) -> bool:
        cell = self.results.cell(peer.name, mode, temperature, self.job.rows)
        reason = peer.reason_without(self.job.layout, mode)
        if reason:
            cell.reason = reason
        if cell.reason:
            return False
        ratio = cell.ratio() or 0.0
        return number < next((rounds for slow, rounds in FEW_ROUNDS.items() if ratio > slow), number + 1)

    def _run(self, peer: type[Peer], mode: str, temperature: str, number: int, ours: float | None) -> Sample | str:
        target = self._target(peer)
        try:
            cached = self._prepare(target, temperature)
        except RuntimeError as error:
            return f"failed: {error}"
        settings = self.settings
        arguments = (peer, self.data, target, mode, number, settings.limit, temperature == "warm")
        # A worker's memory is told apart from its parent's only where they were not all forked from one process.
        method = "spawn" if peer.workers else "forkserver"
        outcome = self._answer(settings.timeout, peer, method, measuring.read, *arguments)
        if isinstance(outcome, str):
            return outcome
        reading: Reading = outcome.result
        return Sample.of(number, reading, outcome.peak.anonymous - outcome.before.anonymous, ours, cached)

    @staticmethod
    def _prepare(target: Path, temperature: str) -> float:
        """Fill the page cache with a peer's files, or empty it; return the part of them that is in it."""
        if temperature == "warm":
            pagecache.warm([target])
            return 1.0
        pagecache.drop([target])
        files = pagecache.files_of(target)
        size = sum(file.stat().st_size for file in files)
        return round(sum(map(pagecache.resident_nbytes, files)) / max(1, size), 6)

    @staticmethod
    def _answer(
        timeout: float, peer: type[Peer], method: str, function: Callable[..., Any], *arguments: Any
    ) -> common.ChildRun | str:
        """Call a function in a process of its own; return what it did, or why it did nothing."""
        imports = (*PRELOADED, *peer.imports)
        try:
            run = common.run_in_child(
                function, *arguments, imports=imports, interval=INTERVAL, timeout=timeout, method=method
            )
        except TimeoutError as error:
            return f"hung: {error}"
        except RuntimeError:
            return "failed: its process died"
        if isinstance(run.result, Refusal):
            refusal = run.result
            return refusal.reason if refusal.kind == "unsupported" else f"failed: {refusal.reason}"
        return run
