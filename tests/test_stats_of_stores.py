"""Statistics of stores: what is kept in the manifest is what NumPy computes, and goes when its column does."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import shardstore
from shardstore.cli import app
from shardstore.statistics.describing import compute_statistics

ROWS = 1000
RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(0, 9, ROWS)
X = np.where(RNG.random((ROWS, 3)) < 0.1, np.nan, RNG.normal(5, 2, (ROWS, 3))).astype(np.float32)
COLUMNS: dict[str, Any] = {
    "x": X,
    "n": RNG.integers(-5, 5, ROWS),
    "r": shardstore.Ragged.from_lengths(RNG.random(LENGTHS.sum()), LENGTHS),
    "p": shardstore.Ragged.from_lengths(RNG.random((LENGTHS.sum(), 2)), LENGTHS),
    "t": ["é" * int(n) for n in LENGTHS],
    "c": [("cat", "dog", "cow")[int(n) % 3] for n in LENGTHS],
    "w": np.arange(ROWS).astype("datetime64[s]"),
}


@pytest.fixture(params=["raw", "zstd"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[shardstore.Store]:
    options: Any = {"types": {"c": "categorical"}, "shard_bytes": 2048, "chunk_bytes": 256, "codec": request.param}
    with shardstore.Writer(tmp_path / "s", **options) as writer:
        writer.append(COLUMNS)
    with shardstore.open(tmp_path / "s") as opened:
        yield opened


def test_statistics_are_those_of_numpy_and_are_kept(store: shardstore.Store) -> None:
    found = store.stats
    assert list(found) == list(COLUMNS)
    assert found["x"] == compute_statistics(lambda: iter([X]), np.float32, (3,))
    assert (found["x"].nans, found["x"].values) == (np.isnan(X).sum(), X.size)
    np.testing.assert_allclose(found["x"].feature_mean, np.nanmean(X.astype(float), 0), 1e-12)
    assert found["n"].minimum == COLUMNS["n"].min()
    for name in ("r", "p"):
        assert found[name].lengths is not None
        assert found[name].lengths.maximum == LENGTHS.max()
        assert found[name].elements == compute_statistics(
            lambda name=name: iter([COLUMNS[name].values]), float, COLUMNS[name].item_shape
        )
    assert found["t"].lengths is not None
    assert found["t"].lengths.maximum == 2 * LENGTHS.max()
    counts = dict(zip(found["c"].categories or (), found["c"].category_counts, strict=True))
    assert counts == {name: COLUMNS["c"].count(name) for name in ("cat", "dog", "cow")}
    assert store.generation == 2
    with shardstore.open(store.path) as again:
        assert again.kept_stats == found
        assert again.stats == found
        assert again.generation == 2
        assert again.verify(progress=False).ok


def test_statistics_stay_with_their_column(store: shardstore.Store) -> None:
    before = store.stats
    store.rename_column("n", "m")
    assert store.kept_stats["m"] == before["n"]
    store.drop_column("x")
    store.add_column("x", X[::-1] * 2)
    assert "x" not in store.kept_stats
    np.testing.assert_allclose(store.stats["x"].mean, 2 * np.nanmean(X.astype(float)), 1e-12)
    assert store.stale_columns() == ()


def test_statistics_leave_columns_that_were_made_of_theirs_fresh(store: shardstore.Store) -> None:
    store.add_column("twice", lambda batch: batch["n"] * 2, columns="n")
    store.compute_stats(bins=4)
    assert len(store.stats["n"].histogram.counts) <= 4  # type: ignore[union-attr]
    assert store.stale_columns() == ()


def test_those_of_a_view_are_of_its_rows_and_not_kept(store: shardstore.Store) -> None:
    view = store.rows([5, 3, 3]).select("x", "r", "c")
    found = view.stats
    assert found["x"] == compute_statistics(lambda: iter([X[[5, 3, 3]]]), np.float32, (3,))
    assert found["r"].values == LENGTHS[[5, 3, 3]].sum()
    assert store.kept_stats == {}
    assert store.rows([]).stats["x"].mean is None


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_that_cannot_be_written_to_has_statistics_all_the_same(store: shardstore.Store) -> None:
    store.path.chmod(0o500)
    try:
        assert store.stats == store.stats
        assert store.generation == 1
    finally:
        store.path.chmod(0o700)


def test_a_store_that_is_being_changed_has_statistics_all_the_same(
    store: shardstore.Store, caplog: pytest.LogCaptureFixture
) -> None:
    from shardstore.changes.commits import changing

    with changing(store.path, store.manifest.store_id), caplog.at_level(logging.INFO, "shardstore"):
        found = store.stats
        assert store.stats == found
    assert store.generation == 1
    assert len([record for record in caplog.records if "not kept" in record.message]) == 1


def test_statistics_that_are_not_kept_go_with_their_column(store: shardstore.Store) -> None:
    from shardstore.changes.commits import changing

    with changing(store.path, store.manifest.store_id):
        before = store.stats["n"]
    store.add_column("n", COLUMNS["n"] + 100, replace=True)
    assert store.stats["n"].minimum == before.minimum + 100


def test_normalize_takes_them(store: shardstore.Store) -> None:
    normalize = shardstore.Normalize(store.stats, ["x"], nan=0.0)
    batches = list(store.batches(100, columns=("x", "n"), transform=normalize))
    x = np.concatenate([batch["x"] for batch in batches])
    assert x.dtype == np.float32
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-6)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_on_the_command_line(store: shardstore.Store, tmp_path: Path) -> None:
    done = run("stats", str(store.path), "--png", str(tmp_path / "a.png"))
    assert done.exit_code == 0, done.output
    assert "1,000 rows" in done.stdout
    assert all(name in done.stdout for name in COLUMNS)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads(run("stats", str(store.path), "--json", "--column", "x").stdout)
    assert list(report) == ["x"]
    assert report["x"]["nans"] == np.isnan(X).sum()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--column", "y"), "no column 'y'; the columns are x, n"),
        (("--png", "nowhere/a.png"), "cannot write nowhere/a.png"),
    ],
)
def test_mistakes_are_one_line(store: shardstore.Store, arguments: tuple[str, ...], message: str) -> None:
    done = run("stats", str(store.path), *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
