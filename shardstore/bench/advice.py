"""Where the time goes, and what to set: pure functions of what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator

from shardstore.bench.jobs import JOBS, LOADER, THREAD, Job, Run
from shardstore.bench.report import (
    DECODING,
    DISK,
    FAULTS,
    GATHERING,
    OVERHEAD,
    REST,
    BenchReport,
    Breakdown,
    Recommendation,
)
from shardstore.memory import size_text

# A smaller batch is as good if it reads at this share of the best rate.
_AS_GOOD = 0.9
# A batch that takes longer is worth a thread.
_WORTH_A_THREAD = 1e-3
# A window shuffle reads this much faster from a cold disk before it is worth its weaker mix.
_WORTH_WINDOWS = 2.0
_WORTH_COMPRESSING = 1.5


def break_down(report: BenchReport) -> list[Breakdown]:
    """Return where the time of each job goes, warm and cold, in batches of the usual size."""
    found = []
    for job in JOBS:
        warm = _warm_parts(report, job)
        if warm is None:
            continue
        found.append(warm)
        cold = _cold_parts(report, job, warm)
        found += [] if cold is None else [cold]
    return found


def _warm_parts(report: BenchReport, job: Job) -> Breakdown | None:
    size, ceilings = report.usual_batch, report.ceilings
    run = report.run(job, "warm", size)
    if run is None or not run.rows:
        return None
    seconds = size / run.rows_per_second
    parts = {}
    if ceilings.decode:
        parts[DECODING] = _decoding(report, run)
    if job == "sequential":
        parts[GATHERING] = size * report.subject.row_nbytes / ceilings.copy
    elif ceilings.gather:
        parts[GATHERING] = size / ceilings.gather[size]
    overhead = _overhead(report, job)
    if overhead is not None:
        parts[OVERHEAD] = overhead
    parts[REST] = max(0.0, seconds - sum(parts.values()))
    return Breakdown(job, "warm", size, seconds, parts)


def _decoding(report: BenchReport, run: Run) -> float:
    """Return the seconds that a batch's decoding takes at the rate of decoding in order."""
    # An epoch decodes each chunk about once; who takes rows singly decodes what was counted.
    counted = run.chunks_decoded * report.subject.chunk_nbytes / max(1, run.rows)
    decoded = counted if run.job == "random takes" else report.subject.decoded_row_nbytes
    return run.batch_size * decoded / (report.ceilings.decode or math.inf)


def _overhead(report: BenchReport, job: Job) -> float | None:
    """Return the seconds that a batch costs whatever its size: those of no rows, on a line through two sizes.

    None where only one size was measured, or the two tell nothing: chunks that were decoded for the first one are in a
    cache for the other.
    """
    sizes = report.batch_sizes
    rates = [report.rate(job, "warm", size) for size in _three(report)]
    if len(sizes) < 2 or not all(rates):
        return None
    small, usual, large = (size / (rate or math.inf) for size, rate in zip(_three(report), rates, strict=True))
    overhead = max(0.0, small - sizes[0] * (large - small) / (sizes[-1] - sizes[0]))
    return overhead if overhead <= usual else None


def _three(report: BenchReport) -> tuple[int, int, int]:
    return report.batch_sizes[0], report.usual_batch, report.batch_sizes[-1]


def _cold_parts(report: BenchReport, job: Job, warm: Breakdown) -> Breakdown | None:
    size = warm.batch_size
    cold, first = report.run(job, "cold", size), report.run(job, "first", size)
    if cold is None or not cold.rows_per_second:
        return None
    seconds = size / cold.rows_per_second
    parts = dict(warm.parts)
    before = warm.seconds if first is None else size / first.rows_per_second
    known = warm.seconds
    if DECODING in parts:
        parts[DECODING] = _decoding(report, cold)
        known += max(0.0, parts[DECODING] - warm.parts[DECODING])
    parts[FAULTS] = max(0.0, before - known)
    parts[DISK] = max(0.0, seconds - max(before, known))
    return Breakdown(job, "cold", size, seconds, parts)


def recommend(report: BenchReport) -> list[Recommendation]:
    """Return what to set, each with one line of reason that quotes what was measured."""
    return [*_memory(report), *_batch_size(report), *_shuffle(report), *_loader(report), *_codec(report)]


def _memory(report: BenchReport) -> Iterator[Recommendation]:
    subject = report.subject
    if not subject.mappable:
        reason = "every column is compressed, so that no pages of files are mapped"
        yield Recommendation("access", "auto", reason)
        return
    maps, available = f"{size_text(subject.mappable)} of maps", size_text(subject.available_memory)
    if 4 * subject.mappable <= subject.available_memory:
        yield Recommendation("access", "auto", f"{maps} fit the memory that is available, and stay resident")
        reason = f"the default, half of the {available} available, holds all maps and as much for buffers"
        yield Recommendation("memory_budget", "leave it out", reason)
    else:
        reason = f"{maps} are more than a quarter of the {available} available: what does not fit is streamed"
        yield Recommendation("access", "auto", reason)
        reason = f"the default is half of the {available} available; less if other processes need them"
        yield Recommendation("memory_budget", "leave it out", reason)


def _batch_size(report: BenchReport) -> Iterator[Recommendation]:
    rates = {size: rate for size in report.batch_sizes if (rate := report.rate("shuffled", "warm", size))}
    if len(rates) < 2:
        return
    best = max(rates.values())
    size = min(size for size, rate in rates.items() if rate >= _AS_GOOD * best)
    reason = f"shuffled rows/s, warm: {', '.join(f'{rate:,.0f} in batches of {n:,}' for n, rate in rates.items())}"
    yield Recommendation("batch_size", f"{size:,}", reason)


def _shuffle(report: BenchReport) -> Iterator[Recommendation]:
    size = report.usual_batch
    compressed = any(codec != "raw" for codec in report.subject.codecs.values())
    if compressed:
        epoch, takes = report.rate("shuffled", "warm", size), report.rate("random takes", "warm", size)
        if epoch and takes:
            reason = f"each chunk is decoded once an epoch: {epoch:,.0f} rows/s; rows taken singly give {takes:,.0f}"
            yield Recommendation("shuffle", "True, in windows", reason)
        return
    scan, shuffled = report.rate("sequential", "cold", size), report.rate("shuffled", "cold", size)
    larger = report.subject.stored > report.subject.available_memory
    if not scan or not shuffled:
        yield Recommendation("shuffle", "True, all rows", "the columns are raw; a cold epoch was not measured")
    elif larger and scan > _WORTH_WINDOWS * shuffled:
        reason = f"larger than memory, and cold: {scan:,.0f} rows/s in order, {shuffled:,.0f} in full random order"
        yield Recommendation("shuffle", '"window"', reason)
    else:
        where = "larger than memory" if larger else "cold only in the first epoch"
        reason = f"{where}, where it gives {shuffled:,.0f} rows/s, and {scan:,.0f} in order"
        yield Recommendation("shuffle", "True, all rows", reason)


def _loader(report: BenchReport) -> Iterator[Recommendation]:
    size = report.usual_batch
    here, there = report.rate("shuffled", "warm", size), report.rate("shuffled", "warm", size, LOADER)
    name = "StoreLoader"
    if not there:
        name, there = "store.batches(prefetch=2)", report.rate("shuffled", "warm", size, THREAD)
    if not here or not there:
        return
    seconds = size / here
    batch = f"a batch takes {1e6 * seconds:,.0f} µs in-process, {1e6 * size / there:,.0f} µs from the thread"
    if there >= _AS_GOOD * here:
        yield Recommendation("reading", name, f"{batch}, beside which the model works")
    elif seconds >= _WORTH_A_THREAD:
        yield Recommendation("reading", name, f"{batch}; it pays once the model takes as long for a step")
    else:
        yield Recommendation("reading", "in-process (store.batches)", f"{batch}: handing it over costs more")


def _codec(report: BenchReport) -> Iterator[Recommendation]:
    subject, trial = report.subject, report.ceilings.trial
    compressed = [name for name, codec in subject.codecs.items() if codec != "raw"]
    plain = subject.rows * subject.row_nbytes
    warm = report.breakdown("shuffled", "warm")
    if compressed and warm is not None and warm.bottleneck == DECODING and plain < subject.available_memory // 2:
        reason = f"decoding holds back, and all rows as they are ({size_text(plain)}) fit into memory"
        yield Recommendation("codec", f"raw for {', '.join(compressed)}", reason)
    elif compressed:
        reason = f"{size_text(plain)} of rows take {size_text(subject.stored)} on disk"
        yield Recommendation("codec", "as it is", reason)
    elif trial is not None:
        disk = report.ceilings.disk
        speed = f"{size_text(trial.decoded_per_second)}/s"
        saves = f"{trial.codec} makes a sample {trial.ratio:.2f} times smaller and decodes {speed} on one thread"
        faster = disk is not None and trial.decoded_per_second > disk
        if subject.stored > subject.available_memory and trial.ratio >= _WORTH_COMPRESSING and faster:
            yield Recommendation("codec", trial.codec, f"{saves}, and the store does not fit into memory")
        else:
            yield Recommendation("codec", "raw", saves)
