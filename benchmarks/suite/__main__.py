"""The suite's command line.

    python -m benchmarks.suite                     all jobs and peers, then the report (about half an hour)
    python -m benchmarks.suite --jobs medium,zstd  these jobs; what is known of the others is kept
    python -m benchmarks.suite --resume            the jobs that have no results yet
    python -m benchmarks.suite --report            the report anew from the saved results

A job's results are saved when it is through. Peers that are not installed are shown so: the extra `bench` has them all.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks import common
from benchmarks.suite import machine, report, schedule
from benchmarks.suite.jobs import JOBS, Job
from benchmarks.suite.peers import all_peers
from benchmarks.suite.peers.ours import OURS
from benchmarks.suite.results import Results
from benchmarks.suite.schedule import Settings

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "suite.json"
PAGE = ROOT / "docs" / "benchmarks.md"
QUICK = Settings(rounds=1, cold_rounds=1, limit=0.1, timeout=30, ingest_timeout=60)


def quick(job: Job) -> Job:
    """Return a job with so few rows that it only shows whether everything works."""
    rows = max(600, min(job.rows // 1_000, 3_000))
    return replace(job, rows=rows, few_rows=min(job.few_rows, 300), shards=len(str(job.shards)))


def chosen(names: str | None, known: list[str]) -> list[str]:
    """Return those of the known names that some words mean, which commas separate: a name, or a part of names.

    Raises:
        ValueError: if a word means none of them.
    """
    if not names:
        return known
    found: set[str] = set()
    for word in (word.strip().lower() for word in names.split(",")):
        exact = [name for name in known if name.lower() == word]
        meant = exact or [name for name in known if word in name.lower()]
        if not meant:
            raise ValueError(f"there is no {word!r}; there are {', '.join(known)}")
        found.update(meant)
    return [name for name in known if name in found]


def parsed(arguments: list[str]) -> argparse.Namespace:
    """Return the settings that the user gave."""
    defaults = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.suite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", help=f"names of jobs or parts of names, with commas: {', '.join(JOBS)}")
    parser.add_argument("--peers", help="names of peers or parts of names, with commas")
    parser.add_argument("--rounds", type=int, help=f"rounds of warm runs (default: {defaults.rounds})")
    parser.add_argument("--cold-rounds", type=int, help=f"rounds of cold runs (default: {defaults.cold_rounds})")
    parser.add_argument("--quick", action="store_true", help="few rows and short runs, to see whether all works")
    parser.add_argument("--resume", action="store_true", help="leave out the jobs that have results")
    parser.add_argument("--report", action="store_true", help="measure nothing, write the report")
    parser.add_argument("--dir", type=Path, help="folder for the data, which are removed at the end (default: $TMPDIR)")
    parser.add_argument("--json", type=Path, default=RESULTS, help="file of the results (default: %(default)s)")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the tables (default: %(default)s)")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, results: Results) -> None:
    """Measure what the user asked for, and save it job by job."""
    peers = all_peers()
    settings = QUICK if options.quick else Settings()
    given = {"rounds": options.rounds, "cold_rounds": options.cold_rounds}
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    names = chosen(options.peers, list(peers))
    jobs = [quick(JOBS[name]) if options.quick else JOBS[name] for name in chosen(options.jobs, list(JOBS))]
    begin = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - begin:7.1f} s  {text}", flush=True)

    schedule.preload()
    with common.workspace(options.dir) as directory:
        results.machine = machine.describe(directory)
        results.versions = machine.versions(peers.values())
        results.settings = asdict(settings)
        for job in jobs:
            if options.resume and job.name in results.jobs:
                continue
            results.add(schedule.run_job(job, names, peers, OURS, settings, directory, say))
            results.save(options.json)
    say("done")


def main(arguments: list[str]) -> None:
    """Run the suite."""
    options = parsed(arguments)
    results = Results.load(options.json) if options.json.exists() else Results()
    if not options.report:
        measure(options, results)
    for path in report.write_report(results, all_peers(), OURS, options.page):
        print(path.name)


if __name__ == "__main__":
    main(sys.argv[1:])
