"""Are all changes seen? The calls that a `Watch` shows, beside those that strace sees the process make."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.operations import Operation, make_sources, operations
from tools.watching import Call, Watch

# By the name of a call, the calls of Linux that do the same.
_SYSTEM_CALLS = {
    "open": ("open", "openat", "openat2", "creat"),
    "write": ("write", "writev", "pwrite64", "pwritev", "pwritev2", "sendfile", "copy_file_range", "splice"),
    "fsync": ("fsync", "fdatasync"),
    "truncate": ("truncate", "ftruncate"),
    "rename": ("rename", "renameat", "renameat2"),
    "link": ("link", "linkat"),
    "unlink": ("unlink", "unlinkat"),
    "rmdir": ("rmdir",),
    "mkdir": ("mkdir", "mkdirat"),
    # What is not seen, and so must not be.
    "mmap": ("mmap",),
    "other": ("symlink", "symlinkat", "mknod", "mknodat", "fallocate", "ioctl", "fchmod", "fchmodat", "io_uring_enter"),
}
_NAMES = {call: name for name, calls in _SYSTEM_CALLS.items() for call in calls}


def calls_seen_and_traced(folder: Path) -> tuple[dict[str, Counter[str]], dict[str, Counter[str]]]:
    """Run all operations in one process under strace, in an empty folder.

    Return for each, by kind, how many calls were seen in the process, and how many strace saw.
    """
    make_sources(folder / "sources")
    found = operations(folder / "sources")
    for number, operation in enumerate(found):
        _place(folder, number).mkdir(parents=True)
        operation.prepare(_place(folder, number))
    calls = ",".join(f"?{call}" for call in _NAMES)  # "?": which a system need not have
    command = ["strace", "-ff", "-y", "-s", "0", "-o", str(folder / "trace"), "-e", f"trace={calls}"]
    run = [sys.executable, "-m", "tools.tracing", str(folder)]
    done = subprocess.run([*command, *run], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = {name: Counter(counts) for name, counts in json.loads(done.stdout).items()}
    lines = [line for file in folder.glob("trace.*") for line in file.read_text().splitlines()]
    traced = {}
    for number, operation in enumerate(found):
        place = str(_place(folder, number).resolve())
        kinds = [_kind(line) for line in lines if f"{place}/" in line or f"{place}>" in line]
        traced[operation.name] = Counter(kind for kind in kinds if kind)
    return seen, traced


def _place(folder: Path, number: int) -> Path:
    return folder / f"at-{number}-" / "work"


def _kind(line: str) -> str:
    """Return the kind of a call that changed something, from a line of strace; "" for others."""
    match = re.match(r"(\w+)\((.*)\)\s+= (-?\d+|0x[0-9a-f]+)", line)
    if match is None or match[3] == "-1":
        return ""
    name, arguments = _NAMES[match[1]], match[2]
    if name == "open" and match[1] != "creat" and not re.search("O_(WRONLY|RDWR|CREAT|TRUNC)", arguments):
        return ""
    if name == "mmap" and not ("PROT_WRITE" in arguments and "MAP_SHARED" in arguments):
        return ""
    if match[1] == "ioctl" and "FICLONE" not in arguments:
        return ""
    if "AT_REMOVEDIR" in arguments:
        return "rmdir"
    return "exchange" if "RENAME_EXCHANGE" in arguments else name


def _run_all(folder: Path) -> dict[str, Counter[str]]:
    """Run all operations and count the calls that are seen."""
    counts: dict[str, Counter[str]] = {}
    for number, operation in enumerate(operations(folder / "sources")):
        counts[operation.name] = _counted(operation, _place(folder, number))
    return counts


def _counted(operation: Operation, place: Path) -> Counter[str]:
    counts: Counter[str] = Counter()

    def count(call: Call, act: Callable[..., Any]) -> Any:
        counts[call.name] += 1
        return act()

    with Watch(place, count):
        operation.run(place)
    return counts


if __name__ == "__main__":
    os.write(1, json.dumps(_run_all(Path(sys.argv[1]))).encode())
