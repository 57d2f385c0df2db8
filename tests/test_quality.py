"""Measures of an order: good orders pass, and each kind of bad one is found by the measure that is meant for it."""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores import write_store
from typer.testing import CliRunner

from shardstore import cli
from shardstore.order import FullShuffle, Order, Plan, Sections, Sequential, WindowShuffle, epoch_key, permute, quality
from shardstore.order import measuring as measuring_module
from shardstore.order.ideal import touched_moments
from shardstore.order.orders import Window
from shardstore.selection import Rows

COUNT = 65_536


def failures(order: Order, batch_size: int = 256, epoch: int = 0, labels: Any = None) -> list[str]:
    return [measure.name for measure in quality(Plan(order, batch_size), epoch=epoch, labels=labels).failures]


@pytest.mark.parametrize("count", [1, 2, 10, 999, 1000, 4096, 4097, 10_000, 65_537])
def test_full_shuffles_pass(count: int) -> None:
    for seed in range(4):
        for epoch in range(2):
            assert failures(FullShuffle(count, seed), epoch=epoch) == []


@pytest.mark.parametrize("count", [600_000, 10**9, 10**12])
def test_large_full_shuffles_pass_on_a_bounded_sample(count: int) -> None:
    found = quality(Plan(FullShuffle(count, 3), 256), epoch=5)
    assert found.failures == ()
    assert found.sampled == min(count, 2**20)
    assert len(found.measures) == 17


WINDOWS = [
    WindowShuffle(Sections(10_000, 16), 8, 0),
    WindowShuffle(Sections(10_000, 16), 1, 0),
    WindowShuffle(Sections(10_000, 7, 3), 40, 0, 4),
    WindowShuffle(Sections(30_000, 100, 10), 10**6, 0),
    WindowShuffle(Sections(30_000, 300, 10), 2, 0, 2),
    WindowShuffle(Sections(20_000, 128), 16, 0, 8),
    WindowShuffle(Sections(5_000, 1), 500, 0),
    WindowShuffle(Sections(50, 8), 2, 0),
    WindowShuffle(Sections(0, 8), 2, 0),
]


@pytest.mark.parametrize("order", WINDOWS, ids=str)
def test_windows_pass_by_what_they_promise(order: WindowShuffle) -> None:
    for seed in range(3):
        shuffle = WindowShuffle(order.sections, order.window, seed, order.lanes)
        assert failures(shuffle, epoch=seed, batch_size=(256, 32, 1)[seed]) == []


def test_huge_windowed_tables_pass() -> None:
    assert failures(WindowShuffle(Sections(10**9, 128, 5), 1024, 0, 4)) == []


def test_what_a_window_does_not_promise_is_shown() -> None:
    found = quality(Plan(WindowShuffle(Sections(COUNT, 128), 16, 0), 256))
    half = found["upper half per batch, spread"]
    assert found.passed
    assert half.verdict == "shown"
    # 16 sections in a window: 1 + 255 / 16 times the variance, less what so few of 512 sections leave to chance.
    assert 8 < half.value < 30
    assert "sections of the table" in half.meaning
    assert 15 < found["sections per batch"].value <= 32
    whole = quality(Plan(WindowShuffle(Sections(COUNT, 128), 512, 0), 256))
    assert abs(whole["upper half per batch, spread"].value - 1) < 0.4


@dataclass(frozen=True)
class Bad(ABC):
    """What the bad orders below have in common."""

    count: int = COUNT
    seed: int = 0

    @property
    def lanes(self) -> int:
        return 1

    @abstractmethod
    def rows(self, epoch: int, positions: Rows) -> Rows: ...

    def describe(self) -> dict[str, int | str]:
        return {"shuffle": type(self).__name__, "rows": self.count, "seed": self.seed}

    def good(self, epoch: int, positions: Rows) -> Rows:
        return permute(self.count, epoch_key(self.seed, epoch), positions)


@dataclass(frozen=True)
class Linear(Bad):
    factor: int = 1

    def rows(self, epoch: int, positions: Rows) -> Rows:
        return (positions * self.factor + 977 * epoch + self.seed) % self.count


@dataclass(frozen=True)
class EvenFirst(Bad):
    def rows(self, epoch: int, positions: Rows) -> Rows:
        evens = (self.count + 1) // 2
        key, first = epoch_key(self.seed, epoch), positions < evens
        rows = np.empty_like(positions)
        rows[first] = 2 * permute(evens, key, positions[first])
        rows[~first] = 2 * permute(self.count - evens, key, positions[~first] - evens) + 1
        return rows


@dataclass(frozen=True)
class Rotated(Bad):
    """One permutation for all epochs, begun elsewhere in each."""

    def rows(self, epoch: int, positions: Rows) -> Rows:
        return self.good(0, (positions + 1234 * epoch) % self.count)


@dataclass(frozen=True)
class Shifted(Bad):
    """One permutation for all epochs, and a number added to its rows: by a fifth, they hardly correlate."""

    def rows(self, epoch: int, positions: Rows) -> Rows:
        return (self.good(0, positions) + epoch * self.count * 211 // 1000) % self.count


@dataclass(frozen=True)
class Posing(Bad):
    """Windows of consecutive rows, in random order: a shuffle buffer."""

    window: int = 1024

    def rows(self, epoch: int, positions: Rows) -> Rows:
        number, place = np.divmod(positions, self.window)
        key = epoch_key(self.seed, epoch)
        return permute(self.count // self.window, key, number) * self.window + permute(self.window, key, place)


@dataclass(frozen=True)
class Added(Bad):
    def rows(self, epoch: int, positions: Rows) -> Rows:
        return permute(self.count, epoch_key(self.seed + epoch, 0), positions)


@dataclass(frozen=True)
class Xored(Bad):
    """A Feistel network whose rounds are linear in the bits."""

    def rows(self, epoch: int, positions: Rows) -> Rows:
        half = (self.count.bit_length() - 1) // 2
        mask = (1 << half) - 1
        left, right = positions >> half, positions & mask
        for key in np.frombuffer(epoch_key(self.seed, epoch), "<u4").astype(np.int64)[:6]:
            left, right = right, left ^ ((right << 3 ^ right >> 2 ^ key) & mask)
        return left << half | right


@dataclass(frozen=True)
class Losing(Bad):
    """The last row never comes, and the first one twice."""

    def rows(self, epoch: int, positions: Rows) -> Rows:
        return self.good(epoch, positions) % (self.count - 1)


@pytest.mark.parametrize("count", [10_000, COUNT, 10**10])
@pytest.mark.parametrize(
    ("order", "measure"),
    [
        (Sequential, "position and row, correlation"),
        (EvenFirst, "odd rows per batch, spread"),
        (Added, "next epoch and next seed, correlation"),
        (Shifted, "next epoch, differences"),
    ],
)
def test_bad_orders_are_found_at_any_size(order: type[Bad], measure: str, count: int) -> None:
    assert measure in failures(order(count))


@pytest.mark.parametrize(
    ("order", "measure"),
    [
        *((Linear(factor=a), "neighbours' distance, entropy") for a in (1, 3, 257, 40_503, 65_535)),
        (Linear(10**12, factor=618_033), "neighbours' distance, entropy"),
        (Linear(factor=257), "upper half per batch, spread"),
        (Rotated(), "next epoch, same successor"),
        (Rotated(10**10), "next epoch, same successor"),
        (Posing(), "upper half per batch, spread"),
        (Posing(), "neighbours' distance, mean"),
        (Posing(2**34, window=2**14), "upper half per batch, spread"),
        (Xored(), "avalanche, worst bit"),
        (Xored(2**40), "avalanche, worst bit"),
        (Losing(), "distinct rows"),
        (Losing(100), "distinct rows"),
        (Losing(2), "distinct rows"),
        (Posing(4_000_000, window=1000), "of 1,000 stretches, touched by a tenth"),
    ],
    ids=str,
)
def test_bad_orders_are_found_by_the_measure_that_is_meant_for_them(order: Order, measure: str) -> None:
    assert measure in failures(order)


def test_an_order_that_gives_rows_outside_the_table_is_incomplete() -> None:
    @dataclass(frozen=True)
    class Outside(Bad):
        def rows(self, epoch: int, positions: Rows) -> Rows:
            return self.good(epoch, positions) + 1

    assert "distinct rows" in failures(Outside(2000), labels=np.arange(2000))


class StuckWindows(WindowShuffle):
    """The same in every epoch."""

    def windows(self, epoch: int, positions: Rows) -> list[tuple[Window, slice | Rows, Rows]]:
        return super().windows(0, positions)


def test_bad_windows_are_found() -> None:
    found = failures(StuckWindows(Sections(20_000, 100), 10, 0))
    assert "next epoch, correlation" in found
    assert "next epoch, same successor" in found
    assert "next epoch in a window, differences" in found


@pytest.mark.parametrize("factor", [1, 3])
def test_windows_whose_places_are_not_shuffled_are_found(monkeypatch: pytest.MonkeyPatch, factor: int) -> None:
    def permuted(window: Window, flat: Rows) -> Rows:
        return (flat - window.start) * factor % len(window)

    monkeypatch.setattr(Window, "permuted", permuted)
    found = failures(WindowShuffle(Sections(20_000, 100), 10, 0))
    assert "distinct rows" not in found
    assert "neighbours' distance in a window, entropy" in found
    assert "upper half per batch in a window, spread" in found


def test_labels() -> None:
    order = FullShuffle(20_000, 0)
    rng = np.random.default_rng(0)
    for labels in (
        np.arange(20_000) // 2000,  # sorted
        np.arange(20_000),  # all different
        rng.random(20_000) < 0.001,  # rare
        rng.integers(0, 5, 20_000).astype("S1"),
        np.where(np.arange(20_000) < 7, np.nan, 1.5),
    ):
        assert failures(order, labels=labels) == []
    names = {measure.name for measure in quality(Plan(order, 64), labels=np.arange(20_000) // 2000).measures}
    assert "labels per batch, spread" in names
    # One label only says nothing.
    one = {measure.name for measure in quality(Plan(order, 64), labels=np.zeros(20_000)).measures}
    assert names - one == {"labels per batch, spread"}

    assert "labels per batch, spread" in failures(Posing(), labels=np.arange(COUNT) // 5000)
    assert "labels per batch, spread" in failures(Posing(), labels=np.arange(COUNT))
    window = WindowShuffle(Sections(20_000, 50), 20, 0)
    found = quality(Plan(window, 64), labels=np.arange(20_000) // 2000)
    assert found["labels per batch, spread"].verdict == "shown"
    assert found["labels per batch in a window, spread"].verdict == "ok"


def test_labels_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(FullShuffle(100, 0), 8)
    with pytest.raises(ValueError, match=r"labels have shape \(99,\); expected one per row, \(100,\)"):
        quality(plan, labels=np.zeros(99))
    monkeypatch.setattr(measuring_module, "_LABEL_ROWS", 50)
    with pytest.raises(ValueError, match="labels of 100 rows are too many; at most 50"):
        quality(plan, labels=np.zeros(100))


@pytest.mark.parametrize("batch_size", [1, 15, 100, 200, 1000, 10**6])
def test_batches_of_any_size(batch_size: int) -> None:
    found = quality(Plan(FullShuffle(1601, 0), batch_size))
    assert found.passed
    assert any("per batch" in measure.name for measure in found.measures) == (batch_size <= 200)
    large = quality(Plan(FullShuffle(10**8, 0), batch_size * 1000))
    assert large.passed
    assert any("per batch" in measure.name for measure in large.measures) == (batch_size <= 100)


def test_a_report_as_text_and_as_json() -> None:
    found = quality(Plan(Sequential(2000), 100), epoch=3)
    assert not found.passed
    document = json.loads(json.dumps(found.as_dict()))
    assert document["passed"] is False
    assert document["epoch"] == 3
    assert document["order"] == {"shuffle": "none", "rows": 2000}
    assert [m["name"] for m in document["measures"]] == [m.name for m in found.measures]
    assert {m["name"] for m in document["measures"] if not m["passed"]} == {m.name for m in found.failures}
    lines = str(found).splitlines()
    assert lines[0].split() == ["measure", "value", "ideal", "tolerance"]
    assert len(lines) == 1 + len(found.measures)
    assert str(found).count("FAILS") == len(found.failures)
    assert str(quality(Plan(FullShuffle(1, 0), 1))).splitlines()[1].split() == ["distinct", "rows", *"110", "ok"]
    with pytest.raises(KeyError, match="no measure 'gone'; there are distinct rows"):
        found["gone"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    labels = np.arange(20_000) // 2000
    columns = {"x": np.zeros((20_000, 3), np.int16), "y": labels}
    return str(write_store(tmp_path_factory.mktemp("q") / "s", columns, "zstd", 1 << 20, 1 << 10))


def report(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["shuffle-report", *arguments], env={"COLUMNS": "200"})


def test_the_command_prints_both_orders(store: str) -> None:
    done = report(store, "--batch-size", "64", "--label", "y", "--window-bytes", "64KiB", "--seed", "1")
    assert (done.exit_code, done.stderr) == (0, "")
    lines = {line.strip()[:37].strip(): line.split() for line in done.stdout.splitlines()}
    assert lines["labels per batch, spread"][-3::2] == ["ok", "shown"]
    assert lines["upper half per batch in a window, spr"][-1] == "ok"
    assert "window, labels per batch, spread: a batch is mixed as if drawn from" in done.stdout
    assert "20,000 positions of an epoch in batches of 64" in done.stdout


def test_the_command_prints_json(store: str) -> None:
    done = report(store, "--json", "--window-bytes", "64KiB")
    assert done.exit_code == 0
    document = json.loads(done.stdout)
    assert list(document) == ["full", "window"]
    assert all(found["passed"] for found in document.values())
    assert document["window"]["order"]["shuffle"] == "window"


def test_the_command_fails_if_an_order_does(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FullShuffle, "rows", lambda order, epoch, positions: positions)
    done = report(store)
    assert done.exit_code == 1
    assert "FAILS" in done.stdout
    assert "not as promised: full: position and row, correlation is 1\n" in done.stderr
    assert "window:" not in done.stderr


def test_the_command_draws(store: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    done = report(store, "--png", str(tmp_path / "a.figure"))
    assert done.exit_code == 0
    assert (tmp_path / "a.figure").read_bytes().startswith(b"\x89PNG")
    for count in (1, 20):
        small = str(write_store(tmp_path / str(count), {"y": np.arange(count)}))
        assert report(small, "--png", str(tmp_path / "small.png")).exit_code == 0
    gone = report(store, "--png", str(tmp_path / "gone/a.png"))
    assert gone.exit_code == 2
    assert gone.stderr.startswith("error: ")
    assert gone.stderr.count("\n") == 1


@pytest.mark.parametrize("sections", [1, 2, 3, 10])
@pytest.mark.parametrize("batch_size", [16, 64, 200])
def test_few_sections_are_measured(sections: int, batch_size: int) -> None:
    for count in (8192 * sections, 8192 * sections - 3192):
        plan = Plan(WindowShuffle(Sections(count, 8192), 100, 0), batch_size)
        assert quality(plan).passed


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 400))
def test_how_many_stretches_are_touched(drawn: int, stretches: int, rows: int) -> None:
    count = rows * stretches
    mean, sigma = touched_moments(count, min(drawn, count), stretches)
    assert 0 < mean <= stretches + 1e-9
    assert 0 <= sigma < stretches


def test_small_stores_are_reported(tmp_path: Path) -> None:
    for count in (1, 20):
        path = str(write_store(tmp_path / str(count), {"y": np.arange(count)}))
        assert report(path, "--label", "y").exit_code == 0
    done = report(str(write_store(tmp_path / "0", {"y": np.arange(0)})))
    assert done.exit_code == 2
    assert "the store has no rows" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--label", "z"), "no column 'z'; the columns are x, y"),
        (("--label", "x"), "column 'x' has rows of shape (3,); a label is a scalar"),
        (("--window-bytes", "big"), "not a size in bytes: 'big'"),
    ],
)
def test_mistakes_are_one_line(store: str, arguments: tuple[str, ...], message: str) -> None:
    done = report(store, *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_figure_without_matplotlib_is_refused(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "shardstore.plotting", raising=False)
    for name in ("matplotlib", "matplotlib.axes", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    done = report(store, "--png", str(tmp_path / "a.png"))
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "error: --png needs matplotlib: python -m pip install 'shardstore[plot]'\n"
