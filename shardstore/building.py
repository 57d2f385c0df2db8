"""Building a new store beside its destination: it takes its name whole, or not at all."""

from __future__ import annotations

import datetime
import errno
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shardstore import files
from shardstore.changes.writelock import LOCK_FILE, store_lock
from shardstore.columns import NOTHING, ColumnStart
from shardstore.entries import ColumnEntry
from shardstore.errors import DestinationError, FormatError, LockedError
from shardstore.journals import JOURNAL_FILE, read_journal
from shardstore.manifest import METADATA_FILE, Manifest, encode_document, load_manifest
from shardstore.schema import ColumnLayout, Field, plan_layouts
from shardstore.version import __version__

Mode = Literal["create", "overwrite", "append", "resume"]
MODES: tuple[Mode, ...] = ("create", "overwrite", "append", "resume")


@dataclass
class Build:
    """A store that is being built.

    Attributes:
        directory: where its files go, until `commit` gives the directory the destination's name.
        destination: that name.
        mode: whether the name must be free (`"create"`, `"resume"`) or its store is replaced (`"overwrite"`).
        resumed: whether the directory is one that an interrupted build has left.
        shard_rows: rows of every shard but the last, once `layouts` has been called.
    """

    directory: Path
    destination: Path
    mode: Mode
    resumed: bool = False
    shard_rows: int = 0
    rows = 0  # that there are already; see `Growth`
    kept = "nothing was kept of the attempt"

    @property
    def fields(self) -> dict[str, Field]:
        """The columns that there are: none."""
        return {}

    def layouts(
        self,
        fields: Iterable[Field],
        codec: str | Mapping[str, str],
        shard_bytes: int | str,
        chunk_bytes: int | str | None,
    ) -> dict[str, ColumnLayout]:
        """Choose how the columns are cut; see `plan_layouts`."""
        layouts = plan_layouts(fields, codec, shard_bytes, chunk_bytes)
        first = next(iter(layouts.values()))
        self.shard_rows = (first.ranges or first.data).shard_rows
        return layouts

    def start(self, name: str) -> ColumnStart:
        """Return where writing a column begins."""
        return NOTHING

    def commit(self, rows: int, columns: Mapping[str, ColumnEntry], provenance: Mapping[str, Any]) -> None:
        """Write the metadata of finished columns and give the store its name.

        `provenance` is what the manifest says of the rows' origin beside tool and time: JSON values without floats.
        """
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        origin = {"tool": f"shardstore {__version__}", "created": now, "sources": {}, **provenance}
        manifest = Manifest(str(uuid.uuid4()), 1, rows, self.shard_rows, columns, origin)
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
            else:
                try:
                    files.publish_directory(self.directory, self.destination)
                except FileExistsError:
                    raise _exists(self.destination) from None
                # A store whose replacement was killed half-way was kept while nothing had its name.
                for path in dead_builds(self.destination):
                    shutil.rmtree(path, ignore_errors=True)
            # Not before: until the store has its name, an interrupted build can be gone on with.
            (self.destination / JOURNAL_FILE).unlink(missing_ok=True)


def check_destination(destination: Path, mode: Mode) -> None:
    """Raise `DestinationError` if a store cannot be written to `destination`."""
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; expected {', '.join(map(repr, MODES))}")
    with explained_errors(destination):
        for parent in destination.absolute().parents:
            if (parent / METADATA_FILE).exists():
                raise DestinationError(f"{destination} lies inside the store {parent}: choose a place outside")
        if not os.path.lexists(destination):
            if mode == "append":
                raise DestinationError(f"{destination}: there is no store to append to; create it first")
            return
    if mode == "resume" and destination.is_dir():
        raise DestinationError(f"{destination} exists already, so there is nothing to resume: it is complete")
    if mode in ("create", "resume"):
        raise _exists(destination)
    if (mode == "overwrite" and destination.is_symlink()) or not destination.is_dir():
        what = "replaces" if mode == "overwrite" else "goes on with"
        raise DestinationError(f"{destination}: not a directory; {mode} {what} only a shardstore store")
    with explained_errors(destination), store_lock(destination):
        pass  # better said now than after an ingest of hours
    if any(destination.iterdir()) or mode == "append":
        try:
            load_manifest(destination)
        except Exception as error:
            what = "replaces" if mode == "overwrite" else "goes on with"
            raise DestinationError(
                f"{destination}: {mode} {what} only a shardstore store, and this is none that can be read "
                f"({error}){'; remove it yourself if you are sure' if mode == 'overwrite' else ''}"
            ) from None


@contextmanager
def building(destination: Path, mode: Mode) -> Iterator[Build]:
    """Open a build of a new store; whatever way it is left without a commit, nothing stays behind.

    With the mode `"resume"`, what another build has left that was killed is gone on with, and what can be gone on with
    stays.

    Raises:
        DestinationError: if `destination` cannot be used.
        LockedError: if a build that is to be resumed is under way.
    """
    check_destination(destination, mode)
    missing = [parent for parent in destination.parents if not parent.exists()]
    process = os.getpid()
    try:
        with ExitStack() as held:
            with explained_errors(destination):
                left = _left_behind(destination, mode == "resume", held)
                directory = left or _new_directory(destination, held)
            keep = False
            try:
                yield Build(directory, destination, mode, left is not None)
            except BaseException:
                keep = mode == "resume" and (directory / JOURNAL_FILE).exists()
                raise
            finally:
                if not keep and os.getpid() == process:  # a child of a fork may leave here, too
                    shutil.rmtree(directory, ignore_errors=True)
    finally:
        # Made for a store that did not come: an empty one goes again.
        for parent in missing if os.getpid() == process else ():
            with suppress(OSError):
                parent.rmdir()


def _new_directory(destination: Path, held: ExitStack) -> Path:
    """Return a new directory beside a destination, which is locked as long as somebody builds there."""
    while True:
        directory = files.partial_directory(destination)
        try:
            if _LOCKS_BUILDS:
                held.enter_context(store_lock(directory))
        except (FormatError, LockedError):
            continue  # somebody who cleans up took it for one that is left
        except OSError as error:
            if error.errno != errno.ENOLCK:
                raise
            # Where there are no locks, nobody takes a build for a dead one.
            (directory / LOCK_FILE).unlink(missing_ok=True)
        return directory


def _left_behind(destination: Path, resume: bool, held: ExitStack) -> Path | None:
    """Remove what builds have left that were killed; with `resume`, return the last one that can be gone on with."""
    if not _LOCKS_BUILDS or not destination.parent.is_dir():
        return None
    resumed = None
    for path in sorted(files.partial_directories(destination), key=_last_change, reverse=True):
        with ExitStack() as lock:
            try:
                lock.enter_context(store_lock(path))
            except FormatError:
                continue
            except LockedError as error:
                if resume:
                    raise LockedError(
                        f"{destination} is being built already, so there is nothing to resume; {error}"
                    ) from None
                continue
            except OSError as error:
                if error.errno != errno.ENOLCK:
                    raise
                continue
            if resume and resumed is None and read_journal(path) is not None:
                held.push(lock.pop_all())
                resumed = path
            else:
                shutil.rmtree(path, ignore_errors=True)  # that of another user stays, and means nothing
    return resumed


def dead_builds(destination: Path) -> Iterator[Path]:
    """Yield the directories of builds that were killed, each locked until the next one is asked for."""
    for path in files.partial_directories(destination) if _LOCKS_BUILDS else ():
        with suppress(FormatError, LockedError), store_lock(path):
            yield path


def _last_change(directory: Path) -> float:
    try:
        return (directory / JOURNAL_FILE).stat().st_mtime
    except OSError:
        return 0.0


# Windows does not rename a directory in which a file is open, such as that of a lock.
_LOCKS_BUILDS = os.name != "nt"


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
        if error.errno == errno.EIO:
            raise DestinationError(
                f"writing {destination} failed: {error.strerror}: a disk does not work, or is not reached; {kept}"
            ) from error
        if error.errno in _REFUSALS:
            where = f" ({error.filename})" if error.filename else ""
            raise DestinationError(f"cannot write {destination}: {error.strerror}{where}") from error
        raise


_REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EFBIG)


def _exists(destination: Path) -> DestinationError:
    return DestinationError(f"{destination} exists already: choose another name, or overwrite it")
