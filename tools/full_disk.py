"""Write stores on a file system that fills up, and look what is there.

    python -m tools.full_disk                       every operation, on disks of every size that is too small
    python -m tools.full_disk --only "add an array"

Each operation runs on a small tmpfs, of one size after the other until it fits: first by bytes, then by files. Where it
does not fit it has to say that no space is left, and to leave the store as it was and no file; once there is space, it
has to succeed. Needs Linux, and the right to mount (root's, or `unshare -rm`).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shardstore.errors import ShardStoreError
from tools.operations import Operation, make_sources, operations
from tools.workplaces import Workplace, WrongError, scratch

PAGE = resource.getpagesize()
_ROOM = "size=64m,nr_inodes=10000"
_INSIDE = "--inside"


def can_mount() -> bool:
    """Whether a file system of one's own can be mounted here."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    with scratch() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", _ROOM, "tmpfs", str(folder)]
        return subprocess.run(["unshare", "-rm", *mount], capture_output=True, check=False).returncode == 0


def run(names: list[str] | None = None, step: int = 1) -> dict[str, Counter[str]]:
    """Run operations, in a process that may mount; return by name how many disks were full, and of what.

    Args:
        names: of the operations; all by default.
        step: by how many pages, or files, disks differ in size.
    """
    with scratch() as folder:
        command = ["unshare", "-rm", sys.executable, "-m", "tools.full_disk", _INSIDE, str(folder), str(step)]
        done = subprocess.run([*command, *(names or ())], capture_output=True, text=True, check=False)
    if done.returncode:
        raise WrongError(done.stderr)
    return {name: Counter(counts) for name, counts in json.loads(done.stdout).items()}


def _run_inside(folder: Path, step: int, names: list[str]) -> dict[str, Counter[str]]:
    make_sources(folder / "sources")
    found = {}
    for number, operation in enumerate(operations(folder / "sources")):
        if not names or operation.name in names:
            (folder / str(number)).mkdir()
            found[operation.name] = _fill(folder / str(number), operation, step)
    return found


def _fill(folder: Path, operation: Operation, step: int) -> Counter[str]:
    (folder / "work").mkdir()
    full: Counter[str] = Counter()
    with _mounted(folder / "work", _ROOM):
        place = Workplace(folder, operation, shutil.copyfile)
    with _mounted(place.work, _ROOM):  # another one: files that are still open take room
        place.reset()
        status = os.statvfs(place.work)
        used = {"bytes": status.f_blocks - status.f_bfree, "files": status.f_files - status.f_ffree}
    for what, sizes in {"bytes": "size={}k,nr_inodes=10000", "files": "size=64m,nr_inodes={}"}.items():
        size = max(1, used[what])  # 0 is no limit
        while True:
            with _mounted(place.work, sizes.format(size * PAGE // 1024 if what == "bytes" else size)):
                if not _is_full(place, f"{operation.name}, on a disk of {size} {what.replace('bytes', 'pages')}"):
                    break
            full[what] += 1
            size += step
    return full


def _is_full(place: Workplace, where: str) -> bool:
    """Run an operation, check all that must hold, and return whether it did not fit."""
    place.reset()
    error = None
    try:
        place.operation.run(place.work)
    except (ShardStoreError, OSError) as raised:
        error = raised
    found = place.found(where)
    if error is None:
        if found != "new" and not place.operation.optional:
            raise WrongError(f"{where}: no error, but the store holds what it held before")
        return found != "new"
    if "no space" not in str(error).lower():
        raise WrongError(f"{where}: the error does not say that no space is left: {error!r}")
    if found == "old":
        place.check_cleared(where)
    subprocess.run(["mount", "-o", f"remount,{_ROOM}", place.work], check=True)
    place.go_on(found, where)
    return True


@contextmanager
def _mounted(folder: Path, options: str) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)  # stores may still be open


def main() -> None:
    """Run from the command line."""
    if sys.argv[1:2] == [_INSIDE]:
        json.dump(_run_inside(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]), sys.stdout)
        return
    parser = argparse.ArgumentParser(prog="python -m tools.full_disk", description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", action="append", help="one operation, or several")
    options = parser.parse_args()
    if not can_mount():
        sys.exit("no file system can be mounted here: run it on Linux, as root or where `unshare -rm` is allowed")
    total: Counter[str] = Counter()
    for name, full in run(options.only).items():
        print(f"{name}: full of bytes {full['bytes']} times, of files {full['files']} times")
        total += full
    print(f"all: full of bytes {total['bytes']} times, of files {total['files']} times")


if __name__ == "__main__":
    main()
