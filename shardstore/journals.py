"""Journals: what is finished of something that is being written, for who goes on with it if it is interrupted.

A journal lies in the folder that is being written. It means nothing to readers, and nothing once all is committed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shardstore import files
from shardstore.manifest import encode_document, manifest_checksum

JOURNAL_FILE = "journal.json"


def write_journal(folder: Path, body: Mapping[str, Any]) -> None:
    """Bring plain JSON values without floats to disk, in the place of the journal before."""
    files.write_file(folder / JOURNAL_FILE, encode_document({**body, "crc32c": manifest_checksum(body)}))
    files.fsync_directory(folder)


def remove_journal(folder: Path) -> bool:
    """Remove the journal of a folder, and return whether that is one: what lies elsewhere is not the store's."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    (folder / JOURNAL_FILE).unlink(missing_ok=True)
    return True


def read_journal(folder: Path) -> dict[str, Any] | None:
    """Return the journal of a folder, or None if there is none that can be relied on."""
    try:
        body: dict[str, Any] = json.loads(files.Directory(folder).read(JOURNAL_FILE))
        return body if body.pop("crc32c") == manifest_checksum(body) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None  # another one is written; nothing is lost but time
