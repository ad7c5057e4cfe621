import asyncio
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, Literal

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from relay.delivery import StreamDelivery
from relay.errors import InternalError, Unavailable
from relay.exchange import Outcome
from relay.gate import Gate
from relay.judge import Consultant, Judge, LabelPolicy, Ruling, Thresholds
from relay.metrics import ModerationTally
from relay.moderator import PASS, Context, Moderator, Verdict
from relay.pure.guard import Guard
from relay.pure.policy import Policy
from relay.pure.window import Cutting, Window
from relay.testing import frames
from relay.testing.reply import HandBody, Kept, Lent, exchange

BLOCK = Verdict("block", "Porn", 99)
REVIEW = Verdict("review", "Ad", 60)
CONTEXT = Context("request-1", "response", "content")

# Every four characters are a window, of which the last two wait for the next one.
SMALL = Cutting(holdback_chars=3, first_chars=4, sentence_chars=1000, max_chars=4, max_wait_s=3600)


class ByHand(Moderator):
    """Gives the verdicts that it is told to give, in any order."""

    asked: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.asked = []
        self._verdicts: list[asyncio.Future[Verdict]] = []
        self._heard = asyncio.Event()

    async def check(self, text: str, context: Context) -> Verdict:
        verdict = asyncio.get_running_loop().create_future()
        self.asked.append(text)
        self._verdicts.append(verdict)
        self._heard.set()
        return await verdict

    async def hear(self, count: int) -> None:
        """Wait until so many windows have been shown."""
        async with asyncio.timeout(10):
            while len(self.asked) < count:
                self._heard.clear()
                await self._heard.wait()

    def say(self, verdict: Verdict | BaseException, number: int = -1) -> None:
        """About the window with this number, the newest unless given."""
        if isinstance(verdict, BaseException):
            self._verdicts[number].set_exception(verdict)
        else:
            self._verdicts[number].set_result(verdict)

    def give_up(self, number: int = -1) -> None:
        """As a client does whose connection was closed under it."""
        self._verdicts[number].cancel()

    @property
    def cancelled(self) -> list[bool]:
        return [verdict.cancelled() for verdict in self._verdicts]


class Says(Moderator):
    """Says the same of every text, or raises it."""

    verdict: Any

    async def check(self, text: str, context: Context) -> Verdict:
        await asyncio.sleep(0)
        if isinstance(self.verdict, BaseException):
            raise self.verdict
        verdict: Verdict = self.verdict
        return verdict


class Silent(Moderator):
    async def check(self, text: str, context: Context) -> Verdict:
        await asyncio.get_running_loop().create_future()
        raise AssertionError


class Blocks(Moderator):
    """Blocks texts that hold a word."""

    word: str

    async def check(self, text: str, context: Context) -> Verdict:
        await asyncio.sleep(0)
        return BLOCK if self.word in text else PASS


def judge(
    *moderators: Moderator,
    lent: Lent,
    deadline_s: float = 60,
    on_review: Literal["pass", "block"] = "pass",
    thresholds: Mapping[str, Thresholds] | None = None,
) -> Judge:
    consultants = [
        Consultant(
            moderator.known_as, moderator, deadline_s=deadline_s, log=lent.services.log, metrics=lent.services.metrics
        )
        for moderator in moderators
    ]
    return Judge(consultants, LabelPolicy(thresholds or {}, on_review))


class Rig:
    """A gate between an upstream that is spoken by hand and a sink that keeps what comes out.

    reports: what the gate reported, the guard's tally and its own.
    """

    def __init__(
        self,
        *moderators: Moderator,
        cutting: Cutting = SMALL,
        outlive: Any = None,
        policy: dict[str, Any] | None = None,
        report: Callable[[], None] = lambda: None,
        on_failure: Literal["closed", "open"] = "closed",
        **options: Any,
    ) -> None:
        self.lent = Lent()
        self.ex, self.body, self.kept = exchange(), HandBody(), Kept()
        self.reports: list[tuple[Any, ModerationTally]] = []
        self.guard = Guard(Policy(cutting=cutting, **policy or {}), remote=True)

        def reported(guard: Guard, tally: ModerationTally) -> None:
            self.reports.append((guard.tally, tally))
            report()

        self.gate = Gate(
            self.ex,
            self.kept,
            self.guard,
            judge(*moderators, lent=self.lent, **options),
            reported,
            context=CONTEXT,
            on_failure=on_failure,
            log=self.lent.services.log,
            outlive=outlive,
        )
        StreamDelivery(self.ex, self.gate, self.body).start()
        self.body.say(frames.role())

    def say(self, *texts: str) -> None:
        self.body.say(*(frames.text(text) for text in texts))

    def finish(self) -> None:
        self.body.say(frames.finish(), frames.done())
        self.body.eof()

    @property
    def tally(self) -> ModerationTally:
        [(_, tally)] = self.reports
        return tally


async def turns(count: int = 5) -> None:
    """Some turns of the loop: enough for a verdict to arrive."""
    for _ in range(count):
        await asyncio.sleep(0)


# Releasing


async def test_in_order() -> None:
    """The upstream is read while checks are in flight, and windows leave in order whatever order verdicts come in."""
    moderator = ByHand()
    rig = Rig(moderator)
    rig.say("abcd", "efgh")
    await moderator.hear(1)
    rig.say("ijkl")
    await moderator.hear(2)
    assert not rig.body.paused
    moderator.say(PASS, 1)
    await turns()
    assert rig.kept.text == ""
    moderator.say(PASS, 0)
    await turns()
    assert rig.kept.text == "abcdefgh"
    rig.finish()
    while rig.kept.outcome is None:
        await moderator.hear(3)
        moderator.say(PASS)
        await turns()
    assert rig.kept.text == "abcdefghijkl"
    assert rig.kept.ends == [Outcome("completed")]


async def test_role_leaves_at_once() -> None:
    """What holds no text waits for no verdict."""
    rig = Rig(Silent())
    assert len(rig.kept.chunks) == 1
    rig.ex.stop(Outcome("client_gone"))
    await rig.kept.ended()


async def test_blocked() -> None:
    """A violation stops the upstream at once; what was cleared is out, the choice is closed, and the end comes once."""
    moderator = ByHand()
    rig = Rig(moderator)
    rig.say("abcd", "ef")
    await moderator.hear(1)
    moderator.say(PASS)
    await turns()
    rig.say("gh", "ij")
    await moderator.hear(2)
    moderator.say(BLOCK)
    assert (await rig.kept.ended()).kind == "filtered"
    assert rig.body.closed
    assert rig.kept.chunks[-1].json["choices"][0]["finish_reason"] == "content_filter"  # type: ignore[index]
    assert len(rig.kept.ends) == 1
    assert rig.kept.late == []
    [violation] = rig.guard.tally.violations
    assert (violation.label, violation.moderator, violation.action, violation.score) == ("Porn", "byhand", "block", 99)


async def test_verdicts_after_the_end() -> None:
    """A verdict that comes after a violation has ended the reply changes nothing."""
    moderator = ByHand()
    rig = Rig(moderator)
    rig.say("abcdefgh")
    await moderator.hear(1)
    rig.say("ijklmnop")
    await moderator.hear(2)
    moderator.say(BLOCK, 0)
    await rig.kept.ended()
    chunks = list(rig.kept.chunks)
    moderator.say(PASS, 1)
    await turns()
    assert rig.kept.chunks == chunks
    assert rig.kept.late == []
    assert len(rig.reports) == 1


async def test_full() -> None:
    """The upstream is paused while the gate is full and a check is in flight, and read on when the verdict has come."""
    moderator = ByHand()
    rig = Rig(moderator, policy={"held_bytes": 4096})
    rig.say(*["abcd" for _ in range(40)])
    await moderator.hear(1)
    assert rig.body.paused
    assert rig.ex.paused
    for number in range(100):
        if rig.body.paused:
            await moderator.hear(number + 1)
            moderator.say(PASS, number)
            await turns()
    assert not rig.body.paused
    assert not rig.body.reentered
    rig.ex.stop(Outcome("client_gone"))
    await rig.kept.ended()
    await rig.ex.close()


async def test_max_wait() -> None:
    """A window is cut when its oldest character has waited long enough, with nothing else happening."""
    moderator = ByHand()
    rig = Rig(moderator, cutting=Cutting(holdback_chars=1, first_chars=1000, max_wait_s=0.005))
    rig.say("ab")
    assert moderator.asked == []
    await moderator.hear(1)
    assert moderator.asked == ["ab"]
    moderator.say(PASS)
    await turns()
    assert rig.kept.text == "ab"
    rig.finish()
    assert await rig.kept.ended() == Outcome("completed")


def test_max_wait_that_is_nearly_over() -> None:
    """uvloop has no timer of less than half a millisecond: what it gives instead knows not when it is due."""

    async def reply() -> Rig:
        rig = Rig(Says(verdict=PASS), cutting=Cutting(holdback_chars=1, first_chars=1000, max_wait_s=0.0001))
        for text in ("ab", "cd", "ef"):
            rig.say(text)
            await asyncio.sleep(0)
            rig.say(text)
        rig.finish()
        assert await rig.kept.ended() == Outcome("completed")
        await rig.ex.close()
        return rig

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(reply()).kept.text == "ababcdcdefef"


@pytest.mark.parametrize("outcome", [Outcome("completed"), Outcome("client_gone")])
async def test_no_timer_is_left(outcome: Outcome) -> None:
    """The end takes the timer with it."""
    rig = Rig(Says(verdict=PASS), cutting=Cutting(first_chars=1000))
    rig.say("ab")
    timer = rig.gate._timer
    assert timer is not None
    rig.ex.stop(outcome)
    await rig.kept.ended()
    assert timer.cancelled()


# When no verdict comes

NO_VERDICT = {
    "silent": Silent,
    "raises": lambda: Says(verdict=ZeroDivisionError()),
    "is cancelled by itself": lambda: Says(verdict=asyncio.CancelledError()),
    "says nothing": lambda: Says(verdict=None),
}
no_verdict = pytest.mark.parametrize("make", NO_VERDICT.values(), ids=NO_VERDICT)


@no_verdict
async def test_closed(make: Callable[[], Moderator]) -> None:
    """Closed: without a verdict nothing leaves, and the reply ends with an error that says why."""
    rig = Rig(make(), deadline_s=0.005)
    rig.say("abcdefgh")
    outcome = await rig.kept.ended()
    assert outcome.error is not None
    assert outcome.error.code == "moderation_unavailable"
    assert rig.kept.text == ""
    assert rig.body.closed
    assert rig.guard.tally.unverified() == {}


@no_verdict
@given(texts=st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=9))
def test_open(make: Callable[[], Moderator], texts: list[str]) -> None:
    """Open: everything leaves, and every character that left without a verdict is counted, once."""

    async def reply() -> Rig:
        rig = Rig(make(), deadline_s=0.0001, on_failure="open")
        rig.say(*texts)
        rig.finish()
        assert await rig.kept.ended() == Outcome("completed")
        await rig.ex.close()
        return rig

    rig = asyncio.run(reply())
    assert rig.kept.text == "".join(texts)
    assert sum(rig.guard.tally.unverified().values()) == len("".join(texts))


async def test_open_counts_what_failed_only() -> None:
    """Characters of a window that was judged are not counted again with the window after it."""
    moderator = ByHand()
    rig = Rig(moderator, on_failure="open", policy={"depth": 1})
    rig.say("abcdef")
    await moderator.hear(1)
    moderator.say(PASS)
    await turns()
    rig.say("ghij")
    await moderator.hear(2)
    assert moderator.asked == ["abcdef", "efghij"]
    moderator.say(ZeroDivisionError())
    await turns()
    rig.finish()
    await rig.kept.ended()
    assert rig.guard.tally.unverified() == {"error": 4}


@pytest.mark.parametrize(
    ("moderator", "outcome", "event"),
    [
        (Silent, "timeout", "moderator gave no verdict in time"),
        (lambda: Says(verdict=ZeroDivisionError("abcdefgh")), "error", "moderator failed"),
    ],
)
async def test_failures_are_told(moderator: Callable[[], Moderator], outcome: str, event: str) -> None:
    """A moderator that gives no verdict is counted and named in the log, without the text."""
    rig = Rig(made := moderator(), deadline_s=0.005)
    rig.say("abcdefgh")
    await rig.kept.ended()
    assert rig.tally.checks == {(made.known_as, outcome): 1}
    [line] = rig.lent.lines
    assert (line["event"], line["moderator"]) == (event, made.known_as)
    assert "abcd" not in str(line)


# When the client is gone


async def test_client_gone() -> None:
    """When the client leaves, checks in flight are cancelled, nothing more is released, and the end comes once."""
    moderator = ByHand()
    rig = Rig(moderator)
    rig.say("abcdefgh")
    await moderator.hear(1)
    rig.say("ijklmnop")
    await moderator.hear(2)
    rig.ex.stop(Outcome("client_gone"))
    await rig.ex.close()
    assert moderator.cancelled == [True, True]
    assert await rig.kept.ended() == Outcome("client_gone")
    assert len(rig.kept.ends) == 1
    assert rig.kept.text == ""
    assert rig.tally.checks == {}  # nobody failed


async def test_nothing_is_asked_for_nobody() -> None:
    """A verdict that comes after the end has no further window shown."""
    moderator = ByHand()
    rig = Rig(moderator, policy={"depth": 1})
    rig.say("abcd", "efgh", "ijkl")
    await moderator.hear(1)
    rig.ex.stop(Outcome("client_gone"))
    await rig.kept.ended()
    moderator.say(PASS)
    await turns()
    assert len(moderator.asked) == 1
    assert rig.kept.late == []


@pytest.mark.parametrize("shown", [True, False], ids=["check has begun", "check has not begun"])
async def test_client_gone_after_the_upstream(shown: bool) -> None:
    """The same when the upstream has ended already and only verdicts are missing: the outcome is the client's."""
    moderator = ByHand()
    rig = Rig(moderator)
    rig.say("ab")
    rig.finish()
    assert rig.kept.outcome is None
    if shown:
        await moderator.hear(1)
    rig.ex.stop(Outcome("client_gone"))
    await rig.ex.close()
    assert (await rig.kept.ended()).kind == "client_gone"
    assert len(rig.kept.ends) == len(rig.reports) == 1
    assert rig.kept.text == ""


async def test_drained() -> None:
    """A relay that stops waits for no verdict: what was cleared is out, and the error follows at once."""
    moderator = ByHand()
    rig = Rig(moderator)
    rig.say("abcd", "ef")
    await moderator.hear(1)
    moderator.say(PASS)
    await turns()
    rig.say("gh", "ij")
    await moderator.hear(2)
    error = Unavailable("Later.", code="draining")
    rig.ex.stop(Outcome("drained", error))
    assert await rig.kept.ended() == Outcome("drained", error)
    assert rig.kept.text == "abcd"
    await rig.ex.close()


# Faults of our own


def raising(*args: object) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("upstream", ["goes on", "has ended"])
@pytest.mark.parametrize("method", ["judged", "failed"])
async def test_fault_in_a_verdict(method: str, upstream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault where a verdict is carried out ends the reply with an error, logged, with nothing held released."""
    moderator = ByHand()
    rig = Rig(moderator)
    monkeypatch.setattr(rig.guard, method, raising)
    rig.say("abcd", "ef")
    if upstream == "has ended":
        rig.finish()
    await moderator.hear(1)
    moderator.say({"judged": PASS, "failed": ValueError()}[method], 0)  # type: ignore[arg-type]
    outcome = await rig.kept.ended()
    assert outcome.kind == "internal_error"
    assert isinstance(outcome.error, InternalError)
    assert rig.kept.text == ""
    assert "moderation failed" in [line["event"] for line in rig.lent.lines]
    assert rig.body.closed or rig.body.drained
    await rig.ex.close()
    assert len(rig.kept.ends) == len(rig.reports) == 1


async def test_nothing_leaves_after_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once something has failed, no other verdict frees anything, even before the end has come."""
    moderator = ByHand()
    rig = Rig(moderator)
    judged = rig.guard.judged

    def second_fails(window: Window, ruling: Ruling, now: float) -> None:
        if window.run.choice:
            raise ZeroDivisionError
        judged(window, ruling, now)

    monkeypatch.setattr(rig.guard, "judged", second_fails)
    for index in (0, 1):
        rig.body.say(frames.text("abcdef", index=index), frames.finish(index=index))
    await moderator.hear(2)
    moderator.say(PASS, 1)
    moderator.say(PASS, 0)
    assert (await rig.kept.ended()).kind == "internal_error"
    assert rig.kept.text == ""


async def test_fault_in_a_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for the timer."""
    rig = Rig(Silent(), cutting=Cutting(first_chars=1000, max_wait_s=0.001))
    monkeypatch.setattr(rig.guard, "tick", raising)
    rig.say("ab")
    assert (await rig.kept.ended()).kind == "internal_error"
    assert rig.body.closed


async def test_fault_in_the_report() -> None:
    """A report that fails does not keep the end."""
    rig = Rig(Says(verdict=PASS), report=raising)
    rig.say("ab")
    rig.finish()
    assert (await rig.kept.ended()).kind == "completed"
    assert len(rig.kept.ends) == 1


# Shadow: checks that outlive the reply


async def test_outlive() -> None:
    """A reply that is only measured does not wait for its verdicts; its report does."""
    moderator = ByHand()
    spawned: list[asyncio.Task[Any]] = []

    def spawn(check: Any) -> asyncio.Task[Any]:
        spawned.append(asyncio.get_running_loop().create_task(check))
        return spawned[-1]

    rig = Rig(moderator, outlive=spawn, policy={"hold": False, "depth": 1})
    rig.say("abcdefgh")
    await moderator.hear(1)
    rig.say("ij")
    rig.finish()
    assert await rig.kept.ended() == Outcome("completed")
    assert rig.kept.text == "abcdefghij"
    await rig.ex.close()
    assert rig.reports == []
    moderator.say(BLOCK)
    await moderator.hear(2)
    assert rig.reports == []
    moderator.say(PASS)
    await asyncio.gather(*spawned)
    await turns()
    assert rig.tally.checks == {("byhand", "block"): 1, ("byhand", "pass"): 1}
    assert len(rig.guard.tally.violations) == 1
    assert rig.kept.late == []


# Judging


def test_unknown_action() -> None:
    """A verdict with an action that there is not is an error where it is made."""
    with pytest.raises(ValueError, match="unknown action 'blok'; one of pass, review, mask, block"):
        Verdict("blok")  # type: ignore[arg-type]


async def test_reviewed_in_a_reply() -> None:
    """A review that blocks nothing is a violation all the same, and its text leaves."""
    rig = Rig(Says(verdict=REVIEW))
    rig.say("ab")
    rig.finish()
    assert await rig.kept.ended() == Outcome("completed")
    assert rig.kept.text == "ab"
    [violation] = rig.guard.tally.violations
    assert (violation.label, violation.position, violation.action) == ("Ad", 0, "review")


# Whatever comes


@given(
    texts=st.lists(st.text("abx世", min_size=1, max_size=8), max_size=12),
    ending=st.sampled_from(["completed", "upstream_error", "client_gone"]),
    on_failure=st.sampled_from(["closed", "open"]),
    fails=st.booleans(),
    depth=st.integers(1, 3),
    on_violation=st.sampled_from(["finish", "replace", "error"]),
)
def test_every_character_is_accounted_for(
    texts: list[str], ending: str, on_failure: str, fails: bool, depth: int, on_violation: str
) -> None:
    """Whatever is said, found and failed: one end, one report, no forbidden character out, in = out + kept back."""

    async def reply() -> Rig:
        moderators: list[Moderator] = [Blocks(word="x")]
        if fails:
            moderators.append(Says(verdict=ZeroDivisionError()))
        policy = {"depth": depth, "on_violation": on_violation, "notice": "…", "held_bytes": 4096}
        rig = Rig(*moderators, on_failure=on_failure, policy=policy)
        for text in texts:
            rig.say(text)
            await asyncio.sleep(0)
        if ending == "completed":
            rig.finish()
        elif ending == "upstream_error":
            rig.body.die()
        else:
            rig.ex.stop(Outcome("client_gone"))
        await rig.kept.ended()
        await rig.ex.close()
        return rig

    rig = asyncio.run(reply())
    [(counted, _)] = rig.reports
    said = "".join(texts)
    assert len(rig.kept.ends) == 1
    assert rig.kept.late == []
    assert "x" not in rig.kept.text
    assert counted.came <= len(said)
    assert counted.released <= counted.came
    assert counted.released == len(rig.kept.text.removesuffix("…"))
    assert said.startswith(rig.kept.text.removesuffix("…"))
    assert sum(counted.unverified().values()) <= counted.came
    if ending == "completed" and "x" not in said and not fails:
        assert rig.kept.text == said
        assert rig.kept.ends == [Outcome("completed")]
