"""What stands in a guard's queue: frames that wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from relay.pure import tokens
from relay.pure.choice import Choice
from relay.pure.openai import Chunk
from relay.pure.window import NO_WAYS, Hit, Run, Ways


class Held:
    """A frame in the queue, or the closing of a choice that we ended.

    choices: one entry a choice of the frame, in its order; a choice may stand there twice.
    chars: how many characters each entry says, and last those that belong to no choice.
    waits: it may leave when each run is cleared up to the position beside it.
    dropped: entries that may not leave.
    since: when it came; the caller's clock.
    """

    # What few frames have stands in the class: one of these is made for every frame.
    waits: tuple[tuple[Run, int], ...] = ()
    dropped: frozenset[int] = frozenset()
    closes: Choice | None = None

    def __init__(
        self, chunk: Chunk, choices: tuple[Choice, ...], chars: tuple[int, ...] = (), since: float = 0.0
    ) -> None:
        self.chunk = chunk
        self.choices = choices
        self.chars = chars
        self.since = since

    @classmethod
    def closing(cls, choice: Choice) -> Held:
        held = cls(NOTHING_SAID, ())
        held.closes = choice
        return held

    @property
    def size(self) -> int:
        return self.chunk.size

    @property
    def ready(self) -> bool:
        return all(run.horizon >= need for run, need in self.waits)

    def waits_for(self, choice: Choice) -> bool:
        """Whether text of this choice keeps it."""
        return any(run.choice == choice.index and run.horizon < need for run, need in self.waits)

    def says_only(self, run: Run) -> bool:
        """Whether it is a frame with text of this run, and of nothing else."""
        return len(self.waits) == 1 and self.waits[0][0] is run and len(self.chars) == 1

    def drop(self, choice: Choice) -> None:
        self.dropped |= {entry for entry, other in enumerate(self.choices) if other is choice}
        self.waits = tuple((run, need) for run, need in self.waits if run.choice != choice.index)


class Lane:
    """The whole queue while a choice says nothing but more of its one run: the commonest case, without a `Held` a frame.

    room: how many bytes may wait in it. remote: whether windows are cut. estimated: whether tokens are counted.
    newest: the last frame that it was told. produced: estimated tokens. longest_hold_s, first_hold_s: how long a frame that
    has left had waited, at most and the first of them. found: what the scanners found in the newest frame.

    Where one scanner alone has a say, and knows how texts go on, the lane follows it by itself: it keeps where they both
    stand, and tells the run and the scanner when it is done (`settle`).
    """

    __slots__ = (
        "_came", "_end", "_estimated", "_frames", "_remote", "_ways", "bytes", "choice", "first_hold_s", "found", "index",
        "longest_hold_s", "newest", "produced", "room", "run",
    )  # fmt: skip

    def __init__(self, choice: Choice, run: Run, room: int, *, remote: bool, estimated: bool) -> None:
        self.choice = choice
        self.index = choice.index
        self.run = run
        self.newest: Chunk = NOTHING_SAID
        self.bytes = 0  # of the frames that wait
        self._came = 0
        self.longest_hold_s = 0.0
        self.first_hold_s: float | None = None
        self.found: Sequence[Hit] = ()
        self.room = room
        self.produced = 0.0
        self._remote = remote
        self._estimated = estimated
        self._end = run.end  # of what was read
        self._ways: Ways = NO_WAYS  # how the scanner goes on from there, by the next text
        # Chunk, horizon of the run at which it may leave, characters, when it came.
        self._frames: deque[tuple[Chunk, int, int, float]] = deque()

    @property
    def came(self) -> int:
        """How many characters."""
        return self._came + self._end - self.run.end

    def say(self, chunk: Chunk, text: str, now: float, release: Callable[[Chunk], None]) -> bool:
        """A frame that says `text`. What may leave is released.

        False if that is not all that has to be done: something was found, too much waits, or a window is ripe.
        """
        way = self._ways.get(text)
        if way is None:
            return self._say(chunk, text, now, release)
        self._ways, length, held = way
        self._end = end = self._end + length
        self.newest = chunk
        if self._estimated:
            self.produced += tokens.estimate(text)
        frames = self._frames
        if frames and frames[0][1] <= end - held:
            self._release(end - held, now, release)
        if not held:  # and so nothing waits any more
            release(chunk)
            return True
        frames.append((chunk, end, length, now))
        self.bytes = waiting = self.bytes + chunk.size
        return waiting <= self.room

    def _say(self, chunk: Chunk, text: str, now: float, release: Callable[[Chunk], None]) -> bool:
        """The same of any text, whoever has a say."""
        if self._ways is not NO_WAYS:
            self.settle()
        run, frames = self.run, self._frames
        found = run.extend(text, now)
        self._end = run.end
        self.newest = chunk
        said = len(text)
        self._came += said
        if self._estimated:
            self.produced += tokens.estimate(text)
        well = not found and run.evasion is None
        horizon, need = run.horizon, run.needs
        if not well:
            self.found = found
            self._wait(chunk, need, said, now)
        else:
            if frames and frames[0][1] <= horizon:
                self._release(horizon, now, release)
            if need <= horizon and not frames:
                if self.first_hold_s is None:
                    self.first_hold_s = 0.0
                release(chunk)
            else:
                self._wait(chunk, need, said, now)
                well = self.bytes <= self.room
        if self._remote:
            return well and not ((run.end >= run.ripe_at or now >= run.due) and run.ripe(now))
        # From here on by oneself, if nobody but one scanner has a say and no character before belongs to the next; what the
        # first frame had waited is noted on the long way.
        if run.walker is not None and not run.before and self.first_hold_s is not None:
            self._ways = run.walker.ways
        return well

    def settle(self) -> None:
        """Tell the run and its scanner how far they have come."""
        ways, self._ways = self._ways, NO_WAYS
        if ways is not NO_WAYS:
            self._came += self.run.followed(ways, self._end)

    def release(self, now: float, release: Callable[[Chunk], None]) -> None:
        """More of the run is cleared: what may leave is released."""
        horizon = self.run.horizon
        if self._frames and self._frames[0][1] <= horizon:
            self._release(horizon, now, release)

    def _release(self, horizon: int, now: float, release: Callable[[Chunk], None]) -> None:
        frames = self._frames
        held_s = now - frames[0][3]  # none has waited longer than the first
        if held_s > self.longest_hold_s:  # noqa: PLR1730 - a call of max() costs as much as ten of these
            self.longest_hold_s = held_s
        if self.first_hold_s is None:
            self.first_hold_s = held_s
        while frames and frames[0][1] <= horizon:
            chunk = frames.popleft()[0]
            self.bytes -= chunk.size
            release(chunk)

    def _wait(self, chunk: Chunk, need: int, said: int, since: float) -> None:
        self._frames.append((chunk, need, said, since))
        self.bytes += chunk.size

    def take(self, held: Held) -> None:
        """Take a frame that waits for more of the run, and for nothing else."""
        [(_, need)] = held.waits
        [said] = held.chars
        self._came += said
        self._wait(held.chunk, need, said, held.since)

    def held(self) -> Iterator[Held]:
        """The frames that wait."""
        for chunk, need, said, since in self._frames:
            held = Held(chunk, (self.choice,), (said,), since)
            held.waits = ((self.run, need),)
            yield held


NOTHING_SAID: Final = Chunk(b"", b"")
