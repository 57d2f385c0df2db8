"""How random an order is: measures of a plan against what an ideal shuffle gives, each with its tolerance.

The tolerances are five standard deviations of an ideal shuffle (see `ideal`), so that a good order fails one measure
in about two million.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardstore.order import ideal
from shardstore.order.ideal import SIGMAS, Floats
from shardstore.order.orders import Order, Sections, WindowShuffle
from shardstore.order.plan import Plan
from shardstore.order.verdict import Measure, Quality
from shardstore.selection import Rows

# How many positions of an epoch are looked at, in how many runs; and fewer where each costs more.
_SAMPLE, _RUNS = 1 << 20, 16
_TENTH_SAMPLE = 1 << 17
_PAIRS, _FLIPPED_BITS = 1 << 14, 12
# With less than this, nothing but the rows' completeness can be told.
_LEAST_ROWS, _LEAST_BATCHES, _LEAST_FREEDOM, _LEAST_WINDOW, _LEAST_FLIPS = 1000, 8, 7, 64, 100
_BATCH_ROWS = 16
_LABEL_CLASSES = 32
_LABEL_ROWS = 1 << 27
_STRETCHES = 1000
_ROUNDING = 1e-9
_IN_WINDOW = " in a window"
_SHIFT_BINS = 64


@dataclass(frozen=True)
class Sample:
    """Some positions of an epoch, in runs of equal length.

    Attributes:
        positions: int64 `(runs, length)`, consecutive within a run; runs ascend.
        batch: rows of a batch; small batches are taken together.
    """

    positions: Rows
    batch: int

    @classmethod
    def of(cls, plan: Plan, limit: int = _SAMPLE) -> Sample:
        """Sample a plan: the whole epoch if it has at most `limit` positions, else runs spread over it evenly."""
        lanes = plan.order.lanes
        batch = int(plan.batch_size) * -(-_BATCH_ROWS * lanes // plan.batch_size)
        return cls(_runs(plan.order.count, batch, limit), batch)

    @property
    def batches(self) -> int:
        """How many whole batches there are."""
        runs, length = self.positions.shape
        batches: int = runs * (length // self.batch)
        return batches

    def in_batches(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return one value per position as `(batches, batch)`, without those of no whole batch."""
        runs, length = self.positions.shape
        whole = length // self.batch * self.batch
        return values.reshape(runs, length)[:, :whole].reshape(-1, self.batch)


@dataclass(frozen=True)
class _Seen:
    """Numbers in groups, each of which is shuffled for itself: rows in the table, or places in a window.

    All arrays are int64 and have an entry for each of some positions.
    """

    numbers: Rows
    groups: Rows
    sizes: Rows


_Lens = Callable[[Order, int, Rows], _Seen]


def quality(plan: Plan, *, epoch: int = 0, labels: ArrayLike | None = None) -> Quality:
    """Measure how random an order is.

    Up to 2^20 positions of the epoch are looked at: all of a smaller epoch, else 16 runs spread over it. So it takes
    bounded memory and a few seconds at any size. What a sample cannot say is left out: below 1,000 rows there is only
    the coverage, below 8 batches there is nothing about batches. Batches of less than 16 rows are taken together.

    Any order but a `WindowShuffle` is judged as a shuffle of all rows; so `Sequential` fails. A window order promises:
    every row once; odd rows (and whatever else alternates within the sections) as evenly in every batch as in a full
    shuffle; epochs and seeds that have nothing to do with each other; and that the places *within* a window are as
    good as a full shuffle of the window, by the same measures. What depends on where in the table rows lie it cannot
    promise for any number of sections: with W sections in a window, the rows of a property that is sorted vary from
    batch to batch `1 + (batch − 1) / W` times as much as in a full shuffle (for W much less than all sections), which
    is near 1 only for windows of many more sections than a batch has rows. These measures are shown, not judged.

    Args:
        plan: the order and its batches, on a single rank.
        epoch: which epoch to measure; it is compared with the next one, and with the same one of the next seed.
        labels: one per row of the plan's table, for the mix of labels in batches; up to 2^27 rows. Of more
            than about 32, neighbours in sorted order are counted together; rare ones with the most frequent.

    Raises:
        ValueError: if labels are not one per row, or too many.
    """
    order = plan.order
    codes = None if labels is None else _label_codes(labels, order.count)
    sample = Sample.of(plan)
    measures = tuple(_measures(order, epoch, sample, codes)) if order.count else ()
    return Quality(dict(order.describe()), epoch, int(plan.batch_size), sample.positions.size, measures)


def _measures(order: Order, epoch: int, sample: Sample, labels: Rows | None) -> Iterator[Measure]:
    flat = sample.positions.reshape(-1)
    rows = order.rows(epoch, flat)
    inside = rows[(rows >= 0) & (rows < order.count)]
    share = len(_distinct(inside)) / len(rows)
    yield Measure("distinct rows", share, 1.0, 0.0, "share of the positions that give a row of their own")
    if len(rows) < _LEAST_ROWS:
        return
    full = {name: _see_rows(*other, flat) for name, other in _kin(order, epoch).items()}
    rows = full[""].numbers
    properties = {"odd rows": rows & 1, "upper half": (rows >= order.count // 2).astype(np.int64)}
    if labels is not None:
        properties["labels"] = labels[rows]
    if not isinstance(order, WindowShuffle):
        yield from _shares(order, sample, properties, True)
        yield from _spreads(sample, properties, full[""], "", True)
        yield from _distances(sample, full[""], 1, "", True)
        yield _touched(order, epoch, sample, rows, True)
        yield from _flips(order, epoch, sample, _see_rows, "", True)
        yield from _correlations(flat, full, None)
        yield from _shifts(full, "", True)
        yield _recurring(order, sample, full)
        return

    places = {name: _see_places(*other, flat) for name, other in _kin(order, epoch).items()}
    yield from _shares(order, sample, properties, False)
    yield from _window_spreads(sample, properties, full[""])
    yield from _sections(order.sections, sample, rows)
    yield from _distances(sample, full[""], 1, "", False)
    yield _touched(order, epoch, sample, rows, False)
    yield from _flips(order, epoch, sample, _see_rows, "", False)
    yield from _correlations(flat, full, (places[""], order.sections.size))
    yield from _shifts(full, "", False)
    yield _recurring(order, sample, full)
    yield from _spreads(sample, properties, places[""], _IN_WINDOW, True)
    yield from _distances(sample, places[""], order.lanes, _IN_WINDOW, True)
    yield from _flips(order, epoch, sample, _see_places, _IN_WINDOW, True)
    yield from _shifts(places, _IN_WINDOW, True)


def _kin(order: Order, epoch: int) -> dict[str, tuple[Order, int]]:
    """Return the order and epoch themselves, and others that should have nothing to do with them."""
    kin = {"": (order, epoch), "next epoch": (order, epoch + 1)}
    if is_dataclass(order) and any(field.name == "seed" for field in fields(order)):
        kin["next seed"] = (replace(order, seed=order.seed + 1), epoch)
    return kin


def _pairs(seen: dict[str, _Seen]) -> Iterator[tuple[str, _Seen, _Seen]]:
    for name in list(seen)[1:]:
        yield name, seen[""], seen[name]
    if "next seed" in seen:
        # Where seed and epoch were added up, these would be the same.
        yield "next epoch and next seed", seen["next epoch"], seen["next seed"]


def _see_rows(order: Order, epoch: int, positions: Rows) -> _Seen:
    # What comes twice or lies outside is found by the coverage.
    rows = np.clip(order.rows(epoch, positions), 0, order.count - 1)
    group, size = np.zeros((), np.int64), np.array(order.count, np.int64)
    return _Seen(rows, np.broadcast_to(group, rows.shape), np.broadcast_to(size, rows.shape))


def _see_places(order: Order, epoch: int, positions: Rows) -> _Seen:
    assert isinstance(order, WindowShuffle)
    seen = _Seen(*(np.empty(len(positions), np.int64) for _ in range(3)))
    for number, (window, where, places) in enumerate(order.windows(epoch, positions)):
        seen.numbers[where], seen.groups[where], seen.sizes[where] = places, number, len(window)
    return seen


def _runs(count: int, batch: int, limit: int) -> Rows:
    """Return positions `(runs, length)`: all of them, or 16 runs of whole batches or, of large batches, fewer."""
    if count <= limit:
        return np.arange(count, dtype=np.int64)[None]
    if batch * _LEAST_BATCHES > limit:
        batch = 1  # nothing is said about these
    length = max(limit // _RUNS // batch, 1) * batch
    runs = limit // length
    steps = (count - length) // batch
    starts = [steps * run // (runs - 1) * batch for run in range(runs)]
    return np.array(starts, np.int64)[:, None] + np.arange(length)


def _label_codes(labels: ArrayLike, count: int) -> Rows:
    """Return a small number for each label: neighbours in sorted order share one where there are many."""
    array = np.asarray(labels)
    if array.shape != (count,):
        raise ValueError(f"labels have shape {array.shape}; expected one per row, ({count},)")
    if count > _LABEL_ROWS:
        raise ValueError(f"labels of {count:,} rows are too many; at most {_LABEL_ROWS:,} are measured")
    _, codes, counts = np.unique(array, return_inverse=True, return_counts=True)
    if len(counts) > _LABEL_CLASSES:
        starts = np.cumsum(counts) - counts
        _, merged = np.unique(starts * _LABEL_CLASSES // count, return_inverse=True)
        codes = merged[codes]
    return codes.astype(np.int64)


def _shares(order: Order, sample: Sample, properties: dict[str, Rows], half: bool) -> Iterator[Measure]:
    """Measure the mean counts of odd rows and of the upper half, which are hypergeometric; the second may be shown."""
    if sample.batches < _LEAST_BATCHES:
        return
    count, batch, drawn = order.count, sample.batch, sample.batches * sample.batch
    for name, ones, promised in (("odd rows", count // 2, True), ("upper half", count - count // 2, half)):
        p = ones / count
        value = float(sample.in_batches(properties[name]).sum(1).mean())
        sigma = batch * math.sqrt(p * (1 - p) / drawn * (count - drawn) / (count - 1))
        slack = SIGMAS * sigma + _ROUNDING * batch
        yield Measure(f"{name} per batch, mean", value, batch * p, slack, "mean over all batches", promised)


def _spreads(sample: Sample, properties: dict[str, Rows], seen: _Seen, where: str, promised: bool) -> Iterator[Measure]:
    """Measure how properties vary from batch to batch."""
    if sample.batches < _LEAST_BATCHES:
        return
    batches = np.arange(sample.batches).repeat(sample.batch)
    groups = sample.in_batches(seen.groups).reshape(-1)
    for name, codes in properties.items():
        found = ideal.spread(sample.in_batches(codes).reshape(-1), batches, groups)
        if found is not None and found[1] >= _LEAST_FREEDOM:
            slack = ideal.chi_square_slack(*found)
            meaning = "variance from batch to batch, over that of an ideal shuffle"
            yield Measure(f"{name} per batch{where}, spread", found[0], 1.0, slack, meaning, promised)


def _window_spreads(sample: Sample, properties: dict[str, Rows], full: _Seen) -> Iterator[Measure]:
    """Measure how properties vary from batch to batch where these come from windows."""
    for measure in _spreads(sample, properties, full, "", False):
        if measure.name.startswith("odd rows"):
            # Windows of few rows have next to as many odd ones each, which makes batches more alike.
            tolerance = measure.tolerance if measure.value > 1 else 1.0
            yield replace(measure, tolerance=tolerance, promised=True)
        elif measure.value > 1 + measure.tolerance:
            effective = (sample.batch - 1) / (measure.value - 1)
            yield replace(measure, meaning=f"a batch is mixed as if drawn from {effective:,.0f} sections of the table")
        else:
            yield replace(measure, meaning="a batch is mixed as if drawn from the whole table")


def _sections(sections: Sections, sample: Sample, rows: Rows) -> Iterator[Measure]:
    """Measure of how many sections a batch has rows."""
    if sample.batches < _LEAST_BATCHES:
        return
    of_row = np.sort(sample.in_batches((rows + sections.missing) // sections.size), axis=1)
    found = 1 + float((np.diff(of_row, axis=1) > 0).sum(1).mean())
    expected, sigma = ideal.touched_moments(sections.count, sample.batch, len(sections))
    slack = SIGMAS * sigma / math.sqrt(sample.batches)
    yield Measure("sections per batch", found, expected, slack, "of how many sections a batch has rows, mean", False)


def _distances(sample: Sample, seen: _Seen, stride: int, where: str, promised: bool) -> Iterator[Measure]:
    """Measure `|a − b| / size` of neighbours, which is triangular on [0, 1) with a mean of a third."""
    numbers, groups, sizes = (
        values.reshape(sample.positions.shape) for values in (seen.numbers, seen.groups, seen.sizes)
    )
    pairs = (groups[:, stride:] == groups[:, :-stride]) & (sizes[:, stride:] >= _LEAST_WINDOW)
    n = int(pairs.sum())
    if n < _LEAST_ROWS // 2:
        return
    size = sizes[:, stride:][pairs]
    distance = np.abs(numbers[:, stride:] - numbers[:, :-stride])[pairs] / size
    sampled = np.bincount(seen.groups)
    fraction = float((sampled[groups[:, stride:][pairs]] / size).mean())
    # A pair's variance is 1/18, two that share a member have a covariance of 1/180.
    slack = SIGMAS * ideal.neighbour_sigma(1 / 18, 1 / 180, n, fraction)
    expected = float(((size + 1) / (3 * size)).mean())
    name, meaning = f"neighbours' distance{where}", "of the rows at positions p and p + 1, as a share of all"
    yield Measure(f"{name}, mean", float(distance.mean()), expected, slack, meaning, promised)
    histogram = np.bincount((distance * ideal.BINS).astype(np.int64), minlength=ideal.BINS) / n
    used = histogram[histogram > 0]
    entropy, sigma = ideal.entropy_moments(ideal.triangle(size), n, fraction)
    meaning = "bits, of a histogram of 32 bins; 0 if all are alike"
    value = float(-(used * np.log2(used)).sum())
    yield Measure(f"{name}, entropy", value, entropy, SIGMAS * sigma, meaning, promised)


def _touched(order: Order, epoch: int, sample: Sample, rows: Rows, promised: bool) -> Measure:
    """Measure how much of the table the first tenth of the epoch reaches."""
    count, tenth = order.count, order.count // 10
    if sample.positions.size < count:
        rows = _see_rows(order, epoch, _runs(tenth, 1, _TENTH_SAMPLE).reshape(-1)).numbers
    else:
        rows = rows[:tenth]
    stretches = min(_STRETCHES, tenth)
    found = len(_distinct((rows / count * stretches).astype(np.int64)))
    expected, sigma = ideal.touched_moments(count, len(rows), stretches)
    name, slack = f"of {stretches:,} stretches, touched by a tenth", SIGMAS * sigma + ideal.RARE
    return Measure(name, found, expected, slack, "of so many equal parts of the table", promised)


def _flips(order: Order, epoch: int, sample: Sample, lens: _Lens, where: str, promised: bool) -> Iterator[Measure]:
    """Measure the avalanche: how often each bit differs between positions that differ in one bit."""
    length = -(-sample.positions.size // _RUNS)
    blocks = sample.positions.reshape(-1)[: length * _RUNS]
    base = np.concatenate([blocks[k * length : k * length + _PAIRS // _RUNS] for k in range(_RUNS)])
    lanes, bits = order.lanes, ((order.count - 1) // order.lanes).bit_length()
    flipped = sorted({k * (bits - 1) // (_FLIPPED_BITS - 1) for k in range(_FLIPPED_BITS)})
    deviations: list[Floats] = []
    for bit in flipped:
        partner = (base // lanes ^ (1 << bit)) * lanes + base % lanes
        # Each pair once, or it would count double.
        low = _distinct(np.minimum(base, partner))
        high = low + (1 << bit) * lanes
        low, high = low[high < order.count], high[high < order.count]
        if not len(low):
            continue
        seen = lens(order, epoch, np.concatenate([low, high]))
        (one, other), (group, other_group) = (np.split(values, 2) for values in (seen.numbers, seen.groups))
        size = seen.sizes[: len(low)]
        pairs = (group == other_group) & (size >= _LEAST_WINDOW)
        if not pairs.any():
            continue
        sizes, weights = np.unique(size[pairs], return_counts=True)
        rates = ideal.flip_rates(sizes)
        expected, variance = weights @ rates, weights @ (rates * (1 - rates))
        differing = (one ^ other)[pairs]
        flips = np.array([np.count_nonzero(differing >> k & 1) for k in range(rates.shape[1])])
        told = np.minimum(expected, len(differing) - expected) >= _LEAST_FLIPS
        deviations.append((np.abs(flips - expected) / np.sqrt(np.maximum(variance, 1e-9)))[told])
    tests = sum(map(len, deviations))
    if not tests:
        return
    # The worst of so many: about √(2 ln n); the limit is as unlikely for the worst as five are for one.
    expected_worst, limit = math.sqrt(2 * math.log(tests)), math.sqrt(SIGMAS**2 + 2 * math.log(tests))
    value = float(max(part.max() for part in deviations if len(part)))
    slack = limit - expected_worst if value > expected_worst else expected_worst
    meaning = f"in standard deviations of its flips, of {tests} pairs of a position's and a row's bit"
    yield Measure(f"avalanche{where}, worst bit", value, expected_worst, slack, meaning, promised)


def _correlations(flat: Rows, full: dict[str, _Seen], windows: tuple[_Seen, int] | None) -> Iterator[Measure]:
    rows = full[""].numbers
    pairs = [("position and row", flat, rows), *((name, x.numbers, y.numbers) for name, x, y in _pairs(full))]
    for name, x, y in pairs:
        yield _correlation(f"{name}, correlation", x, y, windows)


def _correlation(name: str, x: Rows, y: Rows, windows: tuple[_Seen, int] | None) -> Measure:
    """Return the correlation of two sequences.

    Given one, its variance over all permutations of the other is `1 / (n − 1)`. The rows of a window are not
    independent: their mean has the variance of the mean of so many sections, which adds to it.
    """
    a, b = (values - values.mean() for values in (x, y))
    aa, bb = float(a @ a), float(b @ b)
    value = float(a @ b) / math.sqrt(aa * bb) if aa and bb else 1.0
    variance = 1 / (len(x) - 1)
    if windows is not None:
        seen, section_rows = windows
        sections = np.zeros(int(seen.groups.max()) + 1)
        sections[seen.groups] = np.maximum(seen.sizes / section_rows, 1.0)
        variance += float((np.bincount(seen.groups, a) ** 2 / sections).sum()) / (len(x) * aa)
    return Measure(name, value, 0.0, SIGMAS * math.sqrt(variance), "1 or -1 if one follows from the other")


def _shifts(seen: dict[str, _Seen], where: str, promised: bool) -> Iterator[Measure]:
    """Measure how the differences of two orders at the same positions, modulo their size, are spread."""
    for name, x, y in _pairs(seen):
        # The few windows that hold a short section may differ in size.
        same = (x.sizes == y.sizes) & (x.sizes >= _LEAST_WINDOW)
        n = int(np.count_nonzero(same))
        if n < _LEAST_ROWS:
            continue
        size = x.sizes[same]
        difference = (y.numbers[same] - x.numbers[same]) % size
        found = np.bincount((difference / size * _SHIFT_BINS).astype(np.int64), minlength=_SHIFT_BINS)
        expected = n * ideal.shift_probabilities(size, _SHIFT_BINS)
        ratio = float(((found - expected) ** 2 / expected).sum()) / (_SHIFT_BINS - 1)
        slack = ideal.chi_square_slack(ratio, _SHIFT_BINS - 1)
        meaning = "chi-square of the differences at the same positions; large if one is a shift of the other"
        yield Measure(f"{name}{where}, differences", ratio, 1.0, slack, meaning, promised)


def _recurring(order: Order, sample: Sample, full: dict[str, _Seen]) -> Measure:
    """Measure how many rows have the same successor in the next epoch."""
    one, other = (_successions(full[name].numbers.reshape(sample.positions.shape)) for name in ("", "next epoch"))
    before, now = np.sort(one), np.sort(other)
    value = int(np.count_nonzero(before[np.minimum(np.searchsorted(before, now), len(before) - 1)] == now))
    expected = (len(one) / order.count) ** 2
    if isinstance(order, WindowShuffle):
        # Neighbours of one section stay in one window.
        sections = len(order.sections)
        expected *= 1 + sections / min(order.window, sections) ** 2
    slack = SIGMAS * math.sqrt(expected) + ideal.RARE if value > expected else expected
    return Measure("next epoch, same successor", value, expected, slack, "rows followed by the same row again")


def _successions(rows: Rows) -> NDArray[np.uint64]:
    # A hash of both: two of 2^20 are the same by chance once in 2^24 times.
    numbers = rows.astype(np.uint64)
    return (numbers[:, :-1] * np.uint64(0x9E3779B97F4A7C15) + numbers[:, 1:]).reshape(-1)


def _distinct(values: Rows) -> Rows:
    """Return the different ones among integers, sorted: several times as fast as `np.unique`, which hashes them."""
    ordered = np.sort(values, axis=None)
    return ordered[np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))]
