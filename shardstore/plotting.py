"""Orders as a figure; needs matplotlib, which nothing else does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from shardstore.order import Plan
from shardstore.order.measuring import Sample
from shardstore.selection import Rows

_POINTS = 6000
_BINS = 32
_COLORS = ("#d1652a", "#3d6e9e")
_IDEAL = "#2b2b2b"


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
