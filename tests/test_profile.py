"""`shardstore profile`: an epoch is watched, its rows are all counted, and what it shows is what the store says."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import shardstore
from shardstore.cli import app
from shardstore.profiling import KINDS, Profile, Sample, profile

ROWS = 20_000


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores") / "s"
    rng = np.random.default_rng(0)
    with shardstore.Writer(folder, codec={"z": "zstd"}, shard_bytes="1MiB") as writer:
        writer.append(
            {
                "x": rng.random((ROWS, 32), np.float32),
                "z": rng.integers(0, 4, (ROWS, 16), np.uint8),
                "t": [np.arange(n % 7) for n in range(ROWS)],
            }
        )
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["profile", *map(str, arguments)])


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_is_counted_and_sampled(path: Path, shuffle: bool) -> None:
    threads = threading.active_count()
    with shardstore.open(path) as store:
        found = profile(store, 64, shuffle=shuffle)
        after = store.memory()
    assert threading.active_count() <= threads + 2  # the pool that decodes stays
    assert found.rows == found.epoch_rows == ROWS
    assert found.samples[0].rows == 0
    assert found.samples[0].mapped == 0
    assert found.samples[-1].mapped == after.mapped == after.mappable
    for name in ("seconds", "rows"):
        values = [getattr(sample, name) for sample in found.samples]
        assert values == sorted(values)
    assert found.rows_per_second == pytest.approx(ROWS / found.seconds)
    assert found.peak("mapped") == after.mapped
    if sys.platform == "linux":
        assert (found.peak("resident") or 0) >= (found.samples[-1].resident or 0)
        assert found.growth("anonymous") is not None


def test_the_time_is_limited(path: Path) -> None:
    with shardstore.open(path) as store:
        found = profile(store, 1, shuffle=True, seconds=0.05)
    assert 0 < found.rows < ROWS


def test_moments_and_peaks() -> None:
    samples = tuple(Sample(k / 10, 100 * k, k, 2 * k, None, 5 - abs(k - 5), 7) for k in range(11))
    found = Profile("p", 1, {"shuffle": "full"}, ("x",), "auto", 100, 4, 50, 1000, samples)
    first, quarter, half, most, last = (sample.rows for sample in found.moments())
    assert (first, half, last) == (0, 500, 1000)
    assert quarter in (200, 300)
    assert most in (700, 800)
    assert [found.peak(kind) for kind in KINDS] == [10, 20, None, 5, 7]
    assert [found.growth(kind) for kind in KINDS] == [10, 20, None, 5, 0]
    assert json.loads(json.dumps(found.to_dict()))["samples"]["rows"] == [100 * k for k in range(11)]


def test_the_table_and_the_figure(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = run(
        path, "--batch-size", "128", "--png", tmp_path / "p.png", "--columns", "x, z", "--memory-budget", "256MiB"
    )
    assert (done.exit_code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert f"{ROWS:,} rows in batches of 128, shuffle window" in lines[0]
    assert lines[1].split() == ["memory", "start", "25", "%", "50", "%", "75", "%", "end", "peak"]
    assert "of a budget of 256.0 MiB (access=auto)" in lines[-1]
    image = (tmp_path / "p.png").read_bytes()
    assert image.startswith(b"\x89PNG")
    assert len(image) > 10_000


def test_json(path: Path) -> None:
    done = run(path, "--json", "--no-shuffle", "--access", "streaming", "--columns", "x", "--memory-budget", "64MiB")
    body = json.loads(done.stdout)
    assert body["rows"] == ROWS
    assert body["columns"] == ["x"]
    assert body["order"]["shuffle"] == "none"
    assert (body["access"], body["memory_budget"]) == ("streaming", 64 << 20)
    assert {len(values) for values in body["samples"].values()} == {len(body["samples"]["rows"])}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--columns", "q"), "no column 'q'; the columns are x, z, t"),
        (("--columns", "x,x"), "--columns 'x,x': a column is named twice"),
        (("--columns", ""), "no column ''"),
        (("--access", "sideways"), "access is 'sideways'; expected one of 'auto', 'resident', 'streaming'"),
        (("--memory-budget", "big"), "not a size in bytes: 'big'"),
        (("--memory-budget", "4KiB"), "memory_budget"),
        (("--seconds", "0"), "seconds is 0; expected more than 0"),
        (("--seconds", "nan"), "seconds is nan; expected more than 0"),
        (("--png", "gone/a.png"), "cannot write gone/a.png: there is no folder"),
    ],
)
def test_mistakes_are_one_line(path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run(path, *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_batch_has_rows(path: Path) -> None:
    assert run(path, "--batch-size", "0").exit_code == 2


def test_what_is_no_store_or_has_no_rows(tmp_path: Path) -> None:
    done = run(tmp_path / "gone")
    assert done.exit_code == 2
    assert "not a shardstore store" in done.stderr
    with shardstore.Writer(tmp_path / "s", types={"x": "float32"}) as writer:
        writer.append({"x": np.empty(0, np.float32)})
    done = run(tmp_path / "s")
    assert done.exit_code == 2
    assert "the store has no rows, so there is no epoch to profile" in done.stderr


def test_rows_without_bytes_are_rows(tmp_path: Path) -> None:
    with shardstore.Writer(tmp_path / "s") as writer:
        writer.append({"e": np.empty((100, 0), np.float32)})
    done = run(tmp_path / "s", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["rows"] == 100
