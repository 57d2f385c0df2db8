"""What measuring an order found: each measure beside what an ideal shuffle gives, as text and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """One number about an order.

    Attributes:
        name: what was measured.
        value: what was found.
        expected: its mean for an ideal shuffle of all rows or, for those "in a window", of the window's.
        tolerance: how far from `expected` an ideal shuffle's value may be, on the side where `value` is.
        meaning: what the value says, in words.
        promised: whether the order promises it; if not, it is only shown.
    """

    name: str
    value: float
    expected: float
    tolerance: float
    meaning: str
    promised: bool = True

    @property
    def passed(self) -> bool:
        """Whether the value is within its tolerance, or was not promised."""
        return not self.promised or abs(self.value - self.expected) <= self.tolerance

    @property
    def verdict(self) -> str:
        """`"ok"`, `"FAILS"` or, if it was not promised, `"shown"`."""
        return ("ok" if self.passed else "FAILS") if self.promised else "shown"

    def as_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        names = ("name", "value", "expected", "tolerance", "meaning", "promised", "passed")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Quality:
    """What was measured of an epoch of an order.

    Attributes:
        order: the order's description.
        epoch: the epoch.
        batch_size: rows of a batch.
        sampled: how many of its positions were looked at.
        measures: the measures.
    """

    order: dict[str, int | str]
    epoch: int
    batch_size: int
    sampled: int
    measures: tuple[Measure, ...]

    @property
    def passed(self) -> bool:
        """Whether the order is as random as it promises."""
        return not self.failures

    @property
    def failures(self) -> tuple[Measure, ...]:
        """The measures that did not pass."""
        return tuple(measure for measure in self.measures if not measure.passed)

    def __getitem__(self, name: str) -> Measure:
        """Return the measure of a name, or raise `KeyError`."""
        for measure in self.measures:
            if measure.name == name:
                return measure
        raise KeyError(f"no measure {name!r}; there are {', '.join(measure.name for measure in self.measures)}")

    def as_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        return {
            "order": self.order,
            "epoch": self.epoch,
            "batch_size": self.batch_size,
            "sampled": self.sampled,
            "passed": self.passed,
            "measures": [measure.as_dict() for measure in self.measures],
        }

    def __str__(self) -> str:
        rows = [("measure", "value", "ideal", "tolerance", "")]
        rows += [
            (m.name, f"{m.value:.6g}", f"{m.expected:.6g}", f"{m.tolerance:.2g}", m.verdict) for m in self.measures
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for name, *numbers, verdict in rows:
            cells = (number.rjust(width) for number, width in zip(numbers, widths[1:], strict=False))
            lines.append("  ".join([name.ljust(widths[0]), *cells, verdict]).rstrip())
        return "\n".join(lines)
