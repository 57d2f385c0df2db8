"""`shardstore verify` and `shuffle-report`: whether a store is what it promises; they exit with 1 if not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table as TextTable

import shardstore
from shardstore.cli.app import AsJson, StorePath, app, check_column, fail, figure, out, user_errors
from shardstore.damage import Damage
from shardstore.errors import CorruptionError
from shardstore.manifest import METADATA_FILE
from shardstore.memory import size_text
from shardstore.order import Measure, Quality, quality
from shardstore.planning import WINDOW_BYTES
from shardstore.verify import VerifyReport


@app.command()
def verify(
    path: StorePath,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also decode all compressed chunks, and look at what texts and codes say.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check every byte of a store; exit with 1 if any is not what was written."""
    with user_errors():
        try:
            with shardstore.open(path) as store:
                report = store.verify(deep=deep)
        except CorruptionError as error:  # of the manifest, without which nothing else can be checked
            report = VerifyReport(1, 0, 0, (Damage(METADATA_FILE, str(error)),))
        if as_json:
            print(json.dumps(report.to_dict(), indent=2))
        elif report.ok:
            out.print(f"ok: {report.files} files, {report.chunks:,} chunks, {size_text(report.nbytes)} are as written")
        for damage in () if as_json else report.damages:
            print(f"damaged: {damage}", file=sys.stderr)
        if not report.ok:
            if not as_json:
                print("see what shardstore repair can do; it is best given the original dumps", file=sys.stderr)
            raise typer.Exit(1)


@app.command("shuffle-report")
def shuffle_report(
    path: StorePath,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a batch.")] = 256,
    seed: Annotated[int, typer.Option(help="Seed of the orders.")] = 0,
    label: Annotated[
        str | None, typer.Option(help="A column of scalars, for its mix in batches.", show_default=False)
    ] = None,
    window_bytes: Annotated[str, typer.Option(help="Decoded bytes of the rows in a window.")] = WINDOW_BYTES,
    png: Annotated[Path | None, typer.Option(help="Draw the orders to this file.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how random the orders "full" and "window" are; exit with 1 if one is not what it promises."""
    with user_errors(), shardstore.open(path) as store:
        labels = None
        if label is not None:
            check_column(store, label)
            if store[label].ndim != 1:
                fail(f"column {label!r} has rows of shape {store[label].shape[1:]}; a label is a scalar", 2)
            labels = store[label][:]
        if not len(store):
            fail(f"{path}: the store has no rows, so there is no order to measure", 2)
        draw = None if png is None else figure("draw_orders", png)
        plans = {
            "full": store.plan(batch_size, shuffle="full", seed=seed),
            "window": store.plan(batch_size, shuffle="window", seed=seed, window_bytes=window_bytes),
        }
        if draw is not None:
            draw(plans, png)
        reports = {name: quality(plan, labels=labels) for name, plan in plans.items()}
        if as_json:
            print(json.dumps({name: report.as_dict() for name, report in reports.items()}, indent=2))
        else:
            _print_quality(reports["full"], reports["window"])
        for name, report in reports.items():
            for measure in report.failures:
                print(f"not as promised: {name}: {measure.name} is {measure.value:.6g}", file=sys.stderr)
        if not all(report.passed for report in reports.values()):
            raise typer.Exit(1)


def _print_quality(full: Quality, window: Quality) -> None:
    by_name = {measure.name: measure for measure in full.measures}
    table = TextTable("measure", "ideal", "full", "", "window", "", box=None)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    table.columns[3].justify = table.columns[5].justify = "left"

    def cells(measure: Measure | None) -> tuple[str, str]:
        if measure is None:
            return "", ""
        style = {"ok": "green", "FAILS": "bold red", "shown": "dim"}[measure.verdict]
        return f"{measure.value:.5g}", f"[{style}]{measure.verdict}[/]"

    for measure in window.measures:
        other = by_name.get(measure.name)
        ideal = (other or measure).expected
        table.add_row(measure.name, f"{ideal:.5g}", *cells(other), *cells(measure))
    out.print(table)
    out.print(
        f"{full.sampled:,} positions of an epoch in batches of {full.batch_size:,}; shown is what is not promised"
    )
    for measure in window.measures:
        if not measure.promised and measure.name.endswith("per batch, spread"):
            out.print(f"window, {measure.name}: {measure.meaning}", soft_wrap=True)
