"""The command line, on top of the public interface.

Exit codes: 0, 1 for a failed check or a failure of the system, 2 for wrong usage, 130 after Ctrl-C. A user's mistake
is one line on standard error, never a traceback.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table as TextTable

import shardstore
from shardstore.building import Mode
from shardstore.column_types import Categorical, ColumnType
from shardstore.describing import describe_store, row_form, show_value
from shardstore.errors import CorruptionError, ShardStoreError
from shardstore.export import export_npy
from shardstore.manifest import METADATA_FILE
from shardstore.order import Measure, Quality, quality
from shardstore.planning import WINDOW_BYTES
from shardstore.reports import statistics_table, statistics_values
from shardstore.schema import DEFAULT_SHARD_BYTES
from shardstore.sources.named import ROLES
from shardstore.sources.paths import find_files, order_note
from shardstore.verify import Damage, VerifyReport

app = typer.Typer(
    help="Convert raw NumPy dumps into a store once, then stream training batches from it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# A pipe has no width: nothing is cut off there.
_out = Console(highlight=False, width=None if sys.stdout.isatty() else 100_000)

StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="A store's directory.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def main() -> None:
    """Run the command line."""
    app()


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        _out.print(shardstore.__version__)


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
    workers: Annotated[int | None, typer.Option(min=1, help="Number of threads.", show_default="by cores")] = None,
) -> None:
    """Convert .npy and .npz files into a new store."""
    with _user_errors():
        *sources, dest = paths
        by_name = _columns(column or [])
        if by_name and sources:
            _fail(f"with --column, only DEST may follow, found also {' '.join(sources)}", 2)
        if not by_name and not sources:
            _fail("name at least one source, and DEST last", 2)
        if sources and (note := order_note(find_files(sources))):
            print(note, file=sys.stderr)
        mode: Mode = "overwrite" if overwrite else "create"
        store = shardstore.ingest(
            by_name or sources,
            dest,
            split=split,
            types=_types(types or []),
            codec=_codecs(codec or ["raw"]),
            shard_bytes=shard_bytes,
            chunk_bytes=chunk_bytes,
            workers=workers,
            mode=mode,
        )
        shards = sum(entry.num_shards for entry in store.manifest.columns.values())
        _out.print(
            f"{dest}: {len(store):,} rows, columns {', '.join(store.columns)}, {shards} shard files, "
            f"{_size(store.nbytes)} of data, {_size(store.stored_nbytes)} on disk",
            soft_wrap=True,
            markup=False,
        )


@app.command()
def info(path: StorePath, as_json: AsJson = False) -> None:
    """Show what a store holds and where it came from."""
    with _user_errors(), shardstore.open(path) as store:
        report = describe_store(store)
        if as_json:
            print(json.dumps(report, indent=2))
            return
        created, sources = report["created"], report["sources"]
        _out.print(f"[bold]{escape(str(path))}[/]  {len(store):,} rows, {_size(store.nbytes)} of data", soft_wrap=True)
        _out.print(f"format {report['format_version']}, generation {report['generation']}, id {report['store_id']}")
        _out.print(f"made {created} from {len(sources)} source arrays, {report['shard_rows']:,} rows a shard")
        table = TextTable("column", "type", "row shape", "codec", *("shards", "data", "on disk", "ratio"), box=None)
        for name, c in report["columns"].items():
            ratio = f"{c['nbytes'] / c['stored_nbytes']:.2f}" if c["stored_nbytes"] else ""
            sizes = (str(c["shards"]), _size(c["nbytes"]), _size(c["stored_nbytes"]), ratio)
            table.add_row(escape(name), escape(c["type"]), row_form(c), c["codec"], *sizes)
        _out.print(table)


@app.command()
def head(
    path: StorePath,
    rows: Annotated[int, typer.Option("-n", "--rows", min=0, help="How many rows.")] = 5,
) -> None:
    """Show a store's first rows."""
    with _user_errors(), shardstore.open(path) as store:
        table = TextTable("row", *map(escape, store.columns), box=None)
        first = store[: min(rows, len(store))]
        for row in range(min(rows, len(store))):
            table.add_row(str(row), *(escape(show_value(f, first[name][row])) for name, f in store.schema.items()))
        _out.print(table)


@app.command()
def verify(path: StorePath, as_json: AsJson = False) -> None:
    """Check every byte of a store; exit with 1 if any is not what was written."""
    with _user_errors():
        try:
            with shardstore.open(path) as store:
                report = store.verify()
        except CorruptionError as error:  # of the manifest, without which nothing else can be checked
            report = VerifyReport(1, 0, 0, (Damage(METADATA_FILE, str(error)),))
        if as_json:
            print(json.dumps(report.to_dict(), indent=2))
        elif report.ok:
            _out.print(f"ok: {report.files} files, {report.chunks:,} chunks, {_size(report.nbytes)} are as written")
        for damage in () if as_json else report.damages:
            print(f"damaged: {damage}", file=sys.stderr)
        if not report.ok:
            raise typer.Exit(1)


@app.command()
def export(
    path: StorePath,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new directory.", show_default=False)],
) -> None:
    """Write a store's columns back to .npy files."""
    with _user_errors(), shardstore.open(path) as store:
        for file in export_npy(store, directory):
            _out.print(str(file), soft_wrap=True, markup=False)


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
    with _user_errors(), shardstore.open(path) as store:
        names = column or list(store.columns)
        for name in names:
            if name not in store.columns:
                _fail(f"no column {name!r}; the columns are {', '.join(store.columns)}", 2)
        draw = None if png is None else _figure("draw_statistics", png)
        kept = store.kept_stats
        missing = [name for name in names if name not in kept]
        kept |= store.compute_stats(missing) if missing else {}
        found = {name: kept[name] for name in names}
        if draw is not None:
            draw(found, png)
        if as_json:
            print(json.dumps(statistics_values(found), indent=2))
            return
        _out.print(f"[bold]{escape(str(path))}[/]  {len(store):,} rows", soft_wrap=True)
        _out.print(statistics_table(found))


def _figure(function: str, png: Path) -> Callable[..., None]:
    """Return a function of `shardstore.plotting`, once it is sure that it can draw to a file."""
    if not png.absolute().parent.is_dir():
        _fail(f"cannot write {png}: there is no folder {png.absolute().parent}", 2)
    try:
        plotting = import_module("shardstore.plotting")
    except ModuleNotFoundError:
        _fail("--png needs matplotlib: python -m pip install 'shardstore[plot]'", 2)
    drawing: Callable[..., None] = getattr(plotting, function)
    return drawing


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
    with _user_errors(), shardstore.open(path) as store:
        labels = None
        if label is not None:
            if label not in store.columns:
                _fail(f"no column {label!r}; the columns are {', '.join(store.columns)}", 2)
            if store[label].ndim != 1:
                _fail(f"column {label!r} has rows of shape {store[label].shape[1:]}; a label is a scalar", 2)
            labels = store[label][:]
        if not len(store):
            _fail(f"{path}: the store has no rows, so there is no order to measure", 2)
        draw = None if png is None else _figure("draw_orders", png)
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
    _out.print(table)
    _out.print(
        f"{full.sampled:,} positions of an epoch in batches of {full.batch_size:,}; shown is what is not promised"
    )
    for measure in window.measures:
        if not measure.promised and measure.name.endswith("per batch, spread"):
            _out.print(f"window, {measure.name}: {measure.meaning}", soft_wrap=True)


@app.command()
def demo(
    directory: Annotated[
        Path | None, typer.Option("--keep", help="Keep the demo's store here.", show_default=False)
    ] = None,
) -> None:
    """Ingest real handwriting, train a small classifier on it and evaluate it."""
    from shardstore.demo import run_demo

    with _user_errors():
        run_demo(lambda line: _out.print(line, markup=False, soft_wrap=True), directory)


@contextmanager
def _user_errors() -> Iterator[None]:
    """Turn a user's mistakes into one line and an exit code; let a termination clean up like Ctrl-C."""

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    # A closed terminal says SIGHUP, which nohup has ignored.
    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    handlers = {number: signal.getsignal(number) for number in numbers}
    for number, handler in handlers.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, terminate)
    try:
        yield
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except (CorruptionError, OSError) as error:
        _fail(str(error), 1)
    except (ShardStoreError, ValueError) as error:
        _fail(str(error), 2)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _fail(message: str, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(code)


def _pairs(items: list[str], option: str, form: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name or not value:
            _fail(f"{option} {item!r}: expected {form}", 2)
        if name in pairs:
            _fail(f"{option}: {name!r} is named twice", 2)
        pairs[name] = value
    return pairs


def _columns(items: list[str]) -> dict[str, str | dict[str, str]]:
    """Return the sources of columns by name; `NAME.values=GLOB` and its like belong to one ragged column."""
    columns: dict[str, str | dict[str, str]] = {}
    for key, paths in _pairs(items, "--column", "NAME=GLOB").items():
        name, dot, role = key.partition(".")
        if dot and role not in ROLES:
            _fail(f"--column {key!r}: expected NAME, or NAME with one of {', '.join('.' + r for r in ROLES)}", 2)
        if (not dot and name in columns) or isinstance(columns.get(name), str):
            _fail(f"--column: {name!r} is named twice", 2)
        group = columns.setdefault(name, {} if dot else paths)
        if dot and isinstance(group, dict):
            group[role] = paths
    return columns


def _types(items: list[str]) -> dict[str, str | ColumnType]:
    types: dict[str, str | ColumnType] = {}
    for name, text in _pairs(items, "--type", "NAME=TYPE").items():
        kind, colon, categories = text.partition(":")
        types[name] = Categorical(categories.split(",")) if colon and kind == "categorical" else text
    return types


def _codecs(items: list[str]) -> str | dict[str, str]:
    if len(items) == 1 and "=" not in items[0]:
        return items[0]
    return _pairs(items, "--codec", "COLUMN=CODEC")


def _size(nbytes: int) -> str:
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"
