"""`shardstore profile`, `bench` and `demo`: what a store costs and gives on this machine."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.markup import escape
from rich.table import Table as TextTable

import shardstore
from shardstore.access import Access
from shardstore.bench.running import BATCH_SIZES, SECONDS, BenchOptions
from shardstore.bench.running import bench as measure_store
from shardstore.bench.tables import bench_texts
from shardstore.cli.app import AsJson, StorePath, app, figure, named_columns, out, user_errors
from shardstore.memory import size_text
from shardstore.memory_report import size_or_unknown
from shardstore.profiling import KINDS, Profile
from shardstore.profiling import profile as profile_store

Columns = Annotated[
    str | None, typer.Option("--columns", help="Only these, with commas between them.", show_default=False)
]
AccessOption = Annotated[str, typer.Option("--access", help="How pages are used: auto, resident or streaming.")]
MemoryBudget = Annotated[
    str | None, typer.Option(help="Such as 2GiB.", show_default="half of the memory that is available")
]

_KIND_NAMES = (
    "anonymous",
    "file-backed resident",
    "  of it, this store's",
    "page cache, this store's",
    "mapped addresses",
)


@app.command()
def profile(
    path: StorePath,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a batch.")] = 256,
    shuffle: Annotated[bool, typer.Option(help="Whether to shuffle the rows.")] = True,
    columns: Columns = None,
    seconds: Annotated[float, typer.Option(help="After these, the epoch is left.")] = 20.0,
    access: AccessOption = "auto",
    memory_budget: MemoryBudget = None,
    png: Annotated[Path | None, typer.Option(help="Draw memory and speed to this file.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Stream an epoch and show what it costs: every kind of memory, and rows a second, over time."""
    with user_errors():
        draw = None if png is None else figure("draw_profile", png)
        with shardstore.open(path, access=cast(Access, access), memory_budget=memory_budget) as store:
            names = named_columns(store, columns)
            found = profile_store(store, batch_size, columns=names, shuffle=shuffle, seconds=seconds)
        if draw is not None:
            draw(found, png)
        if as_json:
            print(json.dumps(found.to_dict(), indent=2))
        else:
            _print_profile(found)


def _print_profile(found: Profile) -> None:
    part = "" if found.rows == found.epoch_rows else f" of {found.epoch_rows:,}"
    batches = f"{found.rows:,}{part} rows in batches of {found.batch_size:,}"
    out.print(f"[bold]{escape(found.path)}[/]  {batches}, shuffle {found.order['shuffle']}", soft_wrap=True)
    moments = found.moments()
    table = TextTable("memory", "start", "25 %", "50 %", "75 %", "end", "peak", box=None)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for kind, name in zip(KINDS, _KIND_NAMES, strict=True):
        values = [getattr(sample, kind) for sample in moments]
        table.add_row(name, *map(size_or_unknown, values), size_or_unknown(found.peak(kind)))
    rates = [
        f"{(b.rows - a.rows) / (b.seconds - a.seconds):,.0f}" if b.seconds > a.seconds else ""
        for a, b in pairwise(moments)
    ]
    table.add_row("rows/s since the column before", "", *rates, "")
    out.print(table)
    speed = f"{found.rows_per_second:,.0f} rows/s, {size_text(found.rows_per_second * found.row_nbytes)}/s"
    out.print(f"{found.seconds:.2f} s, {speed}; {len(found.samples):,} samples")
    growth, resident = size_or_unknown(found.growth("anonymous")), size_or_unknown(found.peak("resident"))
    out.print(
        f"anonymous memory rose by {growth}; the store's maps had {resident} resident at most, of a budget of "
        f"{size_text(found.memory_budget)} (access={found.access})",
        soft_wrap=True,
    )


@app.command()
def bench(
    path: StorePath,
    seconds: Annotated[float, typer.Option(help="About how long all takes.")] = SECONDS,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Rows of a batch; may be given again.", show_default=" ".join(map(str, BATCH_SIZES))),
    ] = None,
    columns: Columns = None,
    cold: Annotated[
        bool, typer.Option(help="Whether to empty the page cache of the store's files, which needs no rights.")
    ] = True,
    access: AccessOption = "auto",
    memory_budget: MemoryBudget = None,
    as_json: AsJson = False,
) -> None:
    """Measure how fast a store reads here, what holds it back, and what to set."""
    with user_errors():
        with shardstore.open(path) as store:
            names = named_columns(store, columns)
        options = BenchOptions(names, batch_size or BATCH_SIZES, seconds, cold, cast(Access, access), memory_budget)
        report = measure_store(path, options, _say)
        if as_json:
            print(json.dumps(report.to_dict(), indent=2))
        else:
            for part in bench_texts(report):
                out.print(part, soft_wrap=True)


def _say(line: str) -> None:
    """Tell what goes on to somebody who waits at a terminal."""
    if sys.stderr.isatty():
        print(line, file=sys.stderr)


@app.command()
def demo(
    directory: Annotated[
        Path | None, typer.Option("--keep", help="Keep the demo's store here.", show_default=False)
    ] = None,
) -> None:
    """Ingest real handwriting, train a small classifier on it and evaluate it."""
    from shardstore.demo import run_demo

    with user_errors():
        run_demo(lambda line: out.print(line, markup=False, soft_wrap=True), directory)
