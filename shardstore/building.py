"""Building a new store beside its destination: it takes its name whole, or not at all."""

from __future__ import annotations

import datetime
import errno
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shardstore import files
from shardstore.changes.writelock import store_lock
from shardstore.entries import ColumnEntry
from shardstore.errors import DestinationError
from shardstore.manifest import METADATA_FILE, Manifest, encode_document, load_manifest
from shardstore.version import __version__

Mode = Literal["create", "overwrite"]
MODES: tuple[Mode, ...] = ("create", "overwrite")


@dataclass
class Build:
    """A store that is being built.

    Attributes:
        directory: where its files go, until `commit` gives the directory the destination's name.
        destination: that name.
        mode: whether the name must be free (`"create"`) or its store is replaced (`"overwrite"`).
    """

    directory: Path
    destination: Path
    mode: Mode

    def commit(
        self, rows: int, shard_rows: int, columns: Mapping[str, ColumnEntry], provenance: Mapping[str, Any]
    ) -> None:
        """Write the metadata of finished columns and give the store its name.

        `provenance` is what the manifest says of the rows' origin beside tool and time: JSON values without floats.
        """
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        origin = {"tool": f"shardstore {__version__}", "created": now, "sources": {}, **provenance}
        manifest = Manifest(str(uuid.uuid4()), 1, rows, shard_rows, columns, origin)
        with explained_errors(self.destination):
            for name, document in manifest.documents().items():
                files.write_file(self.directory / name / METADATA_FILE, encode_document(document))
            files.write_file(self.directory / METADATA_FILE, manifest.encode())
            files.fsync_tree(self.directory)
            if self.mode == "overwrite" and self.destination.exists():
                # Whoever changes the old store must not write into the new one. Windows sees to that itself: it does
                # not rename a directory that has open files.
                with nullcontext() if os.name == "nt" else store_lock(self.destination):
                    files.swap_directory(self.directory, self.destination)
                return
            try:
                files.publish_directory(self.directory, self.destination)
            except FileExistsError:
                raise _exists(self.destination) from None


def check_destination(destination: Path, mode: Mode) -> None:
    """Raise `DestinationError` if a store cannot be written to `destination`."""
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; expected {' or '.join(map(repr, MODES))}")
    with explained_errors(destination):
        for parent in destination.absolute().parents:
            if (parent / METADATA_FILE).exists():
                raise DestinationError(f"{destination} lies inside the store {parent}: choose a place outside")
        if not os.path.lexists(destination):
            return
    if mode == "create":
        raise _exists(destination)
    if destination.is_symlink() or not destination.is_dir():
        raise DestinationError(f"{destination}: not a directory; overwrite replaces only a shardstore store")
    with explained_errors(destination), store_lock(destination):
        pass  # better said now than after an ingest of hours
    if any(destination.iterdir()):
        try:
            load_manifest(destination)
        except Exception as error:
            raise DestinationError(
                f"{destination}: overwrite replaces only a shardstore store, and this is none that can be read "
                f"({error}); remove it yourself if you are sure"
            ) from None


@contextmanager
def building(destination: Path, mode: Mode) -> Iterator[Build]:
    """Open a build of a new store; whatever way it is left without a commit, nothing stays behind.

    Raises:
        DestinationError: if `destination` cannot be used.
    """
    check_destination(destination, mode)
    missing = [parent for parent in destination.parents if not parent.exists()]
    process = os.getpid()
    try:
        with explained_errors(destination):
            directory = files.partial_directory(destination)
        try:
            yield Build(directory, destination, mode)
        finally:
            if os.getpid() == process:  # a child of a fork may leave here, too
                shutil.rmtree(directory, ignore_errors=True)
    finally:
        for parent in (
            missing if os.getpid() == process else ()
        ):  # made for a store that did not come: an empty one goes again
            with suppress(OSError):
                parent.rmdir()


@contextmanager
def explained_errors(destination: Path, kept: str = "nothing was kept of the attempt") -> Iterator[None]:
    """Turn what the system says while a store is written into a `DestinationError`, which says what was kept."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            there = next(folder for folder in destination.absolute().parents if folder.is_dir())
            free = shutil.disk_usage(there).free
            raise DestinationError(f"no space left for {destination}: {free:,} bytes are free there; {kept}") from error
        if error.errno in _REFUSALS:
            where = f" ({error.filename})" if error.filename else ""
            raise DestinationError(f"cannot write {destination}: {error.strerror}{where}") from error
        raise


_REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EFBIG)


def _exists(destination: Path) -> DestinationError:
    return DestinationError(f"{destination} exists already: choose another name, or overwrite it")
