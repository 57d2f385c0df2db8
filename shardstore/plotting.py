"""Orders, statistics and profiles as figures; needs matplotlib, which nothing else does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray

from shardstore.order import Plan
from shardstore.order.measuring import Sample
from shardstore.profiling import Profile
from shardstore.reports import category_shares, described, number_texts, short_number
from shardstore.selection import Rows
from shardstore.statistics.summary import BYTES, CATEGORICAL, TIME, ColumnStatistics

_POINTS = 6000
_BINS = 32
_COLORS = ("#d1652a", "#3d6e9e")
_IDEAL = "#2b2b2b"
_MOST_PANELS = 60
_MOST_CATEGORIES = 20
_LONGEST_NAME = 28
# Beyond these, a range is not safe to compute with.
_NARROWEST, _WIDEST = 1e-300, 1e300


def draw_orders(plans: Mapping[str, Plan], path: Path, *, epoch: int = 0) -> None:
    """Draw one column of panels per plan to a PNG file.

    The panels are: position against row; distances of neighbouring rows, beside the triangle that an ideal shuffle
    gives; rows of the table's upper half per batch, beside the binomial distribution.

    Args:
        plans: by name; at least one.
        path: the file to write; its directory must exist.
        epoch: which epoch of each.
    """
    figure = Figure(figsize=(5.6 * len(plans), 11), layout="constrained")
    panels = figure.subplots(3, len(plans), squeeze=False, sharex="row", sharey="row")
    for (name, plan), column, color in zip(plans.items(), panels.T, _COLORS * len(plans), strict=False):
        sample = Sample.of(plan)
        rows = plan.order.rows(epoch, sample.positions.reshape(-1))
        _draw_places(column[0], sample, rows, plan.order.count, color)
        _draw_distances(column[1], sample, rows, plan.order.count, color)
        _draw_halves(column[2], sample, rows, plan.order.count, color)
        column[0].set_title(f"{name}\n", fontsize=14, fontweight="bold")
    for axes, label in zip(panels[:, 0], ("row", "density", "share of batches"), strict=True):
        axes.set_ylabel(label)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelleft=True)
    first = next(iter(plans.values()))
    figure.suptitle(f"{first.order.count:,} rows, epoch {epoch}, batches of {first.batch_size:,}", fontsize=11)
    figure.savefig(path, format="png", dpi=110)


def _titled(axes: Axes, title: str, label: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(label)


def _draw_places(axes: Axes, sample: Sample, rows: Rows, count: int, color: str) -> None:
    positions = sample.positions.reshape(-1)
    step = max(1, len(rows) // _POINTS)
    axes.plot(positions[::step], rows[::step], ".", color=color, markersize=3, alpha=0.7, markeredgewidth=0)
    axes.set(xlim=(0, max(count, 1)), ylim=(0, max(count, 1)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4))
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    _titled(axes, "Which row comes when", "position in the epoch")


def _draw_distances(axes: Axes, sample: Sample, rows: Rows, count: int, color: str) -> None:
    distances = np.abs(np.diff(rows.reshape(sample.positions.shape), axis=1)).reshape(-1)
    if len(distances):
        axes.hist(distances / count, _BINS, range=(0, 1), density=True, color=color, alpha=0.75)
    axes.plot([0, 1], [2, 0], color=_IDEAL, linewidth=1.4, label="ideal shuffle")
    axes.set_xlim(0, 1)
    axes.legend(frameon=False)
    _titled(axes, "How far neighbours are apart", "|row − next row|, as a share of the table")


def _draw_halves(axes: Axes, sample: Sample, rows: Rows, count: int, color: str) -> None:
    upper = sample.in_batches(rows >= count // 2).sum(1)
    if len(upper):
        values, found = np.unique(upper, return_counts=True)
        axes.bar(values, found / len(upper), 1.0, color=color, alpha=0.75)
    batch = sample.batch
    spread = math.ceil(5 * math.sqrt(batch) / 2)
    numbers = np.arange(max(0, batch // 2 - spread), min(batch, batch // 2 + spread) + 1)
    logs = [
        math.lgamma(batch + 1) - math.lgamma(k + 1) - math.lgamma(batch - k + 1) - batch * math.log(2)
        for k in numbers.tolist()
    ]
    axes.plot(numbers, np.exp(logs), color=_IDEAL, linewidth=1.4, label="ideal shuffle")
    axes.legend(frameon=False)
    _titled(axes, "How evenly batches draw from both halves", f"rows of the upper half in a batch of {batch:,}")


def draw_statistics(statistics: Mapping[str, ColumnStatistics], path: Path) -> None:
    """Draw a small histogram of each column to a PNG file: bars of the most frequent categories for categorical ones.

    Ragged columns have two: of the lengths of their rows and of what these hold. Beyond 60 the rest is left out, which
    the title says.

    Args:
        statistics: by column.
        path: the file to write; its directory must exist.
    """
    every = list(described(statistics))
    shown = every[:_MOST_PANELS]
    across = min(6, max(1, math.ceil(math.sqrt(len(shown)))))
    down = max(1, math.ceil(len(shown) / across))
    figure = Figure(figsize=(max(4.6, 3.1 * across), 2.5 * down + 0.5), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False)
    for (name, found), axes in zip(shown, panels.flat, strict=False):
        _draw_column(axes, name, found)
    for axes in panels.flat[len(shown) :]:
        axes.set_axis_off()
    rows = max((found.count for found in statistics.values()), default=0)
    left_out = f" ({len(shown)} of {len(every)} histograms)" if len(shown) < len(every) else ""
    figure.suptitle(f"{rows:,} rows, columns: {len(statistics):,}{left_out}", fontsize=11)
    figure.savefig(path, format="png", dpi=110)


def _draw_column(axes: Axes, name: str, found: ColumnStatistics) -> None:
    axes.set_title(_shortened(name), fontsize=10, fontweight="bold", loc="left", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7.5)
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(_brief))
    if found.kind == CATEGORICAL:
        _draw_categories(axes, found)
    elif found.histogram is not None:
        _draw_histogram(axes, found)
    else:
        axes.set(xticks=[], yticks=[])
        text = "bytes" if found.kind == BYTES else "no finite values" if found.values else "no values"
        axes.text(0.5, 0.5, text, ha="center", va="center", color="0.5", transform=axes.transAxes)
    axes.set_xlabel(_counted(found), fontsize=7.5, color="0.35", parse_math=False)


def _draw_histogram(axes: Axes, found: ColumnStatistics) -> None:
    assert found.histogram is not None
    edges, counts = found.histogram.edges, found.histogram.counts
    # The axis counts bins, and labels name their edges: a range may be too narrow or too wide for axes.
    axes.bar(np.arange(len(counts)), counts, width=1, align="edge", color=_COLORS[1], edgecolor="white", linewidth=0.3)
    axes.set_xlim(0, len(counts))
    if isinstance(found.minimum, int) and found.kind != TIME and edges[-1] - edges[0] == len(counts):
        _name_integers(axes, found.minimum, len(counts))
    elif found.kind == TIME or not (values := _round_values(edges)):
        low, _, _, high = number_texts(found)
        axes.set_xticks([0, len(counts)], [low, high], fontsize=6.5)
        first, last = axes.get_xticklabels()
        first.set_horizontalalignment("left")
        last.set_horizontalalignment("right")
    else:
        start, width = float(edges[0]), float(edges[-1] - edges[0]) / len(counts)
        axes.set_xticks([(value - start) / width for value in values], [f"{value:g}" for value in values])


def _name_integers(axes: Axes, least: int, bins: int) -> None:
    """Name integers that have a bin each below the middle of their bars."""
    step = math.ceil(bins / 8)
    axes.set_xticks([k + 0.5 for k in range(0, bins, step)], [short_number(least + k) for k in range(0, bins, step)])


def _round_values(edges: NDArray[np.float64]) -> list[float]:
    """Return some round values between edges; none where short labels would not tell them apart."""
    low, high = float(edges[0]), float(edges[-1])
    if not _NARROWEST < high / 2 - low / 2 < _WIDEST:
        return []
    values = [float(value) for value in MaxNLocator(4).tick_values(low, high) if low <= value <= high]
    return values if len(values) > 1 and len({f"{value:g}" for value in values}) == len(values) else []


def _draw_categories(axes: Axes, found: ColumnStatistics) -> None:
    shares = category_shares(found, _MOST_CATEGORIES)
    axes.bar(range(len(shares)), [count for _, count in shares], width=0.8, color=_COLORS[0])
    # Few names are legible side by side, others are turned; beyond that they are cut short.
    names = [_shortened(name, 12) for name, _ in shares]
    turned = sum(map(len, names)) > 24
    axes.set_xticks(range(len(shares)), names, fontsize=6.5, rotation=90 if turned else 0, parse_math=False)


def _counted(found: ColumnStatistics) -> str:
    parts = [f"{found.values:,} values"]
    parts += [f"{found.nans:,} {'missing' if found.kind == CATEGORICAL else 'NaN'}"] if found.nans else []
    parts += [f"{found.infinities:,} infinite"] if found.infinities else []
    if found.categories is not None and len(found.categories) > _MOST_CATEGORIES:
        parts.append(f"{_MOST_CATEGORIES} of {len(found.categories):,} categories")
    line = ", ".join(parts)
    if found.mean is None or found.kind == TIME:
        return line
    return f"{line}\nmean {short_number(found.mean)}, std {short_number(found.std)}"


def _shortened(text: str, most: int = _LONGEST_NAME) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _brief(value: float, _: int | None = None) -> str:
    """Return a count as a short label: `950`, `12k`, `1.5M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


# What a profile shows: kind, label, color, dashes.
_LINES = (
    ("anonymous", "anonymous", _COLORS[0], "-"),
    ("file_backed", "file-backed resident", _COLORS[1], "-"),
    ("resident", "… of this store's maps", "#7fb0de", "--"),
    ("page_cache", "page cache of the store's files", "#5b8c4a", "-"),
    ("mapped", "mapped addresses", "0.6", ":"),
)
_MOST_BARS = 60


def draw_profile(profile: Profile, path: Path) -> None:
    """Draw memory over time, and below it the rows a second, to a PNG file.

    Args:
        profile: what was measured.
        path: the file to write; its directory must exist.
    """
    figure = Figure(figsize=(9, 6.2), layout="constrained")
    memory, speed = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    seconds = np.array([sample.seconds for sample in profile.samples])
    for kind, label, color, dashes in _LINES:
        values = [getattr(sample, kind) for sample in profile.samples]
        if None not in values:
            memory.plot(seconds, np.array(values) / 2**20, dashes, color=color, label=label, linewidth=1.6)
    memory.axhline(profile.memory_budget / 2**20, color=_IDEAL, linewidth=0.8, label="memory budget")
    most = max((profile.peak(kind) or 0 for kind, *_ in _LINES), default=0) / 2**20
    memory.set_ylim(0, max(1.0, 1.12 * most))  # a budget far above all that was used is not shown
    memory.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    memory.set_ylabel("MiB")
    figure.legend(*memory.get_legend_handles_labels(), frameon=False, ncols=3, loc="outside lower center", fontsize=8.5)
    edges = np.linspace(0, profile.seconds, min(_MOST_BARS, len(profile.samples)))
    rows = np.interp(edges, seconds, [sample.rows for sample in profile.samples])
    speed.stairs(np.diff(rows) / np.diff(edges), edges, color=_COLORS[0], fill=True, alpha=0.75)
    speed.yaxis.set_major_formatter(FuncFormatter(_brief))
    speed.set(ylabel="rows/s", xlabel="seconds", xlim=(0, profile.seconds))
    for axes in (memory, speed):
        axes.spines[["top", "right"]].set_visible(False)
    title = f"{profile.rows:,} rows in batches of {profile.batch_size:,}, access={profile.access}"
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, format="png", dpi=110)
