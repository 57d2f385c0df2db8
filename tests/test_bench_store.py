"""`shardstore bench`: every number is measured, what was not is said, and advice follows from the numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import shardstore
from shardstore.bench.advice import break_down, recommend
from shardstore.bench.ceilings import Ceilings, CodecTrial, try_codec
from shardstore.bench.jobs import IN_PROCESS, JOBS, LOADER, THREAD, Job, Run, State, drop, has_torch, row_counts
from shardstore.bench.report import DECODING, DISK, FAULTS, GATHERING, OVERHEAD, REST, BenchReport, Subjected
from shardstore.bench.running import BenchOptions, bench
from shardstore.bench.timing import run_once, run_steadily
from shardstore.cli import app
from shardstore.memory_report import shard_paths

ROWS = 8192
FAST = ("--seconds", "0.6")


def write(path: Path, codec: str = "raw", ragged: bool = True) -> Path:
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {"x": rng.random((ROWS, 16), np.float32), "y": np.arange(ROWS)}
    if ragged:
        columns["t"] = [np.arange(n % 7) for n in range(ROWS)]
    with shardstore.Writer(path, codec={"x": codec}, shard_bytes="128KiB") as writer:
        writer.append(columns)
    return path


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("stores") / "raw")


@pytest.fixture(scope="module")
def zstd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("stores") / "zstd", "zstd")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


@pytest.fixture(scope="module")
def of_raw(raw: Path) -> dict[str, Any]:
    done = run(raw, "--json", *FAST)
    assert (done.exit_code, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_all_is_measured_or_said_not_to_be(of_raw: dict[str, Any]) -> None:
    runs = {(run["job"], run["state"], run["way"], run["batch_size"]) for run in of_raw["runs"]}
    warm = {(job, "warm", IN_PROCESS, size) for job in JOBS for size in (32, 256, 2048)}
    warm |= {(job, "first", IN_PROCESS, 256) for job in JOBS}
    warm |= {("shuffled", "warm", THREAD, size) for size in (32, 256, 2048)}
    assert warm <= runs
    assert all(run["rows"] > 0 and run["rows_per_second"] > 0 for run in of_raw["runs"])
    loaded = {("shuffled", "warm", LOADER, size) for size in (32, 256, 2048)}
    cold = {(job, "cold", IN_PROCESS, 256) for job in JOBS}
    missing = " ".join(of_raw["unmeasured"])
    assert loaded <= runs or "StoreLoader: torch is not installed" in missing
    assert cold <= runs or "cold" in missing
    assert of_raw["store"]["fast_rows"] <= of_raw["store"]["rows"] == ROWS
    ceilings = of_raw["ceilings"]
    assert set(ceilings["gather"]) == {"32", "256", "2048"}
    assert ceilings["copy"] > 0
    assert ceilings["decode"] is None
    assert ceilings["trial"]["ratio"] > 0.9
    assert (ceilings["disk"] is not None) == (cold <= runs)


def test_the_bottleneck_is_the_largest_part(of_raw: dict[str, Any]) -> None:
    assert {found["job"] for found in of_raw["breakdowns"]} == set(JOBS)
    for found in of_raw["breakdowns"]:
        assert found["bottleneck"] == max(found["parts"], key=found["parts"].get)
        assert all(seconds >= 0 for seconds in found["parts"].values())
    assert of_raw["bottleneck"]["warm"] in (GATHERING, OVERHEAD, REST)
    settings = [found["setting"] for found in of_raw["recommendations"]]
    assert settings[:3] == ["access", "memory_budget", "batch_size"]
    assert "codec" in settings


def test_compressed_columns_are_decoded(zstd: Path) -> None:
    report = bench(zstd, BenchOptions(("x", "t"), (64,), 0.4, cold=False))
    assert report.ceilings.decode is not None
    assert report.subject.codecs == {"x": "zstd", "t": "raw"}
    assert report.subject.decoded_row_nbytes == 64
    assert report.unmeasured[0] == "cold runs: they were not asked for"
    warm = report.breakdown("shuffled", "warm")
    assert warm is not None
    assert DECODING in warm.parts
    assert OVERHEAD not in warm.parts  # two batch sizes tell
    assert report.breakdown("shuffled", "cold") is None
    json.dumps(report.to_dict())


def test_the_table_names_bottleneck_and_settings(raw: Path) -> None:
    done = run(raw, *FAST, "--columns", "x", "--batch-size", "16", "--batch-size", "512", "--no-cold")
    assert (done.exit_code, done.stderr) == (0, "")
    for text in (
        *("8,192 rows of 64 bytes (raw)", "warm, shuffled", "first touch, random takes", "copying memory"),
        *("gathering 512 of these rows in RAM", "bottleneck of a warm shuffled epoch", "memory_budget"),
        "not measured: cold runs: they were not asked for",
    ):
        assert text in done.stdout
    assert "cold, shuffled" not in done.stdout


def test_what_is_cold_was_dropped(raw: Path) -> None:
    with shardstore.open(raw) as store:
        paths = shard_paths(store.files, ("x",))
        if drop(paths) is not None:
            pytest.skip("this file system keeps files in memory, or does not tell")
        dropped = sum(path.stat().st_size for path in paths)
        assert (store.memory().page_cache or 0) <= store.stored_nbytes - dropped
        kept = store["x"][:]
        kept.sum()
        refusal = drop(paths)  # a map keeps its pages
        assert refusal is not None
        assert "stay in the page cache" in refusal
        del kept


def test_jobs_read_every_row(raw: Path) -> None:
    with shardstore.open(raw) as store:
        view = store.rows(slice(0, 1000))
        for job in JOBS:
            assert sum(row_counts(view, job, 64, 1)) >= 1000
        assert sum(row_counts(view, "random takes", 5000, 1)) == 1000


def test_rates() -> None:
    assert run_once(iter([1, 2, 3]), 60).count == 6
    endless = iter(lambda: 5, None)
    found = run_steadily(endless, 0.01)
    assert found.count % 5 == 0
    assert found.per_second > 0


def test_a_codec_is_tried_on_what_there_is() -> None:
    assert try_codec("zstd", {}, 0.01) is None
    trial = try_codec("zstd", {"x": np.zeros(100_000, np.float32)}, 0.01)
    assert trial is not None
    assert trial.ratio > 100


# What follows from given numbers


def report_of(rates: dict[tuple[Job, State, str, int], float], **changes: Any) -> BenchReport:
    subject = Subjected(
        path="s", columns=("x",), codecs={"x": "raw"}, rows=10**6, row_nbytes=1000, decoded_row_nbytes=0,
        chunk_nbytes=0, stored=10**9, mappable=10**9, access="auto", memory_budget=8 << 30,
        available_memory=16 << 30, cpus=2, fast_rows=10**6,
    )  # fmt: skip
    ceilings = Ceilings(10**9, 10**10, {10: 10**6, 100: 10**6, 1000: 10**6}, None, CodecTrial("zstd", 1.1, 10**9))
    subject_changes = {key: value for key, value in changes.items() if hasattr(subject, key)}
    ceiling_changes = {key: value for key, value in changes.items() if key not in subject_changes}
    runs = tuple(Run(*key, 1000, 1000 / rate, rate, 0) for key, rate in rates.items())
    report = BenchReport(replace(subject, **subject_changes), replace(ceilings, **ceiling_changes), runs)
    report = replace(report, breakdowns=tuple(break_down(report)))
    return replace(report, recommendations=tuple(recommend(report)))


def warm(small: float, usual: float, large: float) -> dict[tuple[Job, State, str, int], float]:
    return {("shuffled", "warm", IN_PROCESS, size): rate for size, rate in ((10, small), (100, usual), (1000, large))}


def test_what_holds_back() -> None:
    assert report_of(warm(9e5, 9e5, 9e5)).bottleneck("warm") == GATHERING
    assert report_of(warm(1e5, 5e5, 1e6)).bottleneck("warm") in (OVERHEAD, GATHERING)
    assert report_of(warm(1e4, 1e5, 5e5)).bottleneck("warm") == OVERHEAD
    assert report_of(warm(1e5, 1e5, 1e5)).bottleneck("warm") == REST
    compressed = report_of(warm(1e5, 1e5, 1e5), codecs={"x": "zstd"}, decoded_row_nbytes=1000, decode=1.1e8)
    assert compressed.bottleneck("warm") == DECODING
    touched = warm(9e5, 9e5, 9e5) | {
        ("shuffled", "first", IN_PROCESS, 100): 2e5,
        ("shuffled", "cold", IN_PROCESS, 100): 1.9e5,
    }
    assert report_of(touched).bottleneck("cold") == FAULTS
    slow = touched | {("shuffled", "cold", IN_PROCESS, 100): 1e4}
    report = report_of(slow)
    assert report.bottleneck("cold") == DISK
    found = report.breakdown("shuffled", "cold")
    assert found is not None
    assert found.share(DISK) == pytest.approx(1 - 1e4 / 2e5)


def advice(report: BenchReport) -> dict[str, str]:
    assert all(found.reason and "\n" not in found.reason for found in report.recommendations)
    return {found.setting: found.value for found in report.recommendations}


def test_what_is_recommended() -> None:
    cold: dict[tuple[Job, State, str, int], float] = {
        ("shuffled", "cold", IN_PROCESS, 100): 1e4,
        ("sequential", "cold", IN_PROCESS, 100): 9e5,
    }
    rates = warm(2e5, 8.5e5, 9e5) | cold
    found = advice(report_of(rates))
    assert found["batch_size"] == "100"
    assert found["shuffle"] == "True, all rows"  # it fits into memory, and is cold once only
    assert found["codec"] == "raw"
    large = {"stored": 10**12, "mappable": 10**12}
    assert advice(report_of(rates, **large))["shuffle"] == '"window"'
    assert advice(report_of(rates, **large, trial=CodecTrial("zstd", 3.0, 2e9)))["codec"] == "zstd"
    assert "streamed" in next(f.reason for f in report_of(rates, **large).recommendations if f.setting == "access")
    assert advice(report_of(rates | {("shuffled", "warm", LOADER, 100): 9e5}))["reading"] == "StoreLoader"
    assert advice(report_of(rates | {("shuffled", "warm", LOADER, 100): 1e5}))["reading"].startswith("in-process")
    without_torch = advice(report_of(rates | {("shuffled", "warm", THREAD, 100): 9e5}))
    assert without_torch["reading"] == "store.batches(prefetch=2)"
    slow = warm(1e4, 1e4, 1e4) | {("shuffled", "warm", LOADER, 100): 5e3}
    assert advice(report_of(slow))["reading"] == "StoreLoader"  # 10 ms are worth a thread
    zipped = report_of(rates, codecs={"x": "zstd"}, decoded_row_nbytes=1000, decode=1e8, mappable=0)
    assert advice(zipped)["codec"] == "raw for x"
    assert advice(zipped)["access"] == "auto"


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--columns", "q"), "no column 'q'; the columns are x, y, t"),
        (("--access", "sideways"), "access is 'sideways'"),
        (("--memory-budget", "big"), "not a size in bytes: 'big'"),
        (("--seconds", "-1"), "seconds is -1; expected more than 0"),
    ],
)
def test_mistakes_are_one_line(raw: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run(raw, *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_batch_has_rows(raw: Path) -> None:
    assert run(raw, "--batch-size", "0").exit_code == 2
    with pytest.raises(ValueError, match="batch sizes are \\[0\\]"):
        bench(raw, BenchOptions(batch_sizes=(0,)))
    with pytest.raises(KeyError, match="no column 'q'"):
        bench(raw, BenchOptions(columns=("q",)))


def test_what_is_no_store_or_has_nothing_to_read(tmp_path: Path) -> None:
    done = run(tmp_path / "gone")
    assert done.exit_code == 2
    assert "not a shardstore store" in done.stderr
    with shardstore.Writer(tmp_path / "empty", types={"x": "float32"}) as writer:
        writer.append({"x": np.empty(0, np.float32)})
    done = run(tmp_path / "empty")
    assert done.exit_code == 2
    assert "the store has no rows" in done.stderr
    with shardstore.Writer(tmp_path / "none") as writer:
        writer.append({"e": np.empty((100, 0), np.float32)})
    done = run(tmp_path / "none")
    assert done.exit_code == 2
    assert "rows of e have no bytes" in done.stderr


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with shardstore.open(write(tmp_path / "s", ragged=False)) as store:
        gone = shard_paths(store.files, ("x",))[-1]
    gone.unlink()
    done = run(tmp_path / "s", *FAST)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert "the shard file is missing" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_loader_is_measured_where_there_is_torch(of_raw: dict[str, Any]) -> None:
    assert has_torch() == any(run["way"] == LOADER for run in of_raw["runs"])
