"""`shardstore repair` and `vacuum`: a damaged store made whole again, one without files that nobody needs.

`repair` exits with 1 if rows are lost.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from shardstore.changes.vacuuming import vacuum as vacuum_store
from shardstore.cli.app import AsJson, StorePath, app, fail, out, user_errors
from shardstore.cli.options import column_types, named_sources
from shardstore.memory import size_text
from shardstore.repairing.repairs import RepairReport
from shardstore.repairing.repairs import repair as repair_store


@app.command()
def repair(
    path: StorePath,
    sources: Annotated[
        list[str] | None,
        typer.Option(
            "--from", help="A file or folder of what the store was made of; may be given again.", show_default=False
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="NAME=GLOB, as in the ingest: a column from parallel files.", show_default=False),
    ] = None,
    split: Annotated[str | None, typer.Option(help="As in the ingest.", show_default=False)] = None,
    types: Annotated[
        list[str] | None, typer.Option("--type", help="NAME=TYPE, as in the ingest.", show_default=False)
    ] = None,
    rebuild_manifest: Annotated[
        bool,
        typer.Option(
            "--rebuild-manifest",
            help="Make a new manifest if it is lost and all else is whole: names and numbers only, not what they mean.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a damaged store whole again: from what is left of it, and from the files that it was made of."""
    with user_errors():
        by_name = named_sources(column or [])
        if by_name and sources:
            fail("give --column or --from, not both", 2)
        report = repair_store(
            path,
            by_name or sources or None,
            split=split,
            types=column_types(types or []),
            rebuild_manifest=rebuild_manifest,
        )
        if as_json:
            print(json.dumps(report.to_dict(), indent=2))
        else:
            _print(report)
        if not report.ok:
            raise typer.Exit(1)


@app.command()
def vacuum(path: StorePath, as_json: AsJson = False) -> None:
    """Remove what interrupted changes and ingests have left in a store and beside it, also what could be resumed."""
    with user_errors():
        report = vacuum_store(path)
        if as_json:
            print(json.dumps(report.to_dict(), indent=2))
            return
        for name in report.removed:
            out.print(f"removed: {name}", soft_wrap=True, markup=False)
        out.print(f"ok: {len(report.removed):,} files and folders removed, {size_text(report.nbytes)}", soft_wrap=True)


def _print(report: RepairReport) -> None:
    for repair in report.repairs:
        out.print(f"repaired: {repair}", soft_wrap=True, markup=False)
    for damage in report.left:
        print(f"damaged: {damage}", file=sys.stderr)
    for problem in report.problems:
        print(f"note: {problem}", file=sys.stderr)
    if report.set_aside is not None:
        out.print(f"what was replaced or cannot be read lies in {report.set_aside}", soft_wrap=True, markup=False)
    if report.ok:
        out.print("ok: the store is whole" if report.found else "ok: nothing was damaged")
    else:
        print(f"to restore the rest, give --from with the files of the ingest: {report.origin}", file=sys.stderr)
