"""Which tasks of an interrupted ingest of files have left shard files that can be taken over."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from shardstore.errors import SchemaError
from shardstore.files import remove_others
from shardstore.journals import JOURNAL_FILE, read_journal, write_journal
from shardstore.pipeline.copying import Task
from shardstore.schema import ColumnLayout
from shardstore.sources.fingerprints import file_fingerprint

_KIND = "files"


def resumed_tasks(
    directory: Path, layouts: Mapping[str, ColumnLayout], tasks: Sequence[Task], resumed: bool
) -> list[Task]:
    """Write down what the tasks of an ingest are, for who resumes it, and return them as they are to be run.

    Shard files of an earlier attempt stay if they are of a task that is the same now: of the same rows of the same
    files, none of which has changed. All others are removed.

    Raises:
        SchemaError: if the earlier attempt was at other columns, or at other layouts of them: nothing is removed then.
    """
    layout = hashlib.blake2b(repr(sorted(layouts.items())).encode(), digest_size=16).hexdigest()
    known = read_journal(directory) if resumed else None
    if known is not None and (known.get("kind"), known.get("layout")) != (_KIND, layout):
        raise SchemaError(
            "what is finished of the store was written in other columns, sizes, codecs or ways than are asked for now: "
            'resume it with the same arguments, or begin a new one with mode="create"'
        )
    files = {path: file_fingerprint(path) for path in sorted(set().union(*(task.sources for task in tasks)))}
    digests = {task.key: _digest(task, files) for task in tasks}
    if known is not None:
        before = known.get("tasks")
        before = before if isinstance(before, dict) else {}
        same = {task.key for task in tasks if before.get(task.key) == digests[task.key]}
        kept = {JOURNAL_FILE, *(path for task in tasks if task.key in same for path in task.paths)}
        remove_others(directory, kept.__contains__)
        tasks = [replace(task, resumed=task.key in same) for task in tasks]
    write_journal(directory, {"kind": _KIND, "layout": layout, "tasks": digests})
    return list(tasks)


def _digest(task: Task, files: Mapping[Path, str]) -> str:
    """Return 32 hex digits of all that a task's shard files depend on."""
    # What tasks and parts are made of are plain values, which their representation names whole.
    what = repr(replace(task, directory=Path())), [files[path] for path in sorted(task.sources)]
    return hashlib.blake2b(repr(what).encode(), digest_size=16).hexdigest()
