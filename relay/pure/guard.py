"""The guard of one reply: which of its frames may leave, when, and what takes the place of those that may not.

Frames go in with `feed`, verdicts with `judged`, `unjudged` and `failed`, the end of the upstream with `end`. What comes
out stands in `released` (chunks that may leave, in order) and `checks` (windows somebody has to ask a moderator about,
who calls `show` for the text when he is about to); the caller takes both after every call. The guard never awaits and
reads no clock: `relay.gate` drives it.

How it works. Every frame is queued with what it waits for: for each text in it, the run and the position that has to be
cleared. Within a choice frames leave in order; between choices as they came, but when the guard is full a frame may
pass frames of another choice. A run ends at its choice's finish, at the end of the upstream, and at the first frame of
the choice that has text on another surface and none on this one: its tail then waits for nothing more.

A violation ends its choice: what was cleared before it leaves, the rest is dropped, a closing frame says
`finish_reason: "content_filter"`. When no choice is left, `over` asks the caller to stop the upstream. What is to be
masked is masked in the frame that says it, when that leaves.

In trailing mode text may leave before its verdict. Then what ends a choice waits for all its verdicts, and a last frame
tells the client what to take back.

Progress. `held_bytes` is a reason to cut windows, and to pause the upstream only while a check is in flight
(`wants_pause`). A guard that is full, waits for no check and can release nothing ends the reply: `moderation_stalled`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from relay.pure import closing, rewrite, tokens
from relay.pure.choice import LIVE, MAX_SURFACES, Choice, Common, State
from relay.pure.held import NOTHING_SAID, Held, Lane
from relay.pure.openai import Chunk, Frame, envelope
from relay.pure.plain import plain_text
from relay.pure.policy import Policy
from relay.pure.ruling import Ruling
from relay.pure.surfaces import PROSE, ChoiceReading, Reading, Text, read
from relay.pure.tally import Tally, Violation
from relay.pure.window import Hit, Run, Scanner, Window

# A reply has at most 128 choices (OpenAI's limit of `n`); a stream that numbers more of them is no reply.
MAX_CHOICES: Final = 128


class Guard:
    """See the head of this file. One a reply.

    scanners: opens the scanners of one surface.
    remote: whether windows are cut for moderators that have to be asked.
    choices: how many choices were asked for (`n`).
    usage: whether the client asked for a usage frame; prompt_tokens: tells our estimate, for a reply that we cut.
    whole: the reply is not streamed: one frame, whose messages are rewritten where they violate.
    """

    def __init__(
        self,
        policy: Policy,
        scanners: Callable[[], Sequence[Scanner]] = tuple,
        *,
        remote: bool = False,
        choices: int = 1,
        usage: bool = False,
        prompt_tokens: Callable[[], int] = int,
        whole: bool = False,
    ) -> None:
        self.released: list[Chunk] = []
        self.checks: list[Window] = []
        self.in_flight = 0
        self.over = False  # nothing more is needed from the upstream
        self.failure: str | None = None  # the code of the in-stream error that ends the reply
        self.tally = Tally()
        self._policy = policy
        cutting = policy.cutting
        if whole and cutting.lead_chars:
            cutting = replace(cutting, lead_chars=0)
        self._trailing = remote and policy.hold and cutting.lead_chars > 0
        self._common = Common(cutting, scanners, remote, self._trailing)
        self.remote = remote
        self._expected = choices
        self._wants_usage = usage
        self._prompt_tokens = prompt_tokens
        self._whole = whole
        self._choices: dict[int, Choice] = {}
        self._loose_choice: Choice | None = None
        self._loose_said: Sequence[Text] = ()  # by the last frame that had any
        self._loose_waits: dict[Run, int] = {}  # what that frame waits for
        self._queue: deque[Held] = deque()
        # The frames behind it, while they are of the commonest kind: who has one more of its choice may tell it, and has
        # `look` called if it says so.
        self.lane: Lane | None = None
        self._held = 0  # bytes in the queue
        self._room = policy.held_bytes  # what may be held before somebody looks again what can be done about it
        self._ending = False
        self._now = 0.0  # what the clock showed last
        self._newest = NOTHING_SAID  # the newest frame with choices, for what all frames share
        self._usage: Frame | None = None
        self._produced = 0.0  # estimated tokens that the upstream has produced

    # What the caller looks at

    @property
    def finished(self) -> bool:
        """After `end`: nothing is held any more, and no verdict is due that could take something back."""
        if not self._ending or self._queue or self.lane is not None:
            return False
        return not self._trailing or self.over or not (self.in_flight or self._common.uncut)

    @property
    def cut(self) -> bool:
        """Whether a choice was ended for a violation."""
        return any(choice.state is State.BLOCKED for choice in self._choices.values())

    @property
    def wants_pause(self) -> bool:
        held = self._held + self.lane.bytes if self.lane is not None else self._held
        return held > self._policy.held_bytes and self.in_flight > 0

    def deadline(self) -> float | None:
        """When `tick` has to be called if nothing else happens; None if it need not."""
        if not self._common.uncut or self.in_flight >= self._policy.depth:
            return None
        return min((due for run in self._common.uncut if (due := run.deadline()) is not None), default=None)

    # What happens

    def feed(self, chunk: Chunk, now: float) -> None:
        """A frame has come from the upstream."""
        if self._ending or self.over:
            return
        said = chunk.said
        if said is None and chunk.plain and not self._whole:
            said = plain_text(chunk.data)
        if said is not None:
            index, text = said
            lane = self.lane
            if lane is None or lane.index != index:
                lane = self._open_lane(index)
            if lane is not None:
                if not lane.say(chunk, text, now, self.released.append):
                    self.look(now)
                return
        if self.lane is not None:
            self._close_lane()
        self._take(chunk, now)

    def look(self, now: float) -> None:
        """The lane has been told something after which more has to be done."""
        lane = self.lane
        assert lane is not None
        if lane.found or lane.run.evasion is not None:
            self._close_lane()
            lane.choice.hits(lane.run, lane.found)
            self._violations()
        elif lane.bytes > self._room:
            self._close_lane()
        self._move(now)

    def _take(self, chunk: Chunk, now: float) -> None:
        """A frame of any kind."""
        try:
            reading, forwarded = self._understood(chunk)
            choices = self._choices_of(reading)
        except (ValueError, RecursionError):
            self._malformed(chunk, now)
            return
        if reading.unknown:
            self._count_unread(reading)
        if choices:
            self._newest = forwarded
        usage = (chunk.json or {}).get("usage")
        if usage:
            self._usage = usage
        held = Held(forwarded, tuple(choices), (), now)
        waits: dict[Run, int] = {}
        chars: list[int] = []
        dropped: list[int] = []
        for entry, (choice, part) in enumerate(zip(choices, reading.choices, strict=True)):
            said = sum([len(text) for _, _, text in part.texts]) if part.texts else 0
            chars.append(said)
            if choice.state is LIVE:
                self.tally.came += said
                choice.read(part, waits, now, lenient=chunk.lenient)
                if part.texts and self._wants_usage:
                    self._produced += tokens.estimate(part.texts[0][2])
            elif choice.state is State.BLOCKED or part.texts:
                self.tally.late += said
                dropped.append(entry)
        if reading.loose:
            said = sum(len(text) for _, _, text in reading.loose)
            chars.append(said)
            self.tally.came += said
            # What every frame of a stream repeats is read once; each of them waits for its verdict.
            if reading.loose != self._loose_said:
                self._loose_said, self._loose_waits = reading.loose, {}
                said_once = ChoiceReading(0, reading.loose, finished=True)
                self._loose.read(said_once, self._loose_waits, now, lenient=chunk.lenient)
            waits |= self._loose_waits
        held.chars = tuple(chars)
        if self._policy.hold:
            if waits:
                held.waits = tuple(waits.items())
            if dropped:
                held.dropped = frozenset(dropped)
        self._queue.append(held)
        self._held += held.size
        if self._common.found:
            self._violations()
        self._move(now)

    def _understood(self, chunk: Chunk) -> tuple[Reading, Chunk]:
        """What a frame says, and the chunk to forward. Raises ValueError or RecursionError."""
        frame = chunk.json
        if frame is None:
            raise ValueError("no object")
        reading: Reading | None = None if self._whole else chunk.reading
        if reading is None:
            reading = read(frame, whole=self._whole)
        return reading, rewrite.forwardable(chunk, reading, self._policy, whole=self._whole)

    def _choices_of(self, reading: Reading) -> list[Choice]:
        """Whose each part of it is. Raises ValueError."""
        choices = [self._choice(part.index, part.texts) for part in reading.choices]
        if reading.loose:
            self._loose.bound(reading.loose)
        if self._whole and len(set(choices)) < len(choices):
            raise ValueError("a choice stands twice in one reply")
        return choices

    def _open_lane(self, index: int) -> Lane | None:
        """The lane of a choice that has one run open, of `content`, if nothing but text of that waits."""
        if self.lane is not None:
            self._close_lane()
        choice = self._choices.get(index)
        if choice is None or choice.state is not LIVE or not self._policy.hold:
            return None
        if not choice.runs and len(choice.scanners) < MAX_SURFACES:
            choice.open("content")
        run = choice.runs.get("content") if len(choice.runs) == 1 else None
        if run is None or not run.plain or run.masks:
            return None
        if self._queue and not all(held.says_only(run) for held in self._queue):
            return None
        self.lane = lane = Lane(choice, run, self._room, remote=self.remote, estimated=self._wants_usage)
        for held in self._queue:
            lane.take(held)
            self.tally.came -= held.chars[0]
        self._queue.clear()
        self._held = 0
        return lane

    def _close_lane(self) -> None:
        """Put the frames of the lane where they can be treated one by one; what follows is of another kind."""
        lane, self.lane = self.lane, None
        if lane is None:
            return
        lane.settle()
        if lane.newest is not NOTHING_SAID:
            self._newest = lane.newest
        self._produced += lane.produced
        self._queue.extend(lane.held())
        self._held += lane.bytes
        left = lane.came - sum(held.chars[0] for held in self._queue)
        lane.choice.started = lane.choice.started or left > 0
        tally = self.tally
        tally.came += lane.came
        tally.released += left
        tally.longest_hold_s = max(tally.longest_hold_s, lane.longest_hold_s)
        if tally.first_hold_s is None:
            tally.first_hold_s = lane.first_hold_s

    def tick(self, now: float) -> None:
        """Time has passed."""
        self._move(now)

    def show(self, window: Window, now: float) -> str:
        """The text of a window, for whoever is about to be asked: what there is by now. Empty: nobody need be."""
        return window.run.show(window, now)

    def judged(self, window: Window, ruling: Ruling, now: float) -> None:
        """What the moderators say of a window. One that is blocked does not leave, as far as it has not left."""
        lane = self.lane
        if (
            ruling.action == "pass"
            and lane is not None
            and lane.run is window.run
            and lane.bytes <= self._policy.held_bytes
        ):
            self._clear_lane(lane, window, now)
            return
        self._heard()
        choice, run = self._choice_of(window), window.run
        places = [(window.start, window.end)]
        action = ruling.action
        if action == "mask":
            masks = window.passage.places(ruling.masks) if run.maskable else None
            if masks is not None and not self._trailing:  # without those that an earlier window has shown
                masks = [place for place in masks if place[1] > run.horizon and place not in run.masks]
            action, places = ("mask", masks) if masks is not None else ("block", places)
        if action != "pass":
            cause = (ruling.label, action, ruling.moderator, ruling.score, ruling.reference)
            self._common.found.extend((choice, run, Hit(start, end, *cause)) for start, end in places)
            self._violations()
        run.passed(window)
        self.in_flight -= 1
        self._move(now)

    def _clear_lane(self, lane: Lane, window: Window, now: float) -> None:
        """The commonest verdict: frames of the lane may leave, and it stays open."""
        window.run.passed(window)
        self.in_flight -= 1
        self._room = lane.room = self._policy.held_bytes
        lane.release(now, self.released.append)
        if self._common.uncut:
            self._cut(now)

    def unjudged(self, window: Window, reason: str, heard: Ruling, now: float) -> None:
        """A moderator said nothing of a window, and it may leave all the same, as far as what was `heard` lets it."""
        self.tally.unjudged(window, reason)
        self.judged(window, heard, now)

    def failed(self, window: Window, now: float) -> None:
        """No moderator said anything of a window, and nothing may leave without a verdict."""
        self._heard()
        if not self._policy.hold:
            window.run.passed(window)
            self.in_flight -= 1
            return
        # For a choice that has ended nobody waits any more.
        if self._choice_of(window).state is not State.BLOCKED and not self.finished:
            self._fail("moderation_unavailable")
        self.in_flight -= 1
        self._move(now)

    def end(self, now: float) -> None:
        """The upstream has ended, or was stopped: no more frames. When all is released, `finished` is true."""
        if self._ending:
            return
        self._ending = True
        self._close_lane()
        for choice in self._choices.values():
            choice.end_runs(now)
        if self._common.found:
            self._violations()
        self._move(now)

    def abandon(self) -> None:
        """Nobody reads any more: what is held is dropped."""
        self._ending = self.over = True
        self._drop_queue()
        self._take_back()

    def give_up(self) -> None:
        """The reply ends here: what is cleared leaves, what is held is dropped."""
        self.over = self._ending = True
        self._release()
        self._drop_queue()
        self._take_back()

    # Reading

    def _choice(self, index: int, texts: Sequence[Text] = ()) -> Choice:
        """The choice with this index, which is to say `texts`. Raises ValueError if a reply cannot have it."""
        choice = self._choices.get(index)
        if choice is None:
            if len(self._choices) >= MAX_CHOICES:
                raise ValueError("too many choices")
            choice = self._choices[index] = Choice(index, self._common)
        choice.bound(texts)
        return choice

    @property
    def _loose(self) -> Choice:
        """What belongs to no choice."""
        if self._loose_choice is None:
            self._loose_choice = Choice(None, self._common)
        return self._loose_choice

    # Violations

    def _violations(self) -> None:
        found, self._common.found = self._common.found, []
        for choice, run, hit in found:
            start, end, label, action, moderator, score, reference = hit
            # What has left already cannot be masked; what is ahead of its verdict can be taken back.
            if action == "mask" and (not run.maskable or (self._trailing and start < run.horizon)):
                action = "block"
            self.tally.found(Violation(choice.index, run.surface, start, label, moderator, action, score, reference))
            if action == "block":
                self.tally.blocked += end - max(start, 0)
                if self._policy.hold:
                    run.stop(start)
            elif action == "mask" and self._policy.hold:
                run.masks.append((start, end))
        for choice in dict.fromkeys(choice for choice, run, _ in found if run.stopped):
            if self.finished:
                return
            if self._policy.on_violation == "error":
                self._fail("content_filter")
            elif choice is self._loose:
                self._block_all()
            else:
                self._block(choice)

    def _block(self, choice: Choice) -> None:
        """End a choice from the first frame on that waits for its text; of one that has ended, perhaps earlier now."""
        queue = list(self._queue)
        first = next((n for n, held in enumerate(queue) if held.waits_for(choice)), len(queue))
        for held in queue[first:]:
            held.drop(choice)
        if choice.state is State.BLOCKED:
            return
        if not self._whole:
            queue.insert(first, Held.closing(choice))
        self._queue = deque(queue)
        self._close(choice)

    def _block_all(self) -> None:
        """A string outside the choices violates: its frame and all after it are dropped, every choice ends."""
        if self._whole:
            self._fail("content_filter")
            return
        queue = list(self._queue)
        first = next((n for n, held in enumerate(queue) if held.waits_for(self._loose)), len(queue))
        closings = [held for held in queue[first:] if held.closes is not None]
        rest = [held for held in queue[first:] if held.closes is None]
        unsaid = {choice for held in rest for choice in held.choices}
        self._held -= sum(held.size for held in rest)
        self._queue = deque(queue[:first] + closings)
        for choice in list(self._choices.values()) or [self._choice(0)]:
            if choice.state is LIVE or choice in unsaid:
                self._block(choice)
        self.over = True

    def _close(self, choice: Choice) -> None:
        choice.state = State.BLOCKED
        choice.stop_runs()
        self._common.uncut = [run for run in self._common.uncut if run.choice != choice.index]
        live = any(other.state is LIVE for other in self._choices.values())
        if not live and len(self._choices) >= self._expected:
            self.over = True

    def _fail(self, code: str) -> None:
        """End the reply with an error, after what is cleared."""
        if self.failure is None:
            self.failure = code
        self.give_up()

    def _take_back(self) -> None:
        """Nothing that is ahead of its verdict will have one."""
        if self._trailing:
            for choice in (self._loose, *self._choices.values()):
                choice.stop_runs()
            self._withdraw()

    def _malformed(self, chunk: Chunk, now: float) -> None:
        """A frame that cannot be read never leaves; what came before it does, once it is cleared."""
        if not self._policy.hold:
            self.released.append(chunk)
            return
        self.failure = "upstream_malformed"
        self.over = True
        self.end(now)

    # Releasing

    def _move(self, now: float) -> None:
        """Release what is cleared, cut what is ripe; see to it that something moves."""
        self._now = now
        self._release()
        if self._common.uncut:
            self._cut(now)
        if self._held > self._room:
            self._make_room(now)
        if self._ending and self.finished:
            self._last()

    def _count_unread(self, reading: Reading) -> None:
        """Count the characters of a frame that nobody looks at, by the option that lets them leave."""
        policy = self._policy
        reason, places = "", reading.unknown
        if policy.unknown_fields == "pass":
            reason = "unknown_field"
        elif policy.unknown_fields == "check" and policy.opaque == "pass":
            reason, places = "opaque", reading.opaque
        unread = sum(len(container[key]) for container, key in places) if reason else 0
        if unread:
            self.tally.unread[reason] = self.tally.unread.get(reason, 0) + unread

    def _choice_of(self, window: Window) -> Choice:
        index = window.run.choice
        return self._loose if index is None else self._choices[index]

    def _heard(self) -> None:
        """A check has come back. It is in flight until its window is dealt with: nothing is finished before."""
        self._close_lane()
        self._room = self._policy.held_bytes

    def _release(self) -> None:
        queue = self._queue
        while queue:
            for run, need in queue[0].waits:
                if run.horizon < need:
                    return
            self._emit(queue.popleft())

    def _cut(self, now: float, *, force: bool = False) -> None:
        for run in self._common.uncut:
            while self.in_flight < self._policy.depth and (force or run.ripe(now)):
                window = run.take(now)
                if window is None:
                    break
                self.in_flight += 1
                self.checks.append(window)
        self._common.uncut = [run for run in self._common.uncut if run.uncut]

    def _make_room(self, now: float) -> None:
        """The guard is full: let frames pass those of other choices, cut what there is, and never wait for nothing."""
        waiting: set[Choice] = set()
        kept: deque[Held] = deque()
        for held in self._queue:
            closes = (held.closes,) if held.closes is not None else ()
            choices = (*held.choices, *closes)
            if choices and held.ready and waiting.isdisjoint(choices):
                self._emit(held)
            else:
                waiting.update(choices)
                kept.append(held)
        self._queue = kept
        if self._held > self._policy.held_bytes:
            if self._common.uncut:
                self._cut(now, force=True)
            # One frame alone may be larger than all there is room for.
            if not self.in_flight and self._held - max(held.size for held in kept) > self._policy.held_bytes:
                self._fail("moderation_stalled")
        # Every look is at the whole queue, and until a verdict comes one frame more changes little.
        self._room = max(self._policy.held_bytes, self._held + self._held // 8)

    def _emit(self, held: Held) -> None:
        chunk = held.chunk
        self._held -= chunk.size
        if held.closes is not None:
            self._emit_closing(held.closes)
            return
        tally = self.tally
        held_s = self._now - held.since
        if held_s > tally.longest_hold_s:  # noqa: PLR1730 - a call of max() costs more
            tally.longest_hold_s = held_s
        dropped = held.dropped
        said = sum(held.chars)
        if dropped:
            rest = self._without(held)
            if rest is None:
                return
            chunk = rest
            said = sum(chars for entry, chars in enumerate(held.chars) if entry not in dropped)
        for entry, choice in enumerate(held.choices):
            if entry not in dropped:
                choice.started = True
        for run, _ in held.waits:
            if run.masks:
                chunk, hidden = rewrite.masked(chunk, held.waits, whole=self._whole)
                said -= hidden
                tally.blocked += hidden
                break
        tally.released += said
        if said and tally.first_hold_s is None:
            tally.first_hold_s = held_s
        if not held.choices and self._wants_usage and (chunk.json or {}).get("usage"):
            self._wants_usage = False  # it has it
        self.released.append(chunk)

    def _emit_closing(self, choice: Choice) -> None:
        notice = self._policy.notice if self._policy.on_violation == "replace" else None
        self.released += closing.closing(self._shared, choice.index or 0, begun=choice.started, notice=notice)

    def _last(self) -> None:
        """Everything has left. A client that was cut off is told what was used, if it asked, and what to take back."""
        if self.failure is not None:
            return
        if self._wants_usage and self.cut and self.over and not self._whole:
            usage = self._usage or closing.estimated_usage(self._prompt_tokens(), math.ceil(self._produced))
            self.released.append(closing.usage(self._shared, usage))
        self._wants_usage = False
        if self._trailing:
            self._withdraw()

    def _withdraw(self) -> None:
        """Tell the client what it was sent ahead of a verdict that did not let it pass, or never came."""
        uncleared: dict[tuple[int | None, str], int] = {}
        for choice in (self._loose, *self._choices.values()):
            for run in choice.trail:
                if run.withdrawn_from is not None:
                    uncleared.setdefault((choice.index, run.surface), run.withdrawn_from)  # the earliest of its runs
                    self.tally.unread["ahead"] = self.tally.unread.get("ahead", 0) + run.ahead
            choice.trail = []
        if uncleared:
            self.released.append(closing.withdrawal(self._shared, uncleared))

    @property
    def _shared(self) -> Frame:
        """What every frame of the reply says."""
        return envelope(self._newest.json or {})

    def _drop_queue(self) -> None:
        self._close_lane()
        self._held = 0
        self._queue.clear()
        self._common.uncut.clear()

    def _without(self, held: Held) -> Chunk | None:
        """The frame without the choices that may not leave; None if nothing is left to say."""
        return rewrite.without(
            held.chunk,
            held.dropped,
            (lambda entry: self._cleared(held.choices[entry], held.chunk, entry)) if self._whole else None,
        )

    def _cleared(self, choice: Choice, chunk: Chunk, entry: int) -> Frame:
        """A choice of a whole reply with what was cleared of its message."""
        message, hidden = rewrite.cleared(chunk, entry, choice.ended | choice.runs)
        self.tally.released += sum(len(message.get(surface, "")) for surface in PROSE) - hidden
        self.tally.blocked += hidden
        if self._policy.on_violation == "replace":
            message["content"] += self._policy.notice
        return {"index": choice.index, "message": message, "logprobs": None, "finish_reason": "content_filter"}
