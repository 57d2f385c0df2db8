"""The results as figures."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.suite.jobs import JOBS
from benchmarks.suite.results import Cell, JobResults, Results
from benchmarks.suite.tables import number, variable

OURS, THEIRS, COLD = "#d1652a", "#9aa7b8", "#1f3a5f"
STYLES = ["-", "--", ":", "-."]


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


def _bars(axis: Any, values: dict[str, float], ours: str, text: list[str]) -> None:
    """Draw a bar for each peer, with what it says beside it."""
    names = list(values)
    axis.barh(names, list(values.values()), color=[OURS if name.startswith(ours) else THEIRS for name in names])
    for place, (value, label) in enumerate(zip(values.values(), text, strict=True)):
        axis.annotate(label, (value, place), (5, 0), textcoords="offset points", va="center", fontsize=8)
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
        _bars(axis, values, ours, [number(value) for value in values.values()])
        marks = [(cold[name].rate(), row) for row, name in enumerate(values) if name in cold]
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
        ("Own memory at the peak, shuffled epoch", "MB, log scale", {n: max(m, 1) for n, m in memory.items()}, True),
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
    figure.suptitle(f"What {job.title} cost besides", fontsize=13)
    return figure


def _growth(results: Results, ours: str) -> Any:
    """Draw how speed and the time to the first batch change with rows, and speed with shards."""
    growth, shards = results.group("growth"), results.group("shards")
    if not growth and not shards:
        return None
    figure = _figure(15, 5.2)
    axes = figure.subplots(1, 3)
    _lines(axes[0], growth, "rows", "shuffled", Cell.rate, ours)
    _tidy(axes[0], "Shuffled epoch, narrow rows", "rows")
    axes[0].set_ylabel("rows/s")
    _lines(axes[1], growth, "rows", "shuffled", _start_milliseconds, ours)
    _tidy(axes[1], "Opening and first batch, narrow rows", "rows")
    axes[1].set_ylabel("ms")
    for number_of, mode in enumerate(("shuffled", "takes")):
        _lines(axes[2], shards, "shards", mode, Cell.rate, ours, STYLES[number_of])
    _tidy(axes[2], "Medium rows: epoch (line), 256 random rows (dashed)", "shards")
    axes[2].set_ylabel("rows/s")
    for axis in axes:
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=7.5, frameon=False, ncols=1, loc="upper left", bbox_to_anchor=(0, -0.14))
    return figure


def _start_milliseconds(cell: Cell) -> float:
    return 1e3 * median(sample.open_seconds + sample.first.first_seconds for sample in cell.samples)


def _lines(axis: Any, jobs: list[JobResults], unit: str, mode: str, value: Any, ours: str, style: str = "-") -> None:
    """Draw a line for each peer over the number in which the jobs differ."""
    ordered = sorted(jobs, key=lambda job: variable(job, unit))
    names = list(dict.fromkeys(name for job in ordered for name in _read(job, mode, "warm")))
    for name in names:
        points = [(variable(job, unit), value(cell)) for job in ordered if (cell := _read(job, mode, "warm").get(name))]
        label = name if style == "-" else None
        width, color = (2.4, OURS) if name == ours else (1.2, None)
        axis.plot(
            *zip(*points, strict=True), style, marker="o", markersize=3.5, label=label, linewidth=width, color=color
        )
