"""The results as figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.suite.jobs import JOBS
from benchmarks.suite.results import Cell, JobResults, Results
from benchmarks.suite.tables import number, variable

OURS, THEIRS, COLD = "#d1652a", "#9aa7b8", "#1f3a5f"
LINES = ("#3b6ea5", "#5a9e6f", "#8a6fb0", "#b0893b", "#4f9da6", "#a65a7a", "#6b7a3b", "#7a7a7a", "#3f5f8f", "#946b4a")


def draw(results: Results, ours: str, directory: Path) -> list[Path]:
    """Draw all figures of which there are results, and return their files.

    Args:
        results: what was measured.
        ours: the beginning of the names that are ours.
        directory: where the files go.
    """
    import matplotlib

    matplotlib.use("Agg")
    paths = []
    for name, draw_one in (("speed", _speed), ("cost", _cost), ("growth", _growth)):
        figure = draw_one(results, ours)
        if figure is not None:
            paths.append(directory / f"suite-{name}.png")
            # No program, version or date in the file: the same results give the same bytes.
            figure.savefig(paths[-1], dpi=110, metadata={"Software": None})
    return paths


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _tidy(axis: Any, title: str, unit: str) -> None:
    axis.set_title(title, fontsize=11, fontweight="bold", loc="left")
    axis.set_xlabel(unit, fontsize=9)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(axis="both", labelsize=8.5)


def _read(job: JobResults, mode: str, temperature: str) -> dict[str, Cell]:
    """Return the cells with samples of a mode, the fastest first."""
    cells = [
        cell for (_, m, t), cell in job.cells.items() if m == mode and t == temperature and cell.samples
    ]  # fmt: skip
    return {cell.peer: cell for cell in sorted(cells, key=Cell.rate, reverse=True)}


def _bars(
    axis: Any, values: dict[str, float], ours: str, text: list[str], beyond: Mapping[str, float] | None = None
) -> None:
    """Draw a bar for each peer, with what it says beside it, and beyond another mark that may be longer."""
    names = list(values)
    axis.barh(names, list(values.values()), color=[OURS if name.startswith(ours) else THEIRS for name in names])
    for place, (name, label) in enumerate(zip(names, text, strict=True)):
        end = max(values[name], (beyond or {}).get(name, 0.0))
        axis.annotate(label, (end, place), (6, 0), textcoords="offset points", va="center", fontsize=8)
    axis.invert_yaxis()
    axis.tick_params(axis="y", length=0)


def _speed(results: Results, ours: str) -> Any:
    """Draw rows a second of shuffled epochs, warm and cold, one panel for each job."""
    jobs = [results.jobs[name] for name, job in JOBS.items() if not job.group and name in results.jobs]
    jobs = [job for job in jobs if _read(job, "shuffled", "warm")]
    if not jobs:
        return None
    lines = -(-len(jobs) // 2)
    most = max(len(_read(job, "shuffled", "warm")) for job in jobs)
    figure = _figure(14, lines * (0.9 + 0.24 * most))
    for place, job in enumerate(jobs):
        axis = figure.add_subplot(lines, min(2, len(jobs)), place + 1)
        warm, cold = _read(job, "shuffled", "warm"), _read(job, "shuffled", "cold")
        values = {name: cell.rate() for name, cell in warm.items()}
        ends = {name: cell.rate() for name, cell in cold.items()}
        _bars(axis, values, ours, [number(value) for value in values.values()], ends)
        marks = [(ends[name], row) for row, name in enumerate(values) if name in ends]
        if marks:
            axis.plot(*zip(*marks, strict=True), "D", color=COLD, markersize=4, label="cold, from opening")
        axis.set_xscale("log")
        every = [*values.values(), *(value for value, _ in marks)]
        axis.set_xlim(min(every) / 3, max(every) * 6)
        _tidy(axis, f"{job.job}: {job.title}", "rows/s, log scale")
        if not place and marks:
            axis.legend(loc="lower right", fontsize=8, frameon=False)
    figure.suptitle("Shuffled epochs in batches of 256 rows", fontsize=13)
    return figure


def _cost(results: Results, ours: str) -> Any:
    """Draw what the medium job costs beside its epochs: ingest, disk, memory, time to the first batch."""
    job = results.jobs.get("medium")
    warm = _read(job, "shuffled", "warm") if job else {}
    if not job or not warm:
        return None
    dumps = job.dump_nbytes / max(cell.rows for cell in job.cells.values())
    stored = {name: one for name, one in job.stored.items() if one.seconds}
    first = {n: median(s.open_seconds + s.first.first_seconds for s in c.samples) for n, c in warm.items()}
    memory = {n: median(s.anonymous for s in c.samples) / 1e6 for n, c in warm.items()}
    panels = [
        ("Ingest", "rows/s, log scale", {n: s.rows / s.seconds for n, s in stored.items()}, True),
        ("On disk", "times the dumps", {n: s.nbytes / s.rows / dumps for n, s in stored.items()}, False),
        ("Opening and first batch, warm", "ms, log scale", {n: 1e3 * s for n, s in first.items()}, True),
        ("Own memory at the peak, shuffled epoch", "MB, log scale", {n: max(m, 0.1) for n, m in memory.items()}, True),
    ]
    heights = [len(stored), len(warm)]
    figure = _figure(14, 1.8 + 0.24 * sum(heights))
    grid = figure.add_gridspec(2, 2, height_ratios=heights)
    for place, (title, unit, values, log) in enumerate(panels):
        axis = figure.add_subplot(grid[place // 2, place % 2])
        ordered = dict(sorted(values.items(), key=lambda item: item[1], reverse=place == 0))
        _bars(axis, ordered, ours, [number(value) for value in ordered.values()])
        if log:
            axis.set_xscale("log")
            axis.set_xlim(min(ordered.values()) / 2, max(ordered.values()) * 4)
        else:
            axis.set_xlim(0, 1.2 * max(ordered.values()))
        _tidy(axis, title, unit)
    figure.suptitle(f"What {job.job} rows cost besides", fontsize=13)
    return figure


def _growth(results: Results, ours: str) -> Any:
    """Draw how speed and the time to the first batch change with rows, and speeds with shards."""
    growth, shards = results.group("growth"), results.group("shards")
    panels: list[tuple[str, str, list[JobResults], str, str, Callable[[Cell], float]]] = [
        ("Shuffled epoch of narrow rows", "rows", growth, "shuffled", "rows/s", Cell.rate),
        ("Opening and first batch of narrow rows", "rows", growth, "shuffled", "ms", _start_milliseconds),
        ("Shuffled epoch of medium rows", "shards", shards, "shuffled", "rows/s", Cell.rate),
        ("256 random medium rows", "shards", shards, "takes", "rows/s", Cell.rate),
    ]
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        return None
    lines = -(-len(panels) // 2)
    figure = _figure(14, 5.2 * lines)
    for place, (title, unit, jobs, mode, label, value) in enumerate(panels):
        axis = figure.add_subplot(lines, 2, place + 1)
        axis.set_xscale("log")
        axis.set_yscale("log")
        _lines(axis, jobs, unit, mode, value, ours)
        _tidy(axis, title, unit)
        axis.set_ylabel(label, fontsize=9)
        axis.grid(alpha=0.3)
    figure.suptitle("How speed changes with rows and with shards", fontsize=13)
    return figure


def _start_milliseconds(cell: Cell) -> float:
    return 1e3 * median(sample.open_seconds + sample.first.first_seconds for sample in cell.samples)


def _lines(axis: Any, jobs: list[JobResults], unit: str, mode: str, value: Callable[[Cell], float], ours: str) -> None:
    """Draw a line for each peer over the number in which the jobs differ, with its name at the end."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for job in sorted(jobs, key=lambda job: variable(job, unit)):
        for name, cell in _read(job, mode, "warm").items():
            lines.setdefault(name, []).append((variable(job, unit), value(cell)))
    if not lines:
        return
    every = [y for points in lines.values() for _, y in points]
    axis.set_ylim(min(every) / 1.6, max(every) * 1.6)
    last = max(x for points in lines.values() for x, _ in points)
    first = min(x for points in lines.values() for x, _ in points)
    axis.set_xlim(first / 1.2, last * (last / first) ** 0.5 + 1)  # room for the names
    colors = {name: LINES[place % len(LINES)] for place, name in enumerate(sorted(lines))}
    ends = {name: points[-1] for name, points in lines.items()}
    for name, place in _apart({name: y for name, (_, y) in ends.items()}, axis).items():
        color, width = (OURS, 2.6) if name == ours else (colors[name], 1.2)
        axis.plot(*zip(*lines[name], strict=True), "-o", color=color, markersize=3.5, linewidth=width)
        weight = "bold" if name == ours else "normal"
        text = {"fontsize": 8, "va": "center", "color": color, "fontweight": weight}
        arrow = {"arrowstyle": "-", "color": color, "linewidth": 0.5, "alpha": 0.6}
        axis.annotate(name, ends[name], (0.74, place), textcoords="axes fraction", arrowprops=arrow, **text)


def _apart(ends: dict[str, float], axis: Any) -> dict[str, float]:
    """Return heights for labels, as parts of the axis, near the given values and never on top of each other."""
    low, high = map(math.log, axis.get_ylim())
    gap = min(0.045, 0.98 / max(1, len(ends)))
    places: dict[str, float] = {}
    below = -gap
    for name in sorted(ends, key=ends.__getitem__):
        below = places[name] = max(below + gap, (math.log(ends[name]) - low) / (high - low))
    above = 1.0 + gap
    for name in reversed(places):
        above = places[name] = min(above - gap, places[name])
    return places
