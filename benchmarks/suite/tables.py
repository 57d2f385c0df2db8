"""The results as tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from benchmarks.suite.jobs import JOBS
from benchmarks.suite.peer import Peer
from benchmarks.suite.peers.ours import OURS
from benchmarks.suite.results import Cell, JobResults, Results, Stored

Peers = Mapping[str, type[Peer]]

COLUMNS = [(mode, temperature) for temperature in ("warm", "cold") for mode in ("shuffled", "sequential", "takes")]
HEADERS = {"shuffled": "shuffled epoch", "sequential": "in order", "takes": "256 random rows"}
NOTHING = "–"
NOT_YET = "Not measured yet."
FIGURES = {
    "speed": "rows a second of shuffled epochs, by peer and job",
    "cost": "ingest, disk, first batch and memory by peer",
    "growth": "speed by number of rows and of shards",
}
"""What the figures show; see `figures`."""


def sections(results: Results, peers: Peers) -> dict[str, str]:
    """Return the text of each section of the page by name."""
    texts = {"machine": machine_text(results), "peers": peers_table(results, peers)}
    for name, job in JOBS.items():
        if not job.group:
            found = results.jobs.get(name)
            texts[name] = job_text(found, peers) if found else NOT_YET
    for name, text in FIGURES.items():
        texts[f"{name}-figure"] = f"![{text}](suite-{name}.png)" if results.jobs else NOT_YET
    for group, unit in (("growth", "rows"), ("shards", "shards")):
        jobs = results.group(group)
        texts[group] = group_text(jobs, unit, peers) if jobs else NOT_YET
    return texts


def markdown(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def number(value: float) -> str:
    """Return a number with three digits that count, in thousands or millions where it is large."""
    for limit, divisor, unit in ((1e6, 1e6, " M"), (1e4, 1e3, " k")):
        if value >= limit:
            return f"{_digits(value / divisor)}{unit}"
    return _digits(value)


def _digits(value: float) -> str:
    if value >= 99.5:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 else "0"


# What it was measured on


def machine_text(results: Results) -> str:
    """Return a few sentences about the machine, the versions and the way of measuring."""
    machine, settings = results.machine, results.settings
    if not machine:
        return NOT_YET
    packages = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB, {machine['disk']}, "
        f"{machine['kernel']}, Python {machine['python']}; {packages}.\n\n"
        f"An epoch is left {settings['limit']:g} s after its first batch; a run counts as hung after "
        f"{settings['timeout']:g} s."
    )


def peers_table(results: Results, peers: Peers) -> str:
    """Return how each peer is read, and what its shuffle mixes."""
    del results
    rows = [[peer.name, peer.how or NOTHING, peer.mixes] for peer in peers.values()]
    return markdown(["peer", "how it is read", "what its shuffle mixes"], rows)


# One job


def job_text(job: JobResults, peers: Peers) -> str:
    """Return what was measured of one job: what its rows are, speeds, and costs."""
    names = _names(job, peers)
    all_rows = max((cell.rows for cell in job.cells.values()), default=0)
    few = {cell.rows for cell in job.cells.values() if 0 < cell.rows < all_rows}
    rounds = ", ".join(f"{_rounds(job, temperature)} {temperature}" for temperature in ("warm", "cold"))
    text = f"{all_rows:,} rows of {job.title}, {job.dump_nbytes / 1e6:,.0f} MB of dumps. Rounds: {rounds}."
    if few:
        text += f" Peers with \\* are slow to ingest and got {min(few):,} rows; so did shardstore beside them."
    headers = ["rows/s", *(f"{HEADERS[mode]}{', cold' * (temperature == 'cold')}" for mode, temperature in COLUMNS)]
    speeds = [[_label(job, name, all_rows), *_speeds(job, name)] for name in names]
    costs = [[_label(job, name, all_rows), *cells] for name in names if (cells := _costs(job, name))]
    cost_headers = ["cost", "ingest", "disk / dumps", "open", "first batch", "… cold", "first epoch", "own memory"]
    return "\n\n".join([text, markdown(headers, speeds), markdown(cost_headers, costs)])


def _rounds(job: JobResults, temperature: str) -> int:
    return max((len(cell.samples) for cell in job.cells.values() if cell.temperature == temperature), default=0)


def _names(job: JobResults, peers: Peers) -> list[str]:
    found = dict.fromkeys(name for name, _, _ in job.cells)
    known = [name for name in peers if name in found]
    return known + [name for name in found if name not in peers]


def _label(job: JobResults, name: str, all_rows: int) -> str:
    rows = max(cell.rows for cell in job.cells.values() if cell.peer == name)
    return f"{name} \\*" if 0 < rows < all_rows else name


def _speeds(job: JobResults, name: str) -> list[str]:
    cells = [job.cells.get((name, mode, temperature)) for mode, temperature in COLUMNS]
    reasons = {cell.reason for cell in cells if cell}
    if len(reasons) == 1 and all(cell is None or not cell.samples for cell in cells):
        return [reasons.pop(), *[NOTHING] * (len(cells) - 1)]
    return [speed(cell) for cell in cells]


def speed(cell: Cell | None) -> str:
    """Return a cell of a table: rows a second, how many times as fast ours was, and what was wrong; or the reason."""
    if cell is None or not (cell.samples or cell.reason):
        return NOTHING
    if not cell.samples:
        return cell.reason
    text, ratio = number(cell.rate()), cell.ratio()
    if ratio is not None and cell.peer != OURS:
        text += f" ({ratio:,.0f} ×)" if ratio >= 9.95 else f" ({ratio:.2g} ×)"
    wrong = cell.problem() or cell.reason
    return f"{text}, **{wrong}**" if wrong else text


def _costs(job: JobResults, name: str) -> list[str] | None:
    warm, cold = (job.cells.get((name, "shuffled", temperature)) for temperature in ("warm", "cold"))
    if not warm or not warm.samples:
        return None
    cells = [*_stored(job, job.stored.get(name), warm), milliseconds(median(s.open_seconds for s in warm.samples))]
    for cell in (warm, cold):
        has = cell is not None and cell.samples
        cells.append(milliseconds(median(s.first.first_seconds for s in cell.samples)) if cell and has else NOTHING)
    whole = [sample.first.rate for sample in warm.samples if sample.first.ended]
    cells.append(f"{number(median(whole))} rows/s" if whole else "not ended")
    cells.append(megabytes(warm))
    return cells


def _stored(job: JobResults, stored: Stored | None, cell: Cell) -> list[str]:
    if stored is None or not stored.seconds:
        return [NOTHING, NOTHING]
    all_rows = max(one.rows for one in job.cells.values())
    dumps = job.dump_nbytes * cell.rows / all_rows
    return [f"{number(stored.rows / stored.seconds)} rows/s", f"{stored.nbytes / dumps:.2f} ×"]


def milliseconds(seconds: float) -> str:
    """Return a time in milliseconds."""
    return f"{_digits(1e3 * seconds)} ms"


def megabytes(cell: Cell) -> str:
    """Return the memory of its own that a peer had at its peak."""
    return f"{_digits(median(sample.anonymous for sample in cell.samples) / 1e6)} MB"


# Jobs that differ in one number


def group_text(jobs: Sequence[JobResults], unit: str, peers: Peers) -> str:
    """Return one table of several jobs, a column for each and each mode."""
    sizes = {job.job: variable(job, unit) for job in jobs}
    ordered = sorted(jobs, key=lambda job: sizes[job.job])
    modes = list(dict.fromkeys(mode for job in jobs for _, mode, _ in job.cells))
    columns = [(job, mode) for mode in modes for job in ordered]
    headers = ["rows/s", *(f"{sizes[job.job]:,} {unit}, {HEADERS[mode]}" for job, mode in columns)]
    names = list(dict.fromkeys(name for job in ordered for name in _names(job, peers)))
    rows = [[name, *(speed(job.cells.get((name, mode, "warm"))) for job, mode in columns)] for name in names]
    memory = [
        [name, *_group_costs(ordered, name)]
        for name in names
        if any(cell.samples for job in ordered for cell in job.cells.values() if cell.peer == name)
    ]
    cost_headers = ["first batch; own memory", *(f"{sizes[job.job]:,} {unit}" for job in ordered)]
    text = f"Rows of {ordered[0].title}, warm."
    return "\n\n".join([text, markdown(headers, rows), markdown(cost_headers, memory)])


def variable(job: JobResults, unit: str) -> int:
    """Return the number in which jobs of a group differ."""
    return job.shards if unit == "shards" else max(cell.rows for cell in job.cells.values())


def _group_costs(jobs: Sequence[JobResults], name: str) -> list[str]:
    cells = [job.cells.get((name, "shuffled", "warm")) for job in jobs]
    return [
        f"{milliseconds(median(s.open_seconds + s.first.first_seconds for s in cell.samples))}; {megabytes(cell)}"
        if cell and cell.samples
        else NOTHING
        for cell in cells
    ]
