"""`shardstore ingest` and `export`: rows into a store, and back out of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import shardstore
from shardstore.building import Mode
from shardstore.cli.app import StorePath, app, fail, out, user_errors
from shardstore.cli.options import column_codecs, column_types, named_sources
from shardstore.export import export_npy
from shardstore.memory import size_text
from shardstore.schema import DEFAULT_SHARD_BYTES
from shardstore.sources.paths import find_files, order_note


@app.command()
def ingest(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="[SOURCE]... DEST",
            help="Files, quoted globs or directories of .npy and .npz, then the new store's directory.",
            show_default=False,
        ),
    ],
    split: Annotated[
        str | None,
        typer.Option(help="Cut the last axis into columns, such as 'x=:-1,y=-1@int64'.", show_default=False),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=GLOB: a column from parallel files; of a ragged one NAME.values=GLOB and NAME.offsets=GLOB (or "
            ".lengths, .padded, .rows); may be given again.",
            show_default=False,
        ),
    ] = None,
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            help="NAME=TYPE: what a column's rows are, such as bfloat16, utf8, ragged[uint16], categorical or "
            "categorical:cat,dog; may be given again.",
            show_default=False,
        ),
    ] = None,
    codec: Annotated[
        list[str] | None,
        typer.Option(
            help="raw, zstd, zstd:LEVEL or blosc:CNAME for all columns, or COLUMN=CODEC; may be given again.",
            show_default="raw",
        ),
    ] = None,
    shard_bytes: Annotated[str, typer.Option(help="Target size of the widest column's shards.")] = DEFAULT_SHARD_BYTES,
    chunk_bytes: Annotated[
        str | None,
        typer.Option(help="Target size of a decoded chunk.", show_default="256KiB raw, 64KiB compressed"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the store at DEST.")] = False,
    append: Annotated[bool, typer.Option("--append", help="Add the rows to the store at DEST.")] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with a new store whose ingest was interrupted; else begin it, resumably."),
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Number of threads.", show_default="by cores")] = None,
) -> None:
    """Convert .npy and .npz files into a new store, or add their rows to one."""
    with user_errors():
        *sources, dest = paths
        by_name = named_sources(column or [])
        if by_name and sources:
            fail(f"with --column, only DEST may follow, found also {' '.join(sources)}", 2)
        if not by_name and not sources:
            fail("name at least one source, and DEST last", 2)
        if sources and (note := order_note(find_files(sources))):
            print(note, file=sys.stderr)
        mode = _mode({"overwrite": overwrite, "append": append, "resume": resume})
        store = shardstore.ingest(
            by_name or sources,
            dest,
            split=split,
            types=column_types(types or []),
            codec=column_codecs(codec or ["raw"]),
            shard_bytes=shard_bytes,
            chunk_bytes=chunk_bytes,
            workers=workers,
            mode=mode,
        )
        shards = sum(entry.num_shards for entry in store.manifest.columns.values())
        out.print(
            f"{dest}: {len(store):,} rows, columns {', '.join(store.columns)}, {shards} shard files, "
            f"{size_text(store.nbytes)} of data, {size_text(store.stored_nbytes)} on disk",
            soft_wrap=True,
            markup=False,
        )


@app.command()
def export(
    path: StorePath,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new directory.", show_default=False)],
) -> None:
    """Write a store's columns back to .npy files; none of it is written unchecked."""
    with user_errors(), shardstore.open(path, verify="on_read") as store:
        for file in export_npy(store, directory):
            out.print(str(file), soft_wrap=True, markup=False)


def _mode(asked: dict[Mode, bool]) -> Mode:
    chosen = [mode for mode, is_asked in asked.items() if is_asked]
    if len(chosen) > 1:
        fail(f"--{chosen[0]} and --{chosen[1]} exclude each other", 2)
    return chosen[0] if chosen else "create"
