"""Progress bars: bytes, bytes per second and time left on a terminal; nothing in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]


@contextmanager
def byte_progress(description: str, total: int | None, show: bool | None = None) -> Iterator[Advance]:
    """Show how many of `total` bytes are done; yields the function that counts them up, from any thread.

    Args:
        description: what is being done.
        total: bytes to do; None if that is not known.
        show: whether to draw; None draws if standard error is a terminal.
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda nbytes: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total)
        yield lambda nbytes: progress.advance(task, nbytes)
