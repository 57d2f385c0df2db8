"""`Damage`: one thing that is wrong with a store."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong.

    Attributes:
        file: path of the file within the store.
        reason: what was expected and what was found.
        chunk: number of the damaged chunk within its shard, or None if the whole file is concerned.
        rows: first row and one past the last row of the store that are lost with it, or None for metadata.
    """

    file: str
    reason: str
    chunk: int | None = None
    rows: tuple[int, int] | None = None

    def __str__(self) -> str:
        chunk = "" if self.chunk is None else f", chunk {self.chunk}"
        rows = "" if self.rows is None else f" (rows {self.rows[0]:,} to {self.rows[1] - 1:,})"
        return f"{self.file}{chunk}{rows}: {self.reason}"
