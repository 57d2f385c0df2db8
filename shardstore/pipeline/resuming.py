"""Which tasks of an interrupted ingest of files have left shard files that can be taken over."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shardstore.files import remove_others
from shardstore.journals import JOURNAL_FILE, read_journal, write_journal
from shardstore.pipeline.copying import Task
from shardstore.sources.fingerprints import file_fingerprint

_KIND = "files"


def resumed_tasks(directory: Path, tasks: Sequence[Task], resumed: bool) -> list[Task]:
    """Write down what the tasks of an ingest are, for who resumes it, and return them as they are to be run.

    Shard files of an earlier attempt stay if they are of a task that is the same now: of the same rows of the same
    files, none of which has changed, written in the same layout. All others are removed.
    """
    files = {path: file_fingerprint(path) for path in sorted(set().union(*(task.sources for task in tasks)))}
    digests = {task.key: _digest(task, files) for task in tasks}
    if resumed:
        known = _known(directory)
        same = {task.key for task in tasks if known.get(task.key) == digests[task.key]}
        kept = {JOURNAL_FILE, *(path for task in tasks if task.key in same for path in task.paths)}
        remove_others(directory, kept.__contains__)
        tasks = [replace(task, resumed=task.key in same) for task in tasks]
    write_journal(directory, {"kind": _KIND, "tasks": digests})
    return list(tasks)


def _digest(task: Task, files: Mapping[Path, str]) -> str:
    """Return 32 hex digits of all that a task's shard files depend on."""
    # What tasks and parts are made of are plain values, which their representation names whole.
    what = repr(replace(task, directory=Path())), [files[path] for path in sorted(task.sources)]
    return hashlib.blake2b(repr(what).encode(), digest_size=16).hexdigest()


def _known(directory: Path) -> Mapping[str, Any]:
    journal = read_journal(directory) or {}
    tasks = journal.get("tasks")
    return tasks if journal.get("kind") == _KIND and isinstance(tasks, dict) else {}
