"""What the figures were measured on: the machine, without its name, and the versions of all packages."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from benchmarks.suite.peer import Peer


def describe(directory: Path) -> dict[str, str | int | float]:
    """Return a few words about this machine, and about the disk that a directory is on."""
    return {
        "processor": _line("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "disk": _disk(directory),
        "kernel": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": platform.python_version(),
    }


def versions(peers: Iterable[type[Peer]]) -> dict[str, str]:
    """Return the versions of torch and of the packages that the peers are made of, if they are installed."""
    names = {"torch", *(name for peer in peers for name in peer.distributions)}
    return {name: _version(name) for name in sorted(names, key=str.lower) if _version(name)}


def missing(peer: type[Peer]) -> list[str]:
    """Return the packages that a peer is made of and that are not installed."""
    return [name for name in peer.distributions if not _version(name)]


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _line(path: str, key: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _disk(directory: Path) -> str:
    """Return the file system's type and the kind of disk below it, as far as Linux tells."""
    device = os.stat(directory).st_dev
    try:
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    except OSError:
        return "unknown"
    number = f"{os.major(device)}:{os.minor(device)}"
    system = next((words[words.index("-") + 1] for words in mounts if words[2] == number), "unknown")
    block = Path(f"/sys/dev/block/{number}")
    if not block.exists():
        return system
    name = block.resolve().name
    if name.startswith(("vd", "xvd")):
        return f"{system} on a virtual disk"
    rotates = [path / "queue" / "rotational" for path in (block.resolve(), block.resolve().parent)]
    kind = next((path.read_text().strip() for path in rotates if path.exists()), "")
    return f"{system} on a {'rotating disk' if kind == '1' else 'solid state disk'}"
