"""How much memory a piece of work takes: anonymous pages, which only it can use, apart from pages of files.

Pages of mapped files are shared with the page cache, and the system takes them back when it needs them; anonymous
ones (arrays, heaps) are what a machine runs out of.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_STATUS = Path("/proc/self/status")
_INTERVAL_SECONDS = 0.005


@dataclass(frozen=True)
class MemoryUse:
    """Resident memory of this process, in bytes."""

    anonymous: int
    file_backed: int


def current_memory() -> MemoryUse | None:
    """Return what this process has resident now; None where the system does not tell (it is read from Linux' /proc)."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if "Rss" in name}
    if "RssAnon" not in kib:
        return None
    return MemoryUse(kib["RssAnon"] * 1024, (kib["RssFile"] + kib["RssShmem"]) * 1024)


def size_text(nbytes: float) -> str:
    """Return a number of bytes as a short text: `950 B`, `1.5 MiB`."""
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"


class PeakMemory:
    """A context manager that watches the process from a thread and keeps the highest values seen.

    Attributes:
        anonymous: peak of anonymous memory in bytes, 0 where the system does not tell.
        file_backed: peak of resident pages of files in bytes.
    """

    def __init__(self) -> None:
        self.anonymous = 0
        self.file_backed = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="shardstore-memory", daemon=True)

    def _look(self) -> None:
        use = current_memory()
        if use is not None:
            self.anonymous = max(self.anonymous, use.anonymous)
            self.file_backed = max(self.file_backed, use.file_backed)

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL_SECONDS):
            self._look()

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
