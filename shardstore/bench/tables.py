"""A `BenchReport` as text and tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table as TextTable

from shardstore.bench.jobs import IN_PROCESS, JOBS, LOADER, STATES, THREAD, Job, State
from shardstore.bench.report import DECODING, DISK, FAULTS, GATHERING, OVERHEAD, REST, BenchReport
from shardstore.memory import size_text

_PARTS = (DISK, FAULTS, DECODING, GATHERING, OVERHEAD, REST)


def bench_texts(report: BenchReport) -> Iterator[str | TextTable]:
    """Yield what to print, in order: the store, rates, ceilings, where the time goes, and what to set."""
    subject = report.subject
    codecs = ", ".join(sorted(set(subject.codecs.values())))
    yield (
        f"[bold]{escape(subject.path)}[/]  {subject.rows:,} rows of {subject.row_nbytes:,} bytes ({codecs}), "
        f"{size_text(subject.stored)} on disk; {subject.cpus} cores, {size_text(subject.available_memory)} available, "
        f"access={subject.access}"
    )
    if subject.fast_rows < subject.rows:
        yield f"first touch and warm: of the first {subject.fast_rows:,} rows, for which there was time and memory"
    yield ""
    yield _rates(report)
    yield ""
    yield from _ceilings(report)
    yield ""
    yield _breakdowns(report)
    for state in ("cold", "warm"):
        if (bottleneck := report.bottleneck(state)) is not None:
            yield f"bottleneck of a {state} shuffled epoch: [bold]{bottleneck}[/]{_of_disk(report, state)}"
    yield ""
    table = _table("setting", "recommended", "why")
    for found in report.recommendations:
        table.add_row(found.setting, escape(found.value), escape(found.reason))
    yield table
    if report.load is not None and report.load > subject.cpus:
        yield f"the machine was busy (load {report.load:.1f} on {subject.cpus} cores): measure again when it is not"
    for line in report.unmeasured:
        yield escape(f"not measured: {line}")


def _table(*titles: str) -> TextTable:
    return TextTable(*titles, box=None)


def _rates(report: BenchReport) -> TextTable:
    sizes = report.batch_sizes
    table = _table("rows/s, by rows of a batch", *(f"{size:,}" for size in sizes), f"MB/s at {report.usual_batch:,}")
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    ways: list[tuple[Job, State, str]] = [(job, state, IN_PROCESS) for state in STATES for job in JOBS]
    ways += [("shuffled", "warm", THREAD), ("shuffled", "warm", LOADER)]
    for job, state, way in ways:
        rates = [report.rate(job, state, size, way) for size in sizes]
        if not any(rates):
            continue
        name = {"first": "first touch"}.get(state, state) + f", {job}" + ("" if way == IN_PROCESS else f", {way}")
        usual = report.rate(job, state, report.usual_batch, way)
        speed = "" if usual is None else f"{usual * report.subject.row_nbytes / 1e6:,.0f}"
        table.add_row(name, *("" if rate is None else f"{rate:,.0f}" for rate in rates), speed)
    return table


def _ceilings(report: BenchReport) -> Iterator[TextTable]:
    ceilings, sizes = report.ceilings, report.batch_sizes
    table = _table("what the machine can do", "")
    table.columns[1].justify = "right"
    if ceilings.disk is not None:
        table.add_row("large reads of the same files, cold", f"{ceilings.disk / 1e6:,.0f} MB/s")
    table.add_row("copying memory", f"{ceilings.copy / 1e6:,.0f} MB/s")
    for size in sizes:
        table.add_row(f"gathering {size:,} of these rows in RAM", f"{ceilings.gather[size]:,.0f} rows/s")
    if ceilings.decode is not None:
        table.add_row("decoding chunks in order", f"{ceilings.decode / 1e6:,.0f} MB/s")
    if (trial := ceilings.trial) is not None:
        rate = f"{trial.decoded_per_second / 1e6:,.0f} MB/s, {trial.ratio:.2f} times smaller"
        table.add_row(f"decoding a sample of the raw columns as {trial.codec}, one thread", rate)
    yield table


def _breakdowns(report: BenchReport) -> TextTable:
    table = _table(f"µs of a batch of {report.usual_batch:,}", "all", *_PARTS)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for found in report.breakdowns:
        parts = [f"{1e6 * found.parts[part]:,.1f}" if part in found.parts else "" for part in _PARTS]
        table.add_row(f"{found.state}, {found.job}", f"{1e6 * found.seconds:,.1f}", *parts)
    return table


def _of_disk(report: BenchReport, state: str) -> str:
    """Return which share of the disk's speed a cold epoch used, if it is what holds it back."""
    rate = report.rate("shuffled", "cold", report.usual_batch)
    if state != "cold" or report.bottleneck(state) != DISK or not rate or not report.ceilings.disk:
        return ""
    stored = report.subject.stored / report.subject.rows
    return f", at {rate * stored / report.ceilings.disk:.0%} of the speed of large reads"
