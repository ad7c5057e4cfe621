import asyncio
import itertools
import random
from typing import Any

import aiohttp
import pytest

from relay.consultant import MAX_REFUSALS, Consultant, Unjudged
from relay.moderator import PASS, Context, NoVerdict, RateLimited, Unauthorized, Unavailable, Verdict
from relay.testing.moderator import NEVER, After, ScriptedModerator
from relay.testing.reply import Lent

pytestmark = pytest.mark.jumping_clock

BLOCK = Verdict("block", "Porn", 90)
CONTEXT = Context("request-1", "response", "content")
DEADLINE_S = 2.0


def time() -> float:
    return asyncio.get_running_loop().time()


class Rig:
    """A consultant with a scripted moderator, and what it logs and counts."""

    def __init__(self, *script: Any, cache_s: float = 0.0, **options: Any) -> None:
        self.lent = Lent()
        self.moderator = ScriptedModerator(script=script, **options)
        self.consultant = Consultant(
            "scripted",
            self.moderator,
            deadline_s=DEADLINE_S,
            cache_s=cache_s,
            log=self.lent.services.log,
            metrics=self.lent.metrics,
        )
        self.started = time()

    async def ask(self, text: str = "text", stream: str = "request-1") -> Any:
        return await self.consultant.ask(lambda: text, Context(stream, "response", "content"))

    async def asks(self, count: int, stream: str = "request-1") -> list[Any]:
        return await asyncio.gather(*(self.ask(f"text {number}", stream) for number in range(count)))

    def count(self, series: str) -> float:
        """The value of a series, read at once: on this loop's clock a thread takes any time."""
        exported, _ = self.lent.metrics.render()
        [line] = [line for line in exported.decode().splitlines() if line.startswith(series + "{")]
        return float(line.rpartition(" ")[2])

    @property
    def calls(self) -> int:
        return len(self.moderator.shown)

    @property
    def at(self) -> list[float]:
        return [round(at - self.started, 6) for at in self.moderator.at]

    @property
    def events(self) -> list[str]:
        return [line["event"] for line in self.lent.lines]


def unjudged(reason: Any) -> Unjudged:
    return Unjudged(reason, "scripted")


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class TestOneText:
    async def test_a_verdict(self) -> None:
        rig = Rig(BLOCK)
        assert BLOCK == await rig.ask("a text")
        assert ["a text"] == rig.moderator.shown
        assert [CONTEXT] == rig.moderator.contexts
        assert 1 == rig.count("relay_moderation_calls_total")
        assert 6 == rig.count("relay_moderation_scanned_characters_total")
        assert 1 == rig.count("relay_moderation_call_seconds_count")

    @pytest.mark.parametrize(
        "failure",
        [
            Unavailable("gone"),
            ConnectionResetError(),
            TimeoutError(),
            EOFError(),
            aiohttp.ServerDisconnectedError(),
            aiohttp.ClientPayloadError(),
        ],
    )
    async def test_what_may_pass_is_asked_again(self, failure: Exception) -> None:
        """Twice, and of the same text, without a word in the log if that helps."""
        rig = Rig(failure, failure, BLOCK)
        assert BLOCK == await rig.ask()
        assert ["text"] * 3 == rig.moderator.shown
        assert 3 == rig.count("relay_moderation_calls_total")
        assert [] == rig.events

    async def test_three_failures_are_one_too_many(self) -> None:
        rig = Rig(*[Unavailable("the service has a fault", reference="id-7")] * 3, BLOCK)
        assert unjudged("error") == await rig.ask()
        [line] = rig.lent.lines
        assert "moderator could not be asked" == line["event"]
        assert ("scripted", "request-1") == (line["moderator"], line["request_id"])
        assert ("the service has a fault", "id-7") == (line["reason"], line["reference"])

    async def test_half_of_the_deadline_for_a_call(self) -> None:
        """One that hangs is asked once more, and the deadline is kept."""
        rig = Rig(NEVER)
        assert unjudged("timeout") == await rig.ask()
        assert [0, 1] == rig.at
        assert time() == rig.started + DEADLINE_S
        assert 2 == rig.moderator.given_up
        assert ["moderator gave no verdict in time"] == rig.events
        assert 2 == rig.count("relay_moderation_call_seconds_sum")

    async def test_a_late_answer_to_the_second_call(self) -> None:
        rig = Rig(NEVER, After(0.9, BLOCK))
        assert BLOCK == await rig.ask()
        assert time() == pytest.approx(rig.started + 1.9)

    async def test_no_call_that_would_come_too_late(self) -> None:
        """With no more than a twentieth of the deadline left nobody is asked."""
        rig = Rig(After(0.96, Unavailable("slow, and no")), NEVER)
        assert unjudged("timeout") == await rig.ask()
        assert 2 == rig.calls
        rig = Rig(After(0.97, Unavailable("slow, and no")), After(0.97, Unavailable("again")), PASS)
        assert unjudged("error") == await rig.ask()
        assert 2 == rig.calls

    @pytest.mark.parametrize("fault", [KeyError("text of a user"), "no verdict", None])
    async def test_a_fault_of_the_moderator(self, fault: Any) -> None:
        """It would be the same a second time. The log says where it was, and not what was said."""
        rig = Rig(fault)
        assert unjudged("error") == await rig.ask("text of a user")
        assert 1 == rig.calls
        [line] = rig.lent.lines
        assert ("moderator failed", "error") == (line["event"], line["level"])
        assert line["frames"]
        assert "text of a user" not in str(line)

    async def test_a_cancelled_error_of_its_own(self) -> None:
        """Some client was closed under it; nobody has cancelled us."""
        rig = Rig(asyncio.CancelledError())
        assert unjudged("error") == await rig.ask()

    async def test_being_cancelled(self) -> None:
        """The call ends with the exchange, and it says nothing of the moderator."""
        rig = Rig(NEVER)
        task = asyncio.create_task(rig.ask())
        await settle()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert 1 == rig.moderator.given_up
        assert [] == rig.events
        assert 0 == rig.count("relay_moderation_call_seconds_count")

    async def test_what_cannot_be_shown(self) -> None:
        """The slot goes to the next one, and the breaker has seen nothing."""

        def show() -> str:
            raise ZeroDivisionError

        rig = Rig(PASS, calls_per_second=1)
        with pytest.raises(ZeroDivisionError):
            await rig.consultant.ask(show, CONTEXT)
        assert PASS == await rig.ask()
        assert [0] == rig.at


class TestBudget:
    async def test_a_text_is_shown_when_it_is_sent(self) -> None:
        """A window grows while it waits for its slot."""
        rig, grown = Rig(PASS, calls_per_second=1), itertools.count()
        await asyncio.gather(*(rig.consultant.ask(lambda: f"{next(grown)}", CONTEXT) for _ in range(3)))
        assert ["0", "1", "2"] == rig.moderator.shown
        assert [0, 1.02, 2.04] == rig.at

    async def test_waiting_does_not_count(self) -> None:
        """The deadline is that of the calls."""
        rig = Rig(After(0.9), calls_per_second=1)
        assert [PASS] * 10 == await rig.asks(10)

    async def test_never_more_than_allowed(self) -> None:
        """Retries included."""
        chance = random.Random(3)
        rig = Rig(lambda _: Unavailable("no") if chance.random() < 0.1 else After(0.05), calls_per_second=50)
        answers = await asyncio.gather(*(rig.asks(5, f"request-{number}") for number in range(60)))
        assert 0 <= sum(answer != PASS for answer in itertools.chain(*answers)) <= 3
        assert rig.calls > 310
        assert all(late - early > 1 for early, late in zip(rig.at, rig.at[50:], strict=False))

    async def test_too_many_is_no_failure(self) -> None:
        """The text waits, has grown when it is shown again, and the rate falls."""
        rig, grown = (
            Rig(RateLimited("slow down"), RateLimited("slow down"), PASS, calls_per_second=100),
            itertools.count(),
        )
        before = rig.consultant.budget.rate
        assert PASS == await rig.consultant.ask(lambda: f"{next(grown)}", CONTEXT)
        assert ["0", "1", "2"] == rig.moderator.shown
        assert rig.consultant.budget.rate < before
        assert [] == rig.events
        assert rig.count("relay_moderation_rate_allowed") < rig.count("relay_moderation_rate_ceiling")

    async def test_a_limit_by_the_second_is_waited_out(self) -> None:
        """The tries are spread over more than any second."""
        rig = Rig(RateLimited("no"), calls_per_second=1000)
        assert unjudged("rate_limited") == await rig.ask()
        assert MAX_REFUSALS == rig.calls
        assert rig.at[-1] > 5
        assert ["moderator is asked too often"] == rig.events
        assert rig.consultant.available

    async def test_a_window_waits_as_long_as_it_takes(self) -> None:
        rig = Rig(PASS, calls_per_second=1)
        assert [PASS] * 60 == await rig.asks(60)
        assert rig.at[-1] > 60

    async def test_a_piece_of_a_request_does_not(self) -> None:
        """Ten seconds; its client has seen nothing yet."""
        rig = Rig(PASS, calls_per_second=1)
        answers = await asyncio.gather(*(rig.consultant.ask_text(f"{number}", CONTEXT) for number in range(15)))
        assert [(PASS, False)] * 10 + [(unjudged("rate_limited"), False)] * 5 == answers
        assert 10 == rig.calls
        assert 0 == rig.consultant.budget.waiting

    async def test_a_retry_goes_first(self) -> None:
        """Its deadline runs; those who wait have none."""
        rig = Rig(Unavailable("once"), PASS, calls_per_second=5)
        assert [PASS] * 20 == await rig.asks(20)
        assert ["text 0", "text 0", "text 1"] == rig.moderator.shown[:3]

    async def test_no_slot_for_a_retry(self) -> None:
        """It is waited for as long as the deadline lets it."""
        rig = Rig(Unavailable("always"), calls_per_second=0.1)
        assert unjudged("error") == await rig.ask()
        assert time() == pytest.approx(rig.started + 0.95 * DEADLINE_S)
        assert 0 == rig.consultant.budget.waiting

    async def test_cancelled_while_waiting(self) -> None:
        rig = Rig(PASS, calls_per_second=1)
        tasks = [asyncio.create_task(rig.ask()) for _ in range(3)]
        await settle()
        assert 2 == rig.count("relay_moderation_checks_waiting")
        tasks[1].cancel()
        await asyncio.wait(tasks)
        assert [0, 1.02] == rig.at
        assert 0 == rig.count("relay_moderation_checks_waiting")


class TestBreaker:
    async def test_black_hole(self) -> None:
        """It is found out within five seconds; from then on nobody waits; recovery comes by itself."""
        rig = Rig(PASS, PASS, *[NEVER] * 200, PASS)
        streams = 4
        assert PASS == await rig.ask()
        assert PASS == await rig.ask()
        began, refused_at = time(), 0.0
        while not refused_at:
            answers = await rig.asks(streams)
            if unjudged("breaker_open") in answers:
                refused_at = time()
            assert time() - began < 5
        assert not rig.consultant.available
        before = rig.calls
        assert [unjudged("breaker_open")] * 50 == await rig.asks(50)
        assert (before, refused_at) == (rig.calls, time())
        assert 2 == rig.count("relay_moderation_breaker_state")
        rig.moderator.script = (After(0.1),)
        await asyncio.sleep(1)
        answers = await rig.asks(3)
        assert [PASS, unjudged("breaker_open"), unjudged("breaker_open")] == answers
        assert [PASS] * 3 == await rig.asks(3)
        assert 0 == rig.count("relay_moderation_breaker_state")
        assert "moderator is not asked for a while" in rig.events
        assert "moderator answers again" == rig.events[-1]

    async def test_one_stream_alone(self) -> None:
        """Black-holed, with a single call under way at any time."""
        rig = Rig(PASS, NEVER)
        assert PASS == await rig.ask()
        while rig.consultant.available:
            await rig.ask()
        assert time() <= rig.started + 5

    async def test_who_waits_is_told(self) -> None:
        """When it opens nobody waits for a slot any more."""
        rig = Rig(After(1.5, PASS), calls_per_second=5)
        tasks = [asyncio.create_task(rig.ask(stream=f"{number}")) for number in range(30)]
        await asyncio.wait(tasks)
        assert {unjudged("breaker_open"), unjudged("timeout")} == {task.result() for task in tasks}
        assert time() <= rig.started + 5
        assert rig.calls <= 10

    async def test_a_retry_that_waits_is_told(self) -> None:
        """It has no verdict because its first call failed, whatever opened the breaker."""
        rig = Rig(Unavailable("once"), Unauthorized("no"), calls_per_second=0.9)
        first = asyncio.create_task(rig.ask())
        await settle()
        assert unjudged("unauthorized") == await rig.consultant.ask(lambda: "text", CONTEXT, slot=True)
        assert unjudged("error") == await first
        assert time() == rig.started

    async def test_a_slot_that_comes_too_late(self) -> None:
        """It is given back when nobody may be asked any more."""
        rig = Rig(Unauthorized("no"), calls_per_second=1)
        assert rig.consultant.budget.try_take()
        await rig.consultant.ask(lambda: "text", CONTEXT, slot=True)
        assert unjudged("breaker_open") == await rig.consultant.ask(lambda: "text", CONTEXT, slot=True)
        assert 1 == rig.calls
        assert rig.consultant.budget.try_take()

    async def test_errors_at_once(self) -> None:
        """A service that refuses connections."""
        rig = Rig(ConnectionRefusedError())
        await rig.asks(2)
        assert not rig.consultant.available
        assert rig.calls <= 6

    async def test_one_in_a_hundred_fails(self) -> None:
        """Never without a verdict, and never open: 600 replies of 24 windows each."""
        chance = random.Random(5)
        rig = Rig(
            lambda _: Unavailable("no") if chance.random() < 0.01 else After(chance.lognormvariate(-2.8134, 0.8156))
        )
        for _ in range(60):
            answers = await asyncio.gather(*(rig.asks(24, f"{number}") for number in range(10)))
            assert [PASS] * 240 == list(itertools.chain(*answers))

    async def test_a_probe_that_is_cancelled_frees_its_place(self) -> None:
        rig = Rig(Unauthorized("no"), NEVER, PASS)
        await rig.ask()
        await asyncio.sleep(1)
        probe = asyncio.create_task(rig.ask())
        await settle()
        assert unjudged("breaker_open") == await rig.ask()
        probe.cancel()
        await asyncio.wait([probe])
        assert PASS == await rig.ask()

    async def test_the_probe_is_not_retried(self) -> None:
        rig = Rig(Unauthorized("no"), Unavailable("no"), PASS)
        await rig.ask()
        await asyncio.sleep(1)
        assert unjudged("error") == await rig.ask()
        assert 2 == rig.calls
        assert not rig.consultant.available

    async def test_unauthorized(self) -> None:
        """Nobody asks until somebody has done what the log says; then it is found out by a probe."""
        told = "Set secret_id and secret_key of the tencent moderator to a key that is enabled."
        rig = Rig(Unauthorized(told), Unauthorized(told), PASS)
        assert unjudged("unauthorized") == await rig.ask()
        assert [unjudged("breaker_open")] * 3 == await rig.asks(3)
        [line] = rig.lent.lines
        assert ("moderator refuses to answer", "error", told) == (line["event"], line["level"], line["reason"])
        await asyncio.sleep(1)
        assert unjudged("unauthorized") == await rig.ask()
        await asyncio.sleep(2)
        assert PASS == await rig.ask()

    async def test_too_many_does_not_open_it(self) -> None:
        rig = Rig(RateLimited("no"), calls_per_second=1000)
        await rig.asks(30)
        assert rig.consultant.available


class TestLog:
    async def test_it_is_not_flooded(self) -> None:
        """One line of a kind in ten seconds, which says how many there were since the last one."""
        rig = Rig(lambda text: KeyError() if int(text.split()[1]) % 2 else PASS)
        await rig.asks(12)
        assert ["moderator failed"] == rig.events
        await asyncio.sleep(10)
        await rig.asks(2)
        assert ["moderator failed"] * 2 == rig.events
        assert 5 == rig.lent.lines[1]["left_out"]

    async def test_kinds_do_not_hide_each_other(self) -> None:
        rig = Rig(KeyError(), Unauthorized("no"))
        await rig.ask()
        await rig.ask()
        assert ["moderator failed", "moderator refuses to answer"] == rig.events


class TestTexts:
    async def test_known_and_shared(self) -> None:
        rig = Rig(After(0.1, BLOCK), cache_s=300)
        answers = await asyncio.gather(*(rig.consultant.ask_text("a", CONTEXT) for _ in range(3)))
        assert [(BLOCK, False), (BLOCK, True), (BLOCK, True)] == answers
        assert (BLOCK, True) == await rig.consultant.ask_text("a", CONTEXT)
        assert 1 == rig.calls

    @pytest.mark.parametrize("options", [{"cache_s": 0.0}, {"cache_s": 300.0, "in_order": True}])
    async def test_neither(self, options: dict[str, Any]) -> None:
        """No cache, no sharing: what it says may depend on who says it, or on what was said before."""
        rig = Rig(After(0.1, BLOCK), **options)
        answers = await asyncio.gather(*(rig.consultant.ask_text("a", CONTEXT) for _ in range(3)))
        assert [(BLOCK, False)] * 3 == answers
        assert 3 == rig.calls

    async def test_being_cancelled(self) -> None:
        """The last who waits takes the call with him."""
        rig = Rig(NEVER, cache_s=300)
        tasks = [asyncio.create_task(rig.consultant.ask_text("a", CONTEXT)) for _ in range(2)]
        await settle()
        for given_up, task in enumerate(tasks):
            task.cancel()
            await asyncio.wait([task])
            await settle()
            assert task.cancelled()
            assert given_up == rig.moderator.given_up

    async def test_a_failure_is_not_kept(self) -> None:
        rig = Rig(KeyError(), PASS, cache_s=300)
        assert (unjudged("error"), False) == await rig.consultant.ask_text("a", CONTEXT)
        assert (PASS, False) == await rig.consultant.ask_text("a", CONTEXT)

    async def test_windows_are_not_kept(self) -> None:
        rig = Rig(PASS, cache_s=300)
        await rig.ask()
        await rig.ask()
        assert 2 == rig.calls

    async def test_close(self) -> None:
        """Ends what is under way for requests; who still waits hears that there is no verdict."""
        rig = Rig(NEVER, cache_s=300)
        task = asyncio.create_task(rig.consultant.ask_text("a", CONTEXT))
        await settle()
        await rig.consultant.close()
        assert 1 == rig.moderator.given_up
        assert (unjudged("error"), False) == await task


async def test_a_text_that_is_none_for_it() -> None:
    """A service that has an answer is up, also if that is that it cannot judge this text: others are judged as before."""
    rig = Rig(*[NoVerdict("no text")] * 30, PASS)
    assert [unjudged("error")] * 30 == await rig.asks(30)
    assert PASS == await rig.ask()
