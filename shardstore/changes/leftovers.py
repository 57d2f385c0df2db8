"""What a writer that was killed leaves in a store, and what is left to be done behind the commit of an append.

Whoever changes the store next sees to both, under its lock. Readers need neither.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from shardstore import files
from shardstore.entries import ArrayEntry, successor_key
from shardstore.errors import CorruptionError
from shardstore.journals import JOURNAL_FILE
from shardstore.manifest import METADATA_FILE, Manifest, encode_document

# What a column's folder has; anything else was put there by somebody else.
_FILES = frozenset((METADATA_FILE, JOURNAL_FILE))
_FOLDERS = frozenset(("c", "values", "ranges"))
_UNFINISHED = re.compile(r"\.+([0-9]+|zarr\.json|journal\.json)\.(partial(-[0-9a-f]{8})?|tail-[0-9]+(\.partial)?)")


def settle(store: Path, manifest: Manifest) -> None:
    """Make sure that a manifest that was read is the one to go by, before anything is changed or removed.

    Raises:
        CorruptionError: if the metadata of arrays is of a later generation: somebody has put an older `zarr.json` back.
    """
    files.fsync_directory(store)  # who wrote it may have been killed before it was sure to stay
    if _is_older(store, manifest):
        raise CorruptionError(
            f"{store / METADATA_FILE}: lists {manifest.rows:,} rows, the files beside it hold more: it is of an "
            "earlier generation than they are, and going by it would lose rows; put the latest one back, or move it "
            "away and run shardstore repair --rebuild-manifest"
        )


def _is_older(store: Path, manifest: Manifest) -> bool:
    """Whether all arrays have the metadata that follows from a manifest, but some more rows, and files for these."""
    directory = files.Directory(store)
    more = False
    for name, expected in manifest.documents().items():
        try:
            found = json.loads(directory.read(f"{name}/{METADATA_FILE}"))
            if found != expected:
                rows, listed = found["shape"][0], expected["shape"][0]
                if {**found, "shape": expected["shape"]} != expected or not rows > listed:
                    return False
                more = True
        except (OSError, ValueError, TypeError, KeyError, IndexError, RecursionError):
            return False  # which a verification finds
    return more and any(_holds_more(store, entry) for entry in manifest.arrays)


def _holds_more(store: Path, entry: ArrayEntry) -> bool:
    """Whether there is a shard file behind the last one of an array, or this is larger than it should be."""
    shards = len(entry.nbytes)
    if (store / entry.layout.shard_key(shards)).exists():
        return True
    last = store / entry.layout.shard_key(shards - 1)
    return bool(shards) and last.exists() and last.stat().st_size > int(entry.nbytes[-1])


def finish_commit(store: Path, manifest: Manifest) -> None:
    """Give shard files that took the place of others their names, and arrays the metadata of their new shapes."""
    for entry in manifest.arrays:
        if entry.successor is None or _leads_out(store, f"{entry.layout.field.name}/c"):
            continue
        key = entry.layout.shard_key(entry.successor.shard)
        successor, path = store / successor_key(key, entry.successor.generation), store / key
        if successor.exists():
            successor.replace(path)
        files.fsync_directory(path.parent)  # also where it had its name: the next commit may rely on it
    if not manifest.history or manifest.history[-1].until != manifest.generation - 1:
        return
    for name, document in manifest.documents().items():
        path, data = store / name / METADATA_FILE, encode_document(document)
        if not path.exists() or path.read_bytes() != data:
            files.write_file(path, data)
            files.fsync_directory(path.parent)


def leftovers(store: Path, manifest: Manifest) -> list[Path]:
    """Return what killed changes have left in a store, and nobody can go on with."""
    found = [*store.glob(f".{METADATA_FILE}.partial-*"), *store.glob(JOURNAL_FILE)]
    for name in manifest.documents():
        if not _leads_out(store, name):
            found += (store / name).glob(f".{METADATA_FILE}.partial-*")
            found += (store / name).glob(JOURNAL_FILE)
    for entry in manifest.arrays:
        if not _leads_out(store, f"{entry.layout.field.name}/c"):
            found += _beside_shards(store, entry)
    return [*found, *(path for path in _other_folders(store, manifest) if is_dead_column(path))]


def remove_leftovers(store: Path, manifest: Manifest) -> None:
    """Remove what killed changes have left in a store, and nobody can go on with."""
    for path in leftovers(store, manifest):
        remove(path)


def _leads_out(store: Path, name: str) -> bool:
    """Whether a symbolic link is on the way to a file: what lies elsewhere is not the store's."""
    path = store / name
    return any(folder.is_symlink() for folder in (path, *path.parents) if store in folder.parents)


def _beside_shards(store: Path, entry: ArrayEntry) -> Iterator[Path]:
    """Yield files and folders among an array's shard files that are none: unfinished ones, and those of no rows."""
    folder, shards = store / entry.layout.field.name / "c", len(entry.nbytes)
    if not folder.is_dir():
        return
    named = set() if entry.successor is None else {store / name for name in entry.names(entry.successor.shard)}
    for name in os.listdir(folder):
        is_beyond = name.isdecimal() and int(name) >= shards
        if (is_beyond or name.startswith(".")) and folder / name not in named:
            yield folder / name
    inner = (store / entry.layout.shard_key(shards - 1)).parent if shards else folder
    if inner != folder and inner.is_dir():
        yield from (inner / name for name in os.listdir(inner) if name.startswith(".") and inner / name not in named)


def unfinished_columns(store: Path, manifest: Manifest) -> list[Path]:
    """Return the folders of columns that are not the store's, also of those whose addition could be gone on with."""
    return [path for path in _other_folders(store, manifest) if is_left_over(path)]


def _other_folders(store: Path, manifest: Manifest) -> list[Path]:
    return [
        path
        for path in store.iterdir()
        if path.name not in manifest.columns and not path.name.startswith(".")
        if path.is_dir() and not path.is_symlink()
    ]


def is_left_over(folder: Path) -> bool:
    """Whether a folder has nothing that a column would not leave behind, or nothing at all."""
    for parent, folders, names in os.walk(folder):
        inside = Path(parent).relative_to(folder).parts
        # Within "c", or "values/c" and "ranges/c", only numbers have names.
        is_shards = "c" in inside
        if any(Path(parent, name).is_symlink() for name in folders):
            return False
        if not all(name.isdecimal() if is_shards else name in _FOLDERS for name in folders):
            return False
        if not all((name.isdecimal() and is_shards) or name in _FILES or _UNFINISHED.fullmatch(name) for name in names):
            return False
    return True


def is_dead_column(folder: Path) -> bool:
    """Whether a folder that is no column's has only what a column leaves behind, and nothing to go on with."""
    return is_left_over(folder) and not (folder / JOURNAL_FILE).exists()


def remove(path: Path) -> None:
    """Remove a file, or a folder and all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # files in use may stay; they mean nothing
    else:
        path.unlink(missing_ok=True)
