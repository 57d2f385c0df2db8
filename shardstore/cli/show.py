"""`shardstore info`, `head` and `stats`: what a store holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table as TextTable

import shardstore
from shardstore.cli.app import AsJson, StorePath, app, check_column, figure, out, user_errors
from shardstore.describing import describe_store, row_form, show_value
from shardstore.memory import size_text
from shardstore.memory_report import size_or_unknown
from shardstore.reports import statistics_table, statistics_values


@app.command()
def info(path: StorePath, as_json: AsJson = False) -> None:
    """Show what a store holds and where it came from."""
    with user_errors(), shardstore.open(path) as store:
        report = describe_store(store)
        if as_json:
            print(json.dumps(report, indent=2))
            return
        created, sources = report["created"], report["sources"]
        out.print(
            f"[bold]{escape(str(path))}[/]  {len(store):,} rows, {size_text(store.nbytes)} of data", soft_wrap=True
        )
        out.print(f"format {report['format_version']}, generation {report['generation']}, id {report['store_id']}")
        out.print(f"made {created} from {len(sources)} source arrays, {report['shard_rows']:,} rows a shard")
        table = TextTable("column", "type", "row shape", "codec", *("shards", "data", "on disk", "ratio"), box=None)
        for name, c in report["columns"].items():
            ratio = f"{c['nbytes'] / c['stored_nbytes']:.2f}" if c["stored_nbytes"] else ""
            sizes = (str(c["shards"]), size_text(c["nbytes"]), size_text(c["stored_nbytes"]), ratio)
            table.add_row(escape(name), escape(c["type"]), row_form(c), c["codec"], *sizes)
        out.print(table)
        memory = report["memory"]
        cached, stored = size_or_unknown(memory["page_cache"]), size_text(memory["stored"])
        maps = f"a process that reads every row maps {size_text(memory['mappable'])}"
        out.print(f"{cached} of {stored} on disk are in the page cache now; {maps}", soft_wrap=True)


@app.command()
def head(
    path: StorePath,
    rows: Annotated[int, typer.Option("-n", "--rows", min=0, help="How many rows.")] = 5,
) -> None:
    """Show a store's first rows."""
    with user_errors(), shardstore.open(path) as store:
        table = TextTable("row", *map(escape, store.columns), box=None)
        first = store[: min(rows, len(store))]
        for row in range(min(rows, len(store))):
            table.add_row(str(row), *(escape(show_value(f, first[name][row])) for name, f in store.schema.items()))
        out.print(table)


@app.command()
def stats(
    path: StorePath,
    column: Annotated[
        list[str] | None, typer.Option(help="Only this column; may be given again.", show_default=False)
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Draw histograms to this file.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Show statistics of a store's columns with small histograms; they are computed once and kept in the store."""
    with user_errors(), shardstore.open(path) as store:
        names = column or list(store.columns)
        for name in names:
            check_column(store, name)
        draw = None if png is None else figure("draw_statistics", png)
        kept = store.kept_stats
        missing = [name for name in names if name not in kept]
        kept |= store.compute_stats(missing) if missing else {}
        found = {name: kept[name] for name in names}
        if draw is not None:
            draw(found, png)
        if as_json:
            print(json.dumps(statistics_values(found), indent=2))
            return
        out.print(f"[bold]{escape(str(path))}[/]  {len(store):,} rows", soft_wrap=True)
        out.print(statistics_table(found))
