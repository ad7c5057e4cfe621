"""One choice of a reply: the runs that its texts make, and what is found in them.

A run is opened by the first text of a surface, and ended by its choice's finish, by the end of the upstream, and by the
first frame of the choice that has text on another surface and none on this one. A surface may resume in a later run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from relay.pure.surfaces import ChoiceReading, Kind, Text
from relay.pure.window import ALL, Cutting, Hit, Run, Scanner

# A choice with more surfaces than this is no reply. Two texts must never share one surface: each could hide what the
# other says.
MAX_SURFACES: Final = 256


class State(Enum):
    LIVE = "live"
    FINISHED = "finished"
    BLOCKED = "blocked"


# A look-up in an enumeration is a call.
LIVE: Final = State.LIVE
_NAME: Final = Kind.NAME


@dataclass(slots=True)
class Common:
    """What all choices of a reply share.

    scanners: opens those of one surface. remote: whether windows are cut. trailing: whether text may leave uncleared.
    uncut: runs that windows may have to be cut from, oldest first. found: what nobody has dealt with yet.
    """

    cutting: Cutting
    scanners: Callable[[], Sequence[Scanner]]
    remote: bool
    trailing: bool
    uncut: list[Run] = field(default_factory=list)
    found: list[tuple[Choice, Run, Hit]] = field(default_factory=list)


class Choice:
    """See the head of this file. index: None for what belongs to no choice."""

    __slots__ = ("_common", "ended", "index", "runs", "scanners", "started", "state", "trail")

    def __init__(self, index: int | None, common: Common) -> None:
        self.index = index
        self.state: State = LIVE
        self.started = False  # a frame of it has left
        self.runs: dict[str, Run] = {}  # the open ones, by surface
        self.ended: dict[str, Run] = {}  # the last ended one of each surface, for its tail
        self.scanners: dict[str, Sequence[Scanner]] = {}
        self.trail: list[Run] = []  # those not wholly cleared, if text may leave before it is
        self._common = common

    def bound(self, texts: Sequence[Text]) -> None:
        """Raises ValueError if these texts give it more surfaces than any choice has."""
        if len(self.scanners) + len(texts) > MAX_SURFACES:
            surfaces = self.scanners.keys() | {surface for surface, _, _ in texts}
            if len(surfaces) > MAX_SURFACES:
                raise ValueError("too many surfaces")

    def read(self, part: ChoiceReading, waits: dict[Run, int], now: float, *, lenient: bool) -> None:
        """Take in what it says in one frame. `waits` is told what the frame has to wait for."""
        if part.texts:
            touched: set[Run] = set()
            for surface, kind, said in part.texts:
                run, text = self.runs.get(surface) or self.open(surface), said
                if kind is _NAME and run.arguing:
                    run, text = self._late_name(run, said)
                hits = run.append(text, kind, now, lenient=lenient)
                if hits or run.evasion is not None:
                    self.hits(run, hits)
                touched.add(run)
                waits[run] = run.needs
            if len(self.runs) > 1:
                self._end_others(touched, now)
        if part.finished:
            self.state = State.FINISHED
            self.end_runs(now)
            # Behind its finish nothing of a choice can be taken back.
            waits.update((run, ALL) for run in self.trail if run.horizon < ALL)

    def open(self, surface: str) -> Run:
        common = self._common
        if surface not in self.scanners:
            self.scanners[surface] = common.scanners()
        run = self.runs[surface] = Run(
            self.index,
            surface,
            common.cutting,
            self.scanners[surface],
            remote=common.remote,
            resumes=self.ended.get(surface),
        )
        if common.remote:
            common.uncut.append(run)
        if common.trailing:
            self.trail = [other for other in self.trail if other.horizon < ALL]
            self.trail.append(run)
        return run

    def hits(self, run: Run, hits: Sequence[Hit]) -> None:
        """What was found in the newest text of a run."""
        found = self._common.found
        found.extend((self, run, hit) for hit in sorted(hits))
        if run.evasion is not None:
            found.append((self, run, Hit(run.evasion, run.end, "evasion", "block", "guard")))
            run.evasion = None

    def end_runs(self, now: float) -> None:
        for run in tuple(self.runs.values()):
            self._end_run(run, now)

    def stop_runs(self) -> None:
        """Nothing of it leaves any more that was not cleared."""
        for run in (*self.runs.values(), *self.ended.values(), *self.trail):
            run.stop(run.horizon)

    def _late_name(self, run: Run, text: str) -> tuple[Run, str]:
        """More of a tool's name when its arguments have begun: a run of its own, that begins with the name so far.

        Readers join names with names and arguments with arguments; here each would hide what the other says.
        """
        surface = run.surface + ".name"
        names = self.runs.get(surface)
        if names is not None:
            return names, text
        return self.open(surface), text if surface in self.ended else run.name + text

    def _end_others(self, touched: set[Run], now: float) -> None:
        """Text on one surface ends the runs of the others. What only comes and goes beside it ends no such run."""
        main = any(not run.beside for run in touched)
        for run in tuple(self.runs.values()):
            if run not in touched and (main or run.beside):
                self._end_run(run, now, resumable=True)

    def _end_run(self, run: Run, now: float, *, resumable: bool = False) -> None:
        hits = run.finish(now, resumable=resumable)
        if hits:
            self.hits(run, hits)
        self.ended[run.surface] = self.runs.pop(run.surface)
