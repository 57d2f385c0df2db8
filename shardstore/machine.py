"""What the machine, or the container, gives this process."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

if sys.platform != "win32":
    import resource

# Where the system does not tell.
_ASSUMED_MEMORY = 4 << 30
_CGROUPS = Path("/sys/fs/cgroup")


def cpu_count() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def max_map_count() -> int:
    """Return how many mappings the system allows a process."""
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return 65_530


@cache
def max_open_files() -> int:
    """Return how many files this process may have open."""
    if sys.platform == "win32":
        return 512  # what the C library allows
    limit: int = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit if limit != resource.RLIM_INFINITY else 1 << 20


def available_memory() -> int:
    """Return how many bytes this process could use now without others having to give up theirs."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        return _physical_memory()
    return min([available, *_left_in_cgroups()])


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return _ASSUMED_MEMORY


def _left_in_cgroups() -> list[int]:
    """Return what the limits of this process's control groups (version 2) leave; cached files count as free."""
    left = []
    try:
        own = Path("/proc/self/cgroup").read_text().split("::", 1)[1].splitlines()[0].strip("/")
        group = _CGROUPS / own
        while group.is_relative_to(_CGROUPS):
            limit = group / "memory.max"
            if limit.exists() and (text := limit.read_text().strip()) != "max":
                used = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                left.append(max(0, int(text) - int(used["anon"])))
            group = group.parent
    except (OSError, ValueError, KeyError, IndexError):
        return left
    return left
