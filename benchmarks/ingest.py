"""Ingest of 2 GB of .npy dumps, with checksums, beside `cp` of the same files and `sync`; and its memory.

Eight float32 files of very different lengths, in the page cache. Both ways end with all of it on the disk: every run
begins and ends with a `sync`, and the last one counts. An ingest runs in a fresh process, without its imports, once
into one column and once with a split into `x` and an int64 `y`. Memory is the peak of that process's anonymous
memory, for a quarter of the input and for all of it.

    python benchmarks/ingest.py [--json PATH]
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import common

import shardstore

WIDTH = 129
SPLIT = "x=:-1,y=-1@int64"


def sync() -> None:
    """Bring everything that was written to the disk."""
    subprocess.run(["sync"], check=True)


def copy(sources: list[Path], directory: Path) -> float:
    """Copy the files with cp; return the seconds until they are on the disk."""
    target = directory / "copies"
    target.mkdir()

    def work() -> None:
        subprocess.run(["cp", *map(str, sources), str(target)], check=True)
        sync()

    sync()
    seconds = common.timed(work)()
    shutil.rmtree(target)
    return seconds


def ingest_here(sources: list[Path], target: Path, split: str | None) -> float:
    """Ingest the files; return the seconds until they are on the disk."""

    def work() -> None:
        shardstore.ingest(sources, target, split=split, progress=False)
        sync()

    sync()
    return common.timed(work)()


def ingest(sources: list[Path], directory: Path, split: str | None, runs: list[common.ChildRun]) -> float:
    """Ingest the files in a fresh process, whose memory is added to `runs`; return the seconds."""
    target = directory / "store"
    run = common.run_in_child(ingest_here, sources, target, split)
    shutil.rmtree(target)
    runs.append(run)
    return float(run.result)


def memory_figures(name: str, runs: list[common.ChildRun]) -> list[common.Figure]:
    """Return the peak anonymous memory of some runs: all of it, and the part beyond the imports."""
    peaks = [run.peak.anonymous / common.MB for run in runs]
    beyond = [(run.peak.anonymous - run.before.anonymous) / common.MB for run in runs]
    return [
        common.Figure(f"anonymous memory, input: {name}", peaks, "MB", 250, at_least=False),
        common.Figure(f"  beyond the imports, input: {name}", beyond, "MB"),
    ]


def main() -> None:
    parser = common.parser(__doc__, repeats=7)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    options = parser.parse_args()
    rows = int(options.gigabytes * 1e9) // (4 * WIDTH)
    runs: dict[str, list[common.ChildRun]] = {}
    with common.workspace(options.dir) as directory:
        sources = common.write_dumps(directory / "dumps", rows, WIDTH, files=8)
        quarter = common.write_dumps(directory / "quarter", rows // 4, WIDTH, files=8)
        nbytes = sum(path.stat().st_size for path in sources)

        def way(name: str, paths: list[Path], split: str | None) -> common.Way:
            runs[name] = []
            return lambda: ingest(paths, directory, split, runs[name])

        ways = {
            "cp": lambda: copy(sources, directory),
            "ingest": way("all", sources, None),
            "ingest, split": way("all, split", sources, SPLIT),
        }
        seconds = common.alternate(ways, options.repeats)
        smaller = {"plain": way("a quarter", quarter, None), "split": way("a quarter, split", quarter, SPLIT)}
        common.alternate(smaller, 3, warm_up=False)
    figures = [common.Figure(name, [nbytes / s / common.MB for s in runs], "MB/s") for name, runs in seconds.items()]
    figures += [
        common.Figure("ingest / cp", common.speed_ratios(seconds, "ingest", "cp"), "×", 0.8),
        common.Figure("ingest, split / cp", common.speed_ratios(seconds, "ingest, split", "cp"), "×"),
    ]
    for name, children in runs.items():
        figures += memory_figures(name, children)
    common.report(f"Ingest of {nbytes / 1e9:.2f} GB in {len(sources)} files", figures, options.json, seconds=seconds)


if __name__ == "__main__":
    main()
