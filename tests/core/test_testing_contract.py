"""The contract suite that plugin authors are given: whoever breaks a promise is told which, and whoever keeps all passes."""

import asyncio
import json
from contextlib import asynccontextmanager
from typing import Any

import pytest
from subjects import EVERY, HEADERS, WELL_BEHAVED, NeverEnds, SwallowsTheEnd, lent

from relay import CALLER, Chunk, Exchange, Key, Outcome, Plugin, Reply, Sink
from relay.exchange import STOPPED_BY
from relay.testing import frames
from relay.testing.contract import contract, keeps_contract
from relay.testing.finding import REMEDIES
from relay.testing.reply import Lent
from relay.testing.requests import MESSAGES
from relay.testing.store import ScriptedStore
from relay.testing.witness import Wrapping
from relay.text import TextSink, begun


async def promises(plugin, **options):
    """The promises that it breaks."""
    return {finding.promise for finding in (await contract(plugin, **options)).findings}


@pytest.mark.parametrize("name", WELL_BEHAVED)
async def test_the_good_ones_keep_it(name):
    """All that are registered among them. One that holds whole replies is told that it does."""
    make = WELL_BEHAVED[name]
    broken = await promises(make, headers=HEADERS, lent=lambda: lent(make()))
    assert ({"memory"} if name == "holds" else set()) == broken


# What is told of the subjects of the relay's own contract that do wrong.
TOLD = {
    "raises in on_request": ("raises", "raised in on_request: ZeroDivisionError"),
    "is cancelled by itself": ("raises", "raised in on_request: CancelledError"),
    "answers nonsense": ("raises", "returned a dict, no Reply"),
    "rejects": ("tried", "refused the request by 400 no"),
    "rejects in on_stream": ("tried", "refused the request by 400 no"),
    "raises in on_stream": ("raises", "raised in on_stream"),
    "forgets its sink": ("raises", "returned a NoneType, no sink"),
    "raises in feed": ("raises", "raised in feed"),
    "raises in end": ("raises", "raised in end"),
    "raises after end": ("raises", "raised in end"),
    "raises in on_end": ("raises", "raised in on_end: ZeroDivisionError"),
    "is cancelled in on_end": ("raises", "raised in on_end: CancelledError"),
    "goes on after the end": ("late", "fed chunks after the end"),
    "answers": None,
    "stops twice": None,
}


@pytest.mark.parametrize("name", TOLD)
async def test_the_others_are_told(name):
    report = await contract(EVERY[name])
    if TOLD[name] is None:
        assert () == report.findings
        return
    promise, seen = TOLD[name]
    assert any(finding.promise == promise and seen in finding.seen for finding in report.findings), str(report)


class Replaces(Plugin):
    """Puts one word for another, and sees no word that is cut."""

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        return TextSink(sink, lambda text, last: (text.replace("cat", "dog"), ""))


class HoldsBeginnings(Plugin):
    """The same, rightly."""

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        def replaced(text: str, last: bool) -> tuple[str, str]:
            *whole, rest = text.split("cat")
            held = "" if last else begun(rest, "cat")
            return "dog".join([*whole, rest.removesuffix(held)]), held

        return TextSink(sink, replaced)


class SharesItsState(Plugin):
    """The same, with what is held on the plugin."""

    held = ""

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        def replaced(text: str, last: bool) -> tuple[str, str]:
            *whole, rest = (self.held + text).split("cat")
            self.held = "" if last else begun(rest, "cat")
            return "dog".join([*whole, rest.removesuffix(self.held)]), ""

        return TextSink(sink, replaced)


class Remembers(Plugin):
    """Says the second one that it has seen the first."""

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        seen, self.seen = getattr(self, "seen", False), True
        return TextSink(sink, lambda text, last: (text + " Again?" if seen else text, ""))


class ChangesChunks(Plugin):
    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        class Changing(Wrapping):
            def feed(self, chunk: Chunk) -> None:
                for choice in chunk.json.get("choices", ()):
                    choice["index"] = 7
                super().feed(chunk)

        return Changing(sink)


class PausesForGood(Plugin):
    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        ex.pause(self)
        return sink


class PausesForGoodAtOnce(Plugin):
    async def on_request(self, ex: Exchange) -> Reply | None:
        ex.pause(self)


class EndsTwice(Plugin):
    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        class Ending(Wrapping):
            def end(self, outcome: Outcome) -> None:
                super().end(outcome)
                super().end(outcome)

        return Ending(sink)


class KeepsTheEndOfThoseWhoLeave(Plugin):
    """Swallows one kind of end only."""

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        class Keeping(Wrapping):
            def end(self, outcome: Outcome) -> None:
                if outcome.kind != "client_gone":
                    super().end(outcome)

        return Keeping(sink)


class SharesItsStateBetweenTwo(Plugin):
    """Keeps what is held on the plugin, and begins anew with each reply, which is well while there is one at a time."""

    held = ""

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        self.held = ""

        def replaced(text: str, last: bool) -> tuple[str, str]:
            *whole, rest = (self.held + text).split("cat")
            self.held = "" if last else begun(rest, "cat")
            return "dog".join([*whole, rest.removesuffix(self.held)]), ""

        return TextSink(sink, replaced)


class PausesForSlowClients(Plugin):
    """And never goes on."""

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        class Pausing(Wrapping):
            def feed(self, chunk: Chunk) -> None:
                super().feed(chunk)
                if ex.paused:
                    ex.pause(self)

        return Pausing(sink)


class KeepsTheEndOfADrain(Plugin):
    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        class Keeping(Wrapping):
            def end(self, outcome: Outcome) -> None:
                if outcome.kind != "drained":
                    super().end(outcome)

        return Keeping(sink)


class StaysWhenTheClientLeaves(Plugin):
    async def on_request(self, ex: Exchange) -> Reply | None:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            return None


class Promises(Plugin):
    gives = (STOPPED_BY,)


class GivesAnotherType(Plugin):
    gives = (Key("number", int),)

    async def on_request(self, ex: Exchange) -> Reply | None:
        ex[self.gives[0]] = "one"


class GivesAList(Plugin):
    gives = (Key("numbers", list[int]),)

    async def on_request(self, ex: Exchange) -> Reply | None:
        ex[self.gives[0]] = [1]


async def test_types_that_cannot_be_asked_are_taken():
    await keeps_contract(GivesAList)


class AnswersWithBody(Plugin):
    """Answers a request for a stream as if it were none."""

    async def on_request(self, ex: Exchange) -> Reply | None:
        return Reply((Chunk.body(frames.body("Hello")),))


class SetsABadHeader(Plugin):
    async def on_request(self, ex: Exchange) -> Reply | None:
        ex.reply_headers["x-asked"] = 5


class LeavesATask(Plugin):
    async def on_request(self, ex: Exchange) -> Reply | None:
        self.task = asyncio.create_task(asyncio.Event().wait())


class SpawnsWhatFails(Plugin):
    async def on_request(self, ex: Exchange) -> Reply | None:
        async def fail() -> None:
            raise ZeroDivisionError

        ex.spawn(fail())


class CannotReadTools(Plugin):
    """Takes every frame for one of text."""

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        class Reading(Wrapping):
            def feed(self, chunk: Chunk) -> None:
                len(chunk.json["choices"][0]["delta"].get("content", ""))
                super().feed(chunk)

        return Reading(sink)


class LeavesWholeReplies(Plugin):
    """Looks at streams alone."""

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        return HoldsBeginnings().on_stream(ex, sink) if ex.request.stream else sink


class LosesWholeReplies(Plugin):
    """Knows of no `message`."""

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        class Losing(Wrapping):
            def feed(self, chunk: Chunk) -> None:
                if any("delta" in choice for choice in chunk.json["choices"]):
                    super().feed(chunk)

        return Losing(sink)


class LetsOutLate(Wrapping):
    """Holds a "c" that ends a piece of text, until more has come. in_time: or until the choice ends."""

    held, in_time = "", False

    def feed(self, chunk: Chunk) -> None:
        frame = json.loads(json.dumps(chunk.json or {}))
        for choice in frame.get("choices", ()):
            delta = choice.get("delta") or choice.get("message") or {}
            if isinstance(text := delta.get("content"), str):
                text, self.held = self.held + text, ""
                if text.endswith("c") and "message" not in choice:
                    text, self.held = text[:-1], "c"
                delta["content"] = text
            elif self.in_time and choice.get("finish_reason"):
                delta["content"], self.held = self.held, ""
        super().feed(chunk if chunk.json is None or "message" in str(frame) else Chunk.event(frame))

    def end(self, outcome: Outcome) -> None:
        if self.held and outcome.kind == "completed":
            choice = {"index": 0, "delta": {"content": self.held}, "finish_reason": None}
            self.sink.feed(Chunk.event({"object": "chat.completion.chunk", "choices": [choice]}))
        super().end(outcome)


class SaysMoreAfterTheEndOfAChoice(Plugin):
    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        return LetsOutLate(sink)


class LosesTheEnd(Plugin):
    """Says nothing of what it holds when the reply ends."""

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        made = LetsOutLate(sink)
        made.end = sink.end
        return made


class TakesAllChoicesForOne(Plugin):
    """What it holds of one is said in another."""

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        made = LetsOutLate(sink)
        made.in_time = True
        return made


class HidesFailures(Plugin):
    """Of a reply that broke off the client is told that it is whole."""

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        class Hiding(Wrapping):
            def end(self, outcome: Outcome) -> None:
                super().end(Outcome("completed"))

        return Hiding(sink)


class FeedsOtherThings(Plugin):
    """Each as `what`, in place of what came, or before the end."""

    what: Any
    in_the_end: bool = False

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        what, in_the_end = self.what, self.in_the_end

        class Feeding(Wrapping):
            def feed(self, chunk: Chunk) -> None:
                super().feed(chunk if in_the_end else what)

            def end(self, outcome: Outcome) -> None:
                if in_the_end:
                    super().feed(what)
                super().end(outcome)

        return Feeding(sink)


@pytest.mark.parametrize(
    ("what", "in_the_end", "seen"),
    [
        ({"choices": []}, False, "fed a dict, which is no chunk"),
        (None, True, "fed a NoneType, which is no chunk"),
        (Chunk.body(b"{}"), False, "fed what is no event to a stream"),
        (Chunk.event({"choices": []}), False, "fed what is no JSON object to a reply that is not streamed"),
        (Chunk(b"Hello", b"Hello"), False, "fed what is no JSON object to a reply that is not streamed"),
        (Chunk(b"data: [DONE]\n\n", b"[DONE]"), True, "fed a [DONE] of its own"),
    ],
)
async def test_what_cannot_be_sent(what, in_the_end, seen):
    report = await contract(lambda: FeedsOtherThings(what=what, in_the_end=in_the_end))
    assert seen in [finding.seen for finding in report.findings if finding.promise == "chunks"]


@pytest.mark.parametrize("choices", [None, "none", [None], [{"index": [1]}], [{"index": 0, "delta": "text"}]])
async def test_what_is_said_may_be_anything(choices):
    """It is the plugin that is found out by it, and not the suite."""
    await contract(lambda: FeedsOtherThings(what=Chunk.event({"choices": choices})))


class ReadsText(Plugin):
    """Takes whatever a message says for one string."""

    async def on_request(self, ex: Exchange) -> Reply | None:
        ex.reply_headers["x-chars"] = str(sum(len(message["content"].strip()) for message in ex.request.messages))


async def test_replies_end_everywhere():
    """Also in the midst of what the plugin holds, where the answer that was given does not."""
    assert "whole" in await promises(LosesTheEnd, answer="A cat, two cats.")


async def test_what_clients_ask():
    """Each kind of message is tried."""
    report = await contract(ReadsText)
    assert {"raises"} == {finding.promise for finding in report.findings}
    cases = {case for finding in report.findings for case in finding.cases}
    assert {f"a request with {what}" for what in MESSAGES} == cases


async def test_one_that_cuts_replies_may_count_as_it_likes():
    """Chunks, or all choices together."""
    assert () == (await contract(EVERY["stops twice"], answer="A cat, two cats.")).findings


WRONG = {
    "whole": LeavesWholeReplies,
    "choices": TakesAllChoicesForOne,
    "finish": SaysMoreAfterTheEndOfAChoice,
    "cut": Replaces,
    "state": SharesItsState,
    "chunks": ChangesChunks,
    "pause": PausesForGood,
    "end": KeepsTheEndOfThoseWhoLeave,
    "leave": StaysWhenTheClientLeaves,
    "gives": Promises,
    "answer": AnswersWithBody,
    "tasks": LeavesATask,
    "raises": CannotReadTools,
}


@pytest.mark.parametrize(("promise", "plugin"), WRONG.items())
async def test_what_is_broken_is_named(promise, plugin):
    assert promise in await promises(plugin, answer="A cat, two cats, a c", patience_s=0.2)


@pytest.mark.parametrize(
    ("promise", "plugin", "case"),
    [
        ("state", SharesItsStateBetweenTwo, "two at once"),
        ("pause", PausesForSlowClients, "a client that reads slowly"),
        ("end", KeepsTheEndOfADrain, "drained"),
    ],
)
async def test_what_is_broken_in_one_way_only_is_named_with_it(promise, plugin, case):
    findings = (await contract(plugin, answer="A cat, two cats.", patience_s=2.0)).findings
    # What is held on the plugin is held for all choices, too, and lost where a reply ends in it.
    [finding] = [each for each in findings if each.promise not in ("choices", "whole")]
    assert promise == finding.promise
    assert any(case in each for each in finding.cases), finding.cases


@pytest.mark.parametrize(
    ("promise", "plugin"),
    [
        ("state", Remembers), ("pause", PausesForGoodAtOnce), ("end", EndsTwice), ("end", SwallowsTheEnd), ("gives", GivesAnotherType),
        ("answer", SetsABadHeader), ("tasks", SpawnsWhatFails), ("end", HidesFailures), ("whole", LosesWholeReplies),
    ],
)  # fmt: skip
async def test_nothing_else_is_named(promise, plugin):
    assert {promise} == await promises(plugin, patience_s=2.0)


def test_every_subject_is_tried():
    assert EVERY.keys() - WELL_BEHAVED.keys() == TOLD.keys()


def test_every_promise_is_tried():
    """Each that a report can name is broken by somebody above."""
    named = {*WRONG, *(told[0] for told in TOLD.values() if told), "memory"}
    assert set(REMEDIES) == named


async def test_an_instance_stands_for_its_configuration():
    """Nothing is found; the same of a function that makes one. The instance itself is left as it was."""
    plugin = HoldsBeginnings()
    for given in (plugin, HoldsBeginnings):
        report = await keeps_contract(given, answer="A cat, two cats.")
        assert ((), ()) == (report.findings, report.notes)
        assert report.conversations >= 80
    assert "kept" in str(report)


async def test_what_is_raised_says_what_to_do():
    with pytest.raises(AssertionError) as told:
        await keeps_contract(Replaces, answer="A cat.")
    assert "cut: it let another reply through (a character an event and" in str(told.value)
    assert "hold its beginning until more has come" in str(told.value)


async def test_what_may_be_broken():
    """One that has to see the whole reply says so, and is still held to the rest."""
    await keeps_contract(WELL_BEHAVED["holds"], but=["memory"])
    with pytest.raises(AssertionError, match="cut: "):
        await keeps_contract(Replaces, answer="A cat.", but=["memory"])


async def test_an_on_end_that_does_not_return(monkeypatch):
    """Is waited for once."""
    monkeypatch.setattr("relay.chain.END_TIMEOUT_S", 0.01)
    report = await contract(NeverEnds)
    assert 1 == report.conversations
    assert ["raises"] == [finding.promise for finding in report.findings]


async def test_one_that_answers():
    """Is told that nothing else was tried."""
    report = await contract(EVERY["answers"])
    assert "answers this request itself" in report.notes[0]


class Twice(Plugin):
    """Lets two requests through, as a limit does."""

    left = 2

    async def on_request(self, ex: Exchange) -> Reply | None:
        self.left -= 1
        if self.left < 0:
            await EVERY["rejects"]().on_request(ex)


async def test_a_fresh_one_is_taken_where_a_limit_is_reached():
    report = await contract(Twice)
    assert () == report.findings


class ReadsEveryRequest(Plugin):
    serves = frozenset({"chat", "models"})

    async def on_request(self, ex: Exchange) -> Reply | None:
        ex.request.set("user", "me")


async def test_requests_for_other_things():
    """Have no chat completion in them."""
    report = await contract(ReadsEveryRequest)
    [finding] = report.findings
    assert ("raises", ("a request for models",)) == (finding.promise, finding.cases)
    assert "has no chat request" in finding.seen


async def test_routes_are_not_tried():
    """And that is told."""
    report = await contract(WELL_BEHAVED["registered: bingcheng"])
    assert "translate was not tried" in report.notes[0]


class Opens(Plugin):
    """Knows whether it is open."""

    @asynccontextmanager
    async def lifespan(self, services):
        self.open = True
        yield
        self.open = False

    async def on_request(self, ex: Exchange) -> Reply | None:
        assert self.open


class NeedsAKey(Plugin):
    needs = (CALLER, Key("caller", str))


async def test_it_is_open_and_in_its_place():
    await keeps_contract(Opens)
    with pytest.raises(Exception, match="no plugin before it gives it"):
        await contract(NeedsAKey)


class Counts(Plugin):
    needs_store = True


async def test_one_that_needs_a_store():
    with pytest.raises(ValueError, match="give lent=Lent"):
        await contract(Counts)
    await keeps_contract(Counts, lent=Lent(store=ScriptedStore({})))


class NeverOpens(Plugin):
    @asynccontextmanager
    async def lifespan(self, services):
        await asyncio.Event().wait()
        yield


class NeverCloses(Plugin):
    @asynccontextmanager
    async def lifespan(self, services):
        yield
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("plugin", "told"), [(NeverOpens, "NeverOpens.lifespan does not come to its yield"), (NeverCloses, "does not end")]
)
async def test_one_that_never_opens_or_closes(plugin, told, monkeypatch):
    """Is not waited for longer than in a relay."""
    for name in ("OPEN_TIMEOUT_S", "CLOSE_TIMEOUT_S"):
        monkeypatch.setattr(f"relay.testing.trial.{name}", 0.01)
    with pytest.raises(TimeoutError, match=told):
        await contract(plugin)


async def test_no_handler_of_the_loop_is_left():
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    await contract(SpawnsWhatFails)
    assert before is loop.get_exception_handler()
