"""The app that commands belong to, and what they share: output, arguments, a user's mistakes.

Exit codes: 0, 1 for a failed check or a failure of the system, 2 for wrong usage, 130 after Ctrl-C. A user's mistake
is one line on standard error, never a traceback.
"""

from __future__ import annotations

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

import shardstore
from shardstore.errors import CorruptionError, ShardStoreError
from shardstore.store import Store

app = typer.Typer(
    help="Convert raw NumPy dumps into a store once, then stream training batches from it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# A pipe has no width: nothing is cut off there.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 100_000)

StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="A store's directory.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        out.print(shardstore.__version__)


@contextmanager
def user_errors() -> Iterator[None]:
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
        fail("interrupted", 130)
    except (CorruptionError, OSError) as error:
        fail(str(error), 1)
    except (ShardStoreError, ValueError) as error:
        fail(str(error), 2)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def fail(message: str, code: int) -> NoReturn:
    """Say one line on standard error and end with an exit code."""
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(code)


def named_columns(store: Store, names: str | None) -> tuple[str, ...]:
    """Return the columns that an option names, with commas between them; all of the store for None."""
    if names is None:
        return store.columns
    found = tuple(name.strip() for name in names.split(","))
    for name in found:
        check_column(store, name)
    if len(set(found)) < len(found):
        fail(f"--columns {names!r}: a column is named twice", 2)
    return found


def check_column(store: Store, name: str) -> None:
    """End with an error if a store has no such column."""
    if name not in store.columns:
        fail(f"no column {name!r}; the columns are {', '.join(store.columns)}", 2)


def figure(function: str, png: Path) -> Callable[..., None]:
    """Return a function of `shardstore.plotting`, once it is sure that it can draw to a file."""
    if not png.absolute().parent.is_dir():
        fail(f"cannot write {png}: there is no folder {png.absolute().parent}", 2)
    try:
        plotting = import_module("shardstore.plotting")
    except ModuleNotFoundError:
        fail("--png needs matplotlib: python -m pip install 'shardstore[plot]'", 2)
    drawing: Callable[..., None] = getattr(plotting, function)
    return drawing
