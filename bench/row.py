"""One row of the table: a quantity, measured several times for the relay and for each of its peers."""

import math
import statistics
from dataclasses import dataclass, field
from typing import Any, Final

# In the names of rows; the one is shown with the other.
MEDIAN: Final = "p50"
TAIL: Final = "p99"


@dataclass
class Row:
    """figures: by whose they are, one a round; NaN where there was nothing to measure. digits:
    after the point.

    key: the same for the same quantity in every run. shown: in the table; headline: in README's too. note: what else a
    reader should know. streams: how many, of rows that are points of the curve.
    """

    group: str
    key: str
    name: str
    unit: str
    figures: dict[str, list[float]]
    digits: int = 1
    headline: bool = True
    note: str = ""
    streams: int = 0
    shown: bool = True

    def median(self, who: str) -> float | None:
        """None if it was not measured."""
        measured = [each for each in self.figures.get(who, []) if not math.isnan(each)]
        return statistics.median(measured) if measured else None

    def ratio(self, mine: str, other: str) -> float | None:
        """How many times the other's figure is one's own; None if that says nothing."""
        own, beside = self.median(mine), self.median(other)
        return None if own is None or beside is None or beside <= 0 else own / beside

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "medians": {who: self.median(who) for who in self.figures}}


@dataclass
class Table:
    """What one run measured. foot: lines that a reader has to know beside the rows. made: when, where and how."""

    rows: list[Row]
    foot: list[str] = field(default_factory=list)
    made: dict[str, Any] = field(default_factory=dict)
