"""One run of text, and the windows in which it is shown to moderators that have to be asked.

A *run* is consecutive text of one surface of one choice. It is counted in canonical characters (`relay.pure.fold`), and
positions go on counting when a surface resumes in a later run. Two kinds of moderator see it:

* *scanners* (a lexicon) read it as it comes and say at once how long a tail has to wait: it begins some phrase;
* *remote* moderators are shown windows. With `e1 < e2 < …` the ends of the windows cut so far, window i is
  `text[e(i-1) - (K-1) : e(i)]`: what is new, with the last K-1 characters before it. What stands before
  `e(i) - (K-1)` is cleared when the windows 1…i have passed, in order; the whole run when it has ended and its last
  window has passed.

If e(i) is the first end at or after the end of a span of at most K characters, the span starts no earlier than
`e(i-1) - (K-1)`: so window i shows it whole, and nothing of it was cleared. That is the guarantee (docs/moderation.md).

A window grows until it is shown to somebody: where calls are scarce windows get longer, and no queue does. In trailing
mode text may leave `lead_chars` before it is cleared; what was cleared is known all the same.

Nothing here knows frames, clocks or verdict details; `relay.pure.guard` does.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol, TypeAlias, cast

from relay.pure.escapes import SurrogatePairer, Unescaper
from relay.pure.fold import NOTHING, fold, longest_nothing, trailing_nothing
from relay.pure.ruling import Action
from relay.pure.surfaces import PROSE, Kind
from relay.pure.transcript import MAX_SHOWN_CHARS, Passage, Transcript

# More originals in a row that fold to nothing than any script needs: somebody hides something.
MAX_NOTHING: Final = 64
MAX_WINDOW_CHARS: Final = MAX_SHOWN_CHARS
# In canonical text: the fold has made ！ and ？ and ； ASCII, and … three full stops.
SENTENCE_ENDS: Final = "。!?.;\n"
_SENTENCE_ENDS: Final = frozenset(SENTENCE_ENDS)

# Where a mask can be put: in strings of these places, and beside them the logprobs go.
MASKABLE: Final = frozenset((*PROSE, *(f"message.{surface}" for surface in PROSE), "text", "logprobs.content"))

ALL: Final = sys.maxsize

_NAME: Final = Kind.NAME  # a look-up in an enumeration is a call


class Hit(NamedTuple):
    """A phrase found: half-open positions in canonical characters of its surface."""

    start: int
    end: int
    label: str
    action: Action
    moderator: str
    score: int = 0
    reference: str = ""


class Scanner(Protocol):
    """Reads one surface as it comes and knows exactly what it looks for."""

    held: int  # how many characters at the end may be the head of a phrase

    def feed(self, text: str) -> Sequence[Hit]:
        """Canonical text."""

    def finish(self) -> Sequence[Hit]:
        """The run has ended: what waited for a next character is decided. The surface may resume later."""


Ways: TypeAlias = "Mapping[str, Way]"
"""How a scanner goes on from where it stands, by the next text, as far as it knows: of any other it has to be asked."""

Way: TypeAlias = tuple[Ways, int, int]
"""The ways on from there, how long the copy of the text is, and how much of the end is held then."""

NO_WAYS: Final[Ways] = MappingProxyType({})


class Walker(Scanner, Protocol):
    """A scanner that most texts can be handed as they are, and that others may follow."""

    @property
    def ways(self) -> Ways:
        """Where it stands. Never empty where it is followed: who follows it has the next of them from here."""

    def take(self, text: str) -> int:
        """Text as it was written. How long its copy is; 0 if nothing was read, since there is more to say: `feed` it."""

    def walk(self, ways: Ways, length: int) -> None:
        """Whoever has followed it has come here, by texts whose copies have this length in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutting:
    """When a window is cut. Lengths in canonical characters."""

    holdback_chars: int = 16  # K: the longest span that the guarantee covers
    first_chars: int = 32  # the first window, beyond the holdback
    sentence_chars: int = 64
    max_chars: int = 400
    max_wait_s: float = 1.2
    context_chars: int = 0  # how much cleared text is shown again, if more than the K-1 that always are
    lead_chars: int = 0  # how far text may run ahead of its verdict

    @property
    def overlap(self) -> int:
        return self.holdback_chars - 1

    @property
    def shown_again(self) -> int:
        return max(self.overlap, self.context_chars)


class Window:
    """A piece of a run that remote moderators have to pass. Positions are canonical.

    fresh: where that begins which no window before it has shown; end: where it ends.
    passage: what is shown, and where that begins. shown: somebody has seen it; until then it grows with its run.
    """

    __slots__ = ("end", "fresh", "passage", "passed", "run", "shown")

    def __init__(self, run: Run, fresh: int, end: int, passage: Passage) -> None:
        self.run = run
        self.fresh = fresh
        self.end = end
        self.passage = passage
        self.shown = False
        self.passed = False

    @property
    def start(self) -> int:
        return self.passage.start

    @property
    def originals(self) -> int:
        """How many originals are new in it."""
        return self.originals_to(self.end)

    def originals_to(self, end: int) -> int:
        """How many of the originals that are new in it stand before a position."""
        run = self.run
        # Those at the end of a run that fold to nothing belong to its last window.
        last = run.originals if run.ended and end == run.end else self.passage.originals(end)
        return last - (run.began if self.fresh == run.start else self.passage.originals(self.fresh))


_UNKEPT: Final = Transcript()  # of a run that no windows are cut from


class Run:
    """Consecutive text of one surface of one choice, and how far it is cleared.

    horizon: canonical characters before this position may leave.
    end: canonical characters so far.
    """

    __slots__ = (
        "_ahead", "_cutting", "_named", "_pairer", "_passed", "_remote", "_scanners", "_sentence", "_sentence_at",
        "_transcript", "_unescaper", "ahead", "arguing", "before", "began", "beside", "choice", "cut", "due", "end",
        "ended", "evasion", "horizon", "masks", "name", "needs", "reached", "ripe_at", "scanner", "since", "start",
        "stopped", "surface", "walker", "windows", "withdrawn_from",
    )  # fmt: skip

    def __init__(
        self,
        choice: int | None,
        surface: str,
        cutting: Cutting,
        scanners: Sequence[Scanner] = (),
        *,
        remote: bool = False,
        resumes: Run | None = None,
    ) -> None:
        """`resumes` is the earlier run of the same surface, whose tail is context for this one."""
        self.choice = choice
        self.surface = surface
        self.beside = surface.startswith(("?", "logprobs."))  # it may come and go while another surface goes on
        self.name: str = (
            resumes.name if resumes is not None else ""
        )  # of a tool, as far as it came before the arguments
        self.arguing: bool = resumes is not None and resumes.arguing  # a tool's arguments have begun
        self.windows: deque[Window] = deque()
        self.ended = False
        self.stopped = False  # a violation was found in it
        self.evasion: int | None = None  # where a row of originals that fold to nothing was too long
        self.since = 0.0  # when the oldest character that is in no window came
        # A window that is ripe is so from this end of the run on, or from this time.
        self.ripe_at = 0
        self.due = 0.0
        self.masks: list[tuple[int, int]] = []  # what leaves masked, half-open
        self.withdrawn_from: int | None = None  # the original from which on a stopped run had left uncleared
        self.ahead = 0  # how many of them
        self._cutting = cutting
        self._scanners = scanners
        self.scanner = scanners[0] if len(scanners) == 1 else None  # the only one that reads along
        # The same, if it can be handed most texts as they are.
        self.walker = cast("Walker | None", self.scanner if hasattr(self.scanner, "walk") else None)
        self._remote = remote
        # Half an escape, or half a pair, waits here for its rest, which may come in a later run.
        self._unescaper: Unescaper | None = resumes._unescaper if resumes is not None else None
        self._pairer: SurrogatePairer | None = resumes._pairer if resumes is not None else None
        self._named = False  # a tool's name was read and its arguments have not begun
        self.before = 0  # originals at the end that fold to nothing
        self._sentence = 0  # the last sentence end
        self._sentence_at = 0.0  # when it came
        start: int = resumes.end if resumes is not None else 0
        self.end: int = start
        # The horizon at which everything read so far may leave. An original that folds to nothing belongs to the next
        # one that does not; so does half an escape.
        self.needs = start
        self.cut = start
        self.horizon = start
        self.reached = start  # the horizon when it was stopped
        self._passed = start
        # A call to a tool cannot be taken back.
        lead = 0 if surface.startswith(("tool_calls", "function_call")) else cutting.lead_chars
        self._ahead = lead - cutting.overlap  # of the last window that has passed
        # What windows still have to show.
        self._transcript = Transcript(start) if remote else _UNKEPT
        if resumes is not None and remote:
            tail = resumes.tail()
            self._transcript = Transcript(tail.start, tail.before)
            self._transcript.append(tail.written, tail.copy)
        self.start = start
        self.began = self._transcript.originals

    def tail(self) -> Passage:
        """What a window cut now would show."""
        return self._transcript.passage(self.cut - self._cutting.shown_again, self.end)

    def append(self, text: str, kind: Kind, now: float, *, lenient: bool = False) -> Sequence[Hit]:
        """Text that has come. `lenient`: it may hold halves of surrogate pairs.

        `needs` then tells when a frame that ends here may leave.
        """
        if kind:
            text = self._join(text, kind)
        if lenient or self._pairer is not None:
            if self._pairer is None:
                self._pairer = SurrogatePairer()
            text = self._pairer.feed(text)
        hits = self.extend(text, now) if text else ()
        unescaper, pairer = self._unescaper, self._pairer
        if (unescaper is not None and unescaper.pending) or (pairer is not None and pairer.pending):
            self.needs = self.end + 1
        return hits

    @property
    def originals(self) -> int:
        """How many originals it has so far, with those of the runs before it. Known for remote moderators only."""
        return self._transcript.originals

    @property
    def maskable(self) -> bool:
        """Whether its text stands where a mask can be put: in a string, or in one that is dropped instead."""
        return self.surface in MASKABLE and self.plain

    @property
    def plain(self) -> bool:
        """Whether its text has come as it is to be read, so that more of it may go to `extend`."""
        return self._unescaper is None and self._pairer is None

    def _join(self, text: str, kind: Kind) -> str:
        if kind is _NAME:
            self._named = True
            self.name += text
            return text
        self.arguing = True
        if self._unescaper is None:
            self._unescaper = Unescaper()
        line = "\n" if self._named else ""
        self._named = False
        return line + self._unescaper.feed(text)

    def extend(self, text: str, now: float) -> Sequence[Hit]:
        """Text as it is to be read, not empty. `append` is for what comes in pieces of another kind."""
        walker = self.walker
        if walker is not None and not self.before:
            length = walker.take(text)
            if length:
                start = self.end
                self.end = self.needs = end = start + length
                horizon = end - walker.held
                if self._remote:
                    copy = fold(text)
                    self._transcript.extend(text, copy)
                    if start == self.cut or not _SENTENCE_ENDS.isdisjoint(copy):
                        self._follow(copy, start, now)
                    cleared = self._passed + self._ahead
                    if cleared < horizon:
                        horizon = cleared
                if horizon > self.horizon and not self.stopped:
                    self.horizon = horizon
                return ()
        copy = fold(text)
        if self.before or text[-1] in NOTHING or len(text) > MAX_NOTHING:
            self._count_nothing(text)
        if not copy:
            self.needs = self.end + 1
            if self._remote:
                self._transcript.append(text, copy)
            return ()
        start = self.end
        self.end = end = start + len(copy)
        self.needs = end + 1 if self.before else end
        scanner = self.scanner
        if scanner is not None and not self._remote:
            found = scanner.feed(copy)
            horizon = end - scanner.held
            if horizon > self.horizon and not self.stopped:
                self.horizon = horizon
            return found
        if self._remote:
            self._transcript.append(text, copy)
            self._follow(copy, start, now)
        hits: Sequence[Hit] = ()
        for scanner in self._scanners:
            found = scanner.feed(copy)
            if found:
                hits = (*hits, *found)
        self._clear()
        return hits

    def followed(self, ways: Ways, end: int) -> int:
        """Whoever has followed the walker has come here, and nothing was found. Returns how much that was."""
        walker = self.walker
        assert walker is not None
        length = end - self.end
        walker.walk(ways, length)
        self.end = self.needs = end
        self._clear()
        return length

    def _follow(self, copy: str, start: int, now: float) -> None:
        """Note what decides when a window is cut: when its text began to come, and where a sentence ends."""
        if start == self.cut:
            self._count_from(now)
        if not _SENTENCE_ENDS.isdisjoint(copy):
            self._sentence = start + max(map(copy.rfind, SENTENCE_ENDS)) + 1
            self._sentence_at = now
            if self._sentence - self.cut >= self._cutting.sentence_chars:
                self.ripe_at = 0

    def _count_from(self, since: float) -> None:
        """The oldest character that is in no window has come then, or will."""
        cutting = self._cutting
        self.since = since
        self.due = since + cutting.max_wait_s
        if self._sentence - self.cut >= cutting.sentence_chars:
            self.ripe_at = 0
        elif self.cut:
            self.ripe_at = self.cut + cutting.max_chars
        else:
            self.ripe_at = min(cutting.max_chars, cutting.first_chars + cutting.overlap)

    def _count_nothing(self, text: str) -> None:
        if len(text) + self.before > MAX_NOTHING and longest_nothing(text, self.before) > MAX_NOTHING:
            self.evasion = self.end
        if text[-1] in NOTHING:
            row = trailing_nothing(text)
            self.before = row + self.before if row == len(text) else row
        else:
            self.before = 0

    def finish(self, now: float, *, resumable: bool = False) -> Sequence[Hit]:
        """The run has ended: nothing more of it will come. `resumable`: a later run of its surface may."""
        if self.ended:
            return ()
        hits: Sequence[Hit] = ()
        if not resumable:
            rest = self._unescaper.finish() if self._unescaper is not None else ""
            if self._pairer is not None:
                rest = self._pairer.feed(rest) + self._pairer.finish()
            if rest:
                hits = self.extend(rest, now)
        self.ended = True
        for scanner in self._scanners:
            found = scanner.finish()
            if found:
                hits = (*hits, *found)
        self._clear()
        return hits

    # Windows, for remote moderators only

    def ripe(self, now: float) -> bool:
        """Whether a window should be cut now."""
        fresh = self.end - self.cut
        windows = self.windows
        if not fresh or self.stopped or (windows and not windows[-1].shown):
            return False
        cutting = self._cutting
        return (
            self.ended
            or fresh >= cutting.max_chars
            or (not self.cut and fresh >= cutting.first_chars + cutting.overlap)
            or self._sentence - self.cut >= cutting.sentence_chars
            or now >= self.due
        )

    def deadline(self) -> float | None:
        """When a window has to be cut if nothing else happens."""
        if self.end == self.cut or self.stopped or self._growing:
            return None
        return self.due

    @property
    def _growing(self) -> bool:
        """Whether what comes now joins a window that nobody has seen yet."""
        return bool(self.windows) and not self.windows[-1].shown

    def take(self, now: float) -> Window | None:
        """Cut a window: all that is new, or up to the last sentence end if that is enough. None if nothing is new."""
        if self.end == self.cut or self.stopped or self._growing:
            return None
        self._transcript.forget(self.cut - self._cutting.shown_again)
        window = Window(self, self.cut, self.cut, Passage(self.cut, "", 0, ""))
        self.windows.append(window)
        self._extend(window, now)
        return window

    def show(self, window: Window, now: float) -> str:
        """What somebody is about to see of a window: by now, if none was cut after it. Empty: nothing any more."""
        if self.stopped:
            return ""
        if self.windows and self.windows[-1] is window:  # none was cut after it
            self._extend(window, now)
        window.shown = True
        return window.passage.shown

    def _extend(self, window: Window, now: float) -> None:
        """Let a window, the newest, end as far on as it should."""
        cutting = self._cutting
        end = min(self.end, window.fresh + MAX_WINDOW_CHARS - cutting.shown_again)
        waited = now >= self._sentence_at + cutting.max_wait_s  # what stands behind the sentence end too
        if not self.ended and not waited and self._sentence - window.fresh >= cutting.sentence_chars:
            end = min(end, self._sentence)
        end = max(end, window.end)
        passage = self._transcript.passage(window.fresh - cutting.shown_again, end)
        if (more := len(passage.copy) - MAX_WINDOW_CHARS) > 0:  # it begins with an original whose copy is long
            end = max(end - more, window.end)
            passage = self._transcript.passage(window.fresh - cutting.shown_again, end)
        window.passage = passage
        window.end = self.cut = end
        # What stands behind a sentence end came with it or later.
        self._count_from(self._sentence_at if end == self._sentence else now)

    def passed(self, window: Window) -> None:
        """A window is cleared; its text leaves only after that of the windows before it."""
        window.passed = True
        while self.windows and self.windows[0].passed:
            self._passed = self.windows.popleft().end
        self._clear()

    def _clear(self) -> None:
        if self.stopped:
            return
        if self.ended and not self.windows and (not self._remote or self.cut == self.end):
            self.horizon = ALL
            return
        held = 0
        for scanner in self._scanners:
            if scanner.held > held:  # not max(): this runs for every frame
                held = scanner.held
        horizon = self.end - held
        if self._remote:
            horizon = min(horizon, self._passed + self._ahead)
        if horizon > self.horizon:
            self.horizon = horizon

    def stop(self, position: int) -> None:
        """Nothing from `position` on may ever leave."""
        cleared = self._passed - self._cutting.overlap
        if self._remote and not self.stopped and max(cleared, 0) < self.horizon < ALL:
            self.withdrawn_from = self._originals(cleared)
            self.ahead = self._originals(min(self.horizon, self.end)) - self.withdrawn_from
        if not self.stopped:
            self.reached = self.horizon
        self.stopped = True
        self.windows.clear()
        self.horizon = min(self.horizon, position)

    def _originals(self, position: int) -> int:
        """How many originals stand before a position that is not cleared yet."""
        for window in self.windows:
            if position <= window.end:
                return window.passage.originals(position)
        return self.tail().originals(position)

    @property
    def uncut(self) -> bool:
        """Whether windows may still have to be cut from it."""
        return not self.stopped and (not self.ended or self.cut < self.end)
