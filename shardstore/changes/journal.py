"""The journal of a column that is being added: what makes it, and which of its shard files are finished."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shardstore.changes.lineage import MadeBy
from shardstore.column_progress import UNREADABLE, ColumnProgress
from shardstore.columns import ColumnStart
from shardstore.files import remove_others
from shardstore.journals import JOURNAL_FILE, read_journal, write_journal


@dataclass(frozen=True)
class Journal:
    """What is finished of a column.

    Attributes:
        made_by: what makes it, of which columns.
        progress: the column so far.
    """

    made_by: MadeBy
    progress: ColumnProgress

    def write(self, folder: Path) -> None:
        """Bring the journal to disk, in the place of the one before; shard files have to be there already."""
        write_journal(folder, {"made_by": self.made_by.to_json(), **self.progress.to_json()})

    @classmethod
    def read(cls, folder: Path) -> Journal | None:
        """Return the journal of a folder, or None if there is none that can be relied on."""
        body = read_journal(folder)
        try:
            made_by = None if body is None else MadeBy.read(body["made_by"])
            if body is None or made_by is None:
                return None
            return cls(made_by, ColumnProgress.from_json(body))
        except UNREADABLE:
            return None  # another one is written; nothing is lost but time


def take_over(store: Path, progress: ColumnProgress) -> ColumnStart:
    """Return where a column can be gone on with; unfinished files of its folder are removed."""
    there = progress.verified(store)
    # What is not gone on with stays until it is written again: whoever is interrupted before has lost nothing.
    name = progress.entry.field.name
    keep = {key.removeprefix(f"{name}/") for key in there.keys} | {JOURNAL_FILE}
    remove_others(store / name, keep.__contains__)
    return there.start(store, there.shards)
