"""The quota's meter: whatever comes, however it is cut and whenever answers come, no more leaves than is paid for."""

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.delivery import StreamDelivery, WholeDelivery
from relay.errors import Unavailable, upstream_incomplete
from relay.exchange import Outcome
from relay.pure.openai import Chunk
from relay.pure.shape import Shapes
from relay.pure.tokens import Calibration
from relay.testing import frames
from relay.testing.reply import HandBody, Kept, exchange
from relay_plugins.quota.bill import Bill
from relay_plugins.quota.meter import Meter
from relay_plugins.quota.shortened import NOTICE
from relay_plugins.quota.tariff import Price, Tariff

PROMPT = "Hi"  # of `exchange`
LENGTH = "length"


class Purse:
    """Extends a bill out of what there is, when the test lets it. `calls`: the wants."""

    def __init__(self, bill, units, reserved):
        self.bill = bill
        self.units = units
        self.calls = []
        self.error = None
        self.open = asyncio.Event()
        self.open.set()
        bill.covered = min(units, reserved)

    async def extend(self, want):
        self.calls.append(want)
        await self.open.wait()
        if self.error is not None:
            return self.error
        self.bill.covered = max(self.bill.covered, min(self.units, want))
        return None


class Rig:
    """A reply on its way past the meter."""

    def __init__(self, *, units=10_000, reserved=None, instalment=100, tariff=None, **request):
        self.ex = exchange(**request)
        self.bill = Bill(self.ex, "shop", tariff or Tariff("characters"), Calibration(), Calibration())
        reserved = self.bill.with_more(0) + instalment if reserved is None else reserved
        self.purse = Purse(self.bill, units, reserved)
        self.kept = Kept()
        self.body = HandBody()
        meter = Meter(self.ex, self.kept, self.bill, self.purse.extend, instalment=instalment)
        stream = self.ex.request.stream
        self.delivery = (
            StreamDelivery(self.ex, meter, self.body, Shapes()) if stream else WholeDelivery(self.ex, meter, self.body)
        )
        self.delivery.start()

    async def reply(self, events, *, pauses=()):
        """Say it all; before the events in `pauses` the loop takes some turns."""
        for position, event in enumerate(events):
            if position in pauses:
                await turns()
            self.body.say(event)
        self.body.eof()
        outcome = await self.kept.ended()
        await turns()
        await self.ex.close()
        assert self.kept.ends == [outcome]
        assert self.kept.late == []
        return outcome

    @property
    def said(self):
        return [chunk.json for chunk in self.kept.chunks]


async def turns():
    for _ in range(8):
        await asyncio.sleep(0)


async def test_passes_what_is_covered():
    """With enough in the purse a reply leaves byte for byte, and more is asked for before it is needed."""
    rig = Rig(instalment=10)
    events = frames.stream(["four"] * 20)
    outcome = await rig.reply(events, pauses=range(50))
    assert outcome.kind == "completed"
    assert rig.kept.raw + outcome.done == b"".join(events)
    assert rig.bill.spent == 82
    assert len(rig.purse.calls) > 5


async def test_nothing_is_asked_of_a_short_reply():
    rig = Rig(instalment=100)
    await rig.reply(frames.stream(["short"]))
    assert rig.purse.calls == []


async def test_ends_to_the_character():
    """Where the purse ends the text ends, within a chunk, and the stream says why."""
    rig = Rig(units=2 + 7)
    outcome = await rig.reply(frames.stream(["four", "five.", "six"]))
    assert outcome == Outcome("exhausted", done=outcome.done)
    assert rig.kept.text == "fourfiv"
    assert rig.bill.spent == 9
    *_, closing, notice = rig.said
    assert closing["choices"] == [{"index": 0, "delta": {}, "finish_reason": LENGTH}]
    assert (notice["choices"], notice["relay"]) == ([], NOTICE)
    assert closing["id"] == notice["id"] == rig.said[0]["id"]


async def test_ends_where_it_fits_exactly():
    """Nothing is cut of a reply that takes the last unit, and nothing is said of a quota."""
    rig = Rig(units=2 + 9)
    outcome = await rig.reply(frames.stream(["four", "five."]))
    assert (outcome.kind, rig.kept.text, rig.bill.spent) == ("completed", "fourfive.", 11)


async def test_waits_for_the_answer():
    """What is not covered waits, and the upstream with it; the end waits behind."""
    rig = Rig(instalment=4)
    rig.purse.open.clear()
    for event in frames.stream(["four", "five.", "six"]):
        rig.body.say(event)
    await turns()
    assert rig.kept.text == "four"
    assert rig.body.paused
    rig.purse.open.set()
    rig.body.eof()
    assert (await rig.kept.ended()).kind == "completed"
    assert rig.kept.text == "fourfive.six"
    await rig.ex.close()


async def test_end_overtakes_the_answer():
    """The upstream has ended and what it said still waits for its cover."""
    rig = Rig(instalment=4)
    rig.purse.open.clear()
    rig.body.say(b"".join(frames.stream(["four", "five.", "six"])))
    rig.body.eof()
    await turns()
    assert not rig.kept.ends
    rig.purse.open.set()
    assert (await rig.kept.ended()).kind == "completed"
    assert rig.kept.text == "fourfive.six"
    await rig.ex.close()


@pytest.mark.parametrize("kind", ["client_gone", "drained", "internal_error"])
async def test_ends_at_once(kind):
    """Who does not wait for what is held does not get it."""
    rig = Rig(instalment=4)
    rig.purse.open.clear()
    rig.body.say(b"".join(frames.stream(["four", "five."])[:-1]))
    await turns()
    rig.ex.stop(Outcome(kind))
    assert (await rig.kept.ended()).kind == kind
    await rig.ex.close()
    assert rig.kept.text == "four"
    assert rig.bill.spent == 6


async def test_client_leaves_behind_the_end():
    """The upstream has ended; the client leaves while the rest waits: the sinks still get their end."""
    rig = Rig(instalment=4)
    rig.purse.open.clear()
    rig.body.say(b"".join(frames.stream(["four", "five."])))
    rig.body.eof()
    await turns()
    rig.ex.stop(Outcome("client_gone"))
    await rig.ex.close()
    assert (await rig.kept.ended()).kind == "client_gone"


async def test_upstream_breaks_off_behind_what_is_held():
    """What is paid for is still delivered before the error."""
    rig = Rig(instalment=4)
    rig.purse.open.clear()
    for event in frames.stream(["four", "five."])[:-2]:
        rig.body.say(event)
    rig.body.eof()
    await turns()
    rig.purse.open.set()
    outcome = await rig.kept.ended()
    assert (outcome.kind, outcome.error.code) == ("upstream_error", upstream_incomplete().code)
    assert rig.kept.text.startswith("four")
    await rig.ex.close()


async def test_nobody_knows_of_more():
    """An error in asking ends the reply only where it cannot go on."""
    rig = Rig(instalment=4)
    rig.purse.error = Unavailable("away", code="quota_unavailable")
    outcome = await rig.reply(frames.stream(["ab", "cd", "ef", "gh"]), pauses=range(9))
    assert (outcome.kind, outcome.error.code) == ("unavailable", "quota_unavailable")
    assert rig.kept.text == "abcd"


class Waiting:
    """Stands before a meter, as a gate does that waits for verdicts: it keeps the end."""

    def __init__(self, rig):
        self.meter = rig.delivery._sink
        self.feed = self.meter.feed
        self.kept = []
        self.end = self.kept.append
        rig.delivery._sink = self


async def test_nobody_knows_of_more_behind_the_end():
    """Whoever is before us has had the upstream's good end already: the error is told all the same."""
    rig = Rig(instalment=4)
    gate = Waiting(rig)
    rig.purse.open.clear()
    rig.purse.error = Unavailable("away", code="quota_unavailable")
    rig.body.say(b"".join(frames.stream(["four", "five."])))
    rig.purse.open.set()
    await turns()
    (end,) = gate.kept
    assert end.kind == "completed"
    gate.meter.end(end)
    assert (rig.kept.outcome.kind, rig.kept.outcome.error.code) == ("unavailable", "quota_unavailable")
    await rig.ex.close()


async def test_asking_fails_by_a_fault_of_ours():
    """It is no end of the quota."""
    rig = Rig(instalment=4)

    async def extend(want):
        raise ZeroDivisionError

    rig.delivery._sink._extend = extend
    rig.ex.loop.set_exception_handler(lambda loop, context: None)
    outcome = await rig.reply(frames.stream(["four", "five."]))
    assert (outcome.kind, outcome.error.code) == ("internal_error", "internal_error")
    assert rig.kept.text == "four"


async def test_text_in_the_last_frame_of_a_choice():
    """A frame that finishes its choice and is not paid for has not finished it; its text is cut as any other."""
    rig = Rig(units=2 + 7)
    await rig.reply(
        [frames.role(), frames.text("four"), frames.delta({"content": "five."}, finish_reason="stop"), frames.done()]
    )
    assert rig.kept.text == "fourfiv"
    assert rig.bill.spent == 9
    assert [choice["finish_reason"] for frame in rig.said for choice in frame["choices"]] == [None, None, None, LENGTH]


@pytest.mark.parametrize("surface", ["content", "reasoning_content", "refusal"])
async def test_text_in_the_first_frame_of_a_choice(surface):
    """Whatever it is that is said, with a role or without: it ends to the character."""
    rig = Rig(units=2 + 3)
    await rig.reply([frames.delta({"role": "assistant", surface: "four"}), frames.finish(), frames.done()])
    assert [frame["choices"][0]["delta"] for frame in rig.said[:-1]] == [{"role": "assistant", surface: "fou"}, {}]
    assert rig.bill.spent == 5


@pytest.mark.parametrize(
    "choices",
    [
        [{"index": 0, "delta": {"content": "four", "reasoning": "five."}}],
        [{"index": True, "delta": {"content": "four"}}],
        [{"index": 0, "delta": {"content": ["four"]}}],
        [{"index": 0, "delta": {"content": "four"}}, {"index": 1, "delta": {"content": "four"}}],
        [{"index": 0, "text": "four"}],
    ],
)
async def test_what_is_not_cut(choices):
    """Of what says several things there is no first part: none of it leaves, and none of it is charged."""
    rig = Rig(units=2 + 3)
    await rig.reply([frames.role(), frames.chunk(choices), frames.done()])
    assert rig.kept.text == ""
    assert rig.bill.spent == 2
    assert rig.said[-1]["relay"] == NOTICE


async def test_a_word_of_the_relay_follows():
    """What a gate still has to tell, such as what to take back, comes behind the end of the quota; text does not."""
    rig = Rig(units=2 + 4)
    gate = Waiting(rig)
    rig.body.say(b"".join(frames.stream(["four", "five."])))
    await turns()
    assert rig.said[-1]["relay"] == NOTICE
    told = Chunk.event({"choices": [], "relay": {"withdraw": []}})
    gate.feed(Chunk.event({"choices": [{"index": 0, "delta": {"content": "six"}}]}))
    gate.feed(told)
    gate.meter.end(*gate.kept)
    assert rig.kept.chunks[-1] is told
    assert rig.kept.text == "four"
    assert rig.kept.outcome.kind == "exhausted"
    await rig.ex.close()


async def test_several_choices():
    """Those that have ended are not ended again; those that were never seen begin with a role."""
    rig = Rig(units=2 + 6, n=3)
    events = [
        frames.role(index=0),
        frames.text("one", index=0),
        frames.finish(index=0),
        frames.role(index=1),
        frames.text("two", index=1),
        frames.text("more", index=1),
        frames.done(),
    ]
    await rig.reply(events)
    assert [frame["choices"][0] for frame in rig.said[-3:-1]] == [
        {"index": 1, "delta": {}, "finish_reason": LENGTH},
        {"index": 2, "delta": {"role": "assistant", "content": ""}, "finish_reason": LENGTH},
    ]


async def test_usage_is_told_to_who_waits_for_it():
    rig = Rig(units=2 + 4, stream_options={"include_usage": True})
    await rig.reply(frames.stream(["four", "five."]))
    assert rig.said[-1]["usage"]["completion_tokens"] == round(0.24 * 4)


async def test_usage_counts_what_was_cut():
    rig = Rig(units=2 + 40, stream_options={"include_usage": True})
    await rig.reply(frames.stream(["far too long " * 10]))
    assert rig.said[-1]["usage"]["completion_tokens"] == round(0.24 * 40)


async def test_tool_calls_are_not_cut():
    rig = Rig(units=2 + 10)
    await rig.reply([frames.role(), frames.tool(arguments='{"a": "a long one"}'), frames.done()])
    assert [frame["choices"] for frame in rig.said[1:]][-1] == []
    assert rig.bill.spent == 2


async def test_whole_reply_is_cut():
    rig = Rig(units=2 + 5, stream=False)
    outcome = await rig.reply([frames.body("far too long")])
    (body,) = rig.said
    assert outcome.kind == "exhausted"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "far t"}
    assert body["choices"][0]["finish_reason"] == LENGTH
    assert body["relay"] == NOTICE
    assert rig.bill.spent == 7


async def test_whole_reply_of_several_choices():
    """Those that have room stay as they are, and the first that has none is cut."""
    rig = Rig(units=2 + 8, stream=False, n=3)
    body = json.loads(frames.body("four"))
    first = body["choices"][0]
    for index, text in enumerate(["far too long", "x"], 1):
        body["choices"].append({**first, "index": index, "message": {"role": "assistant", "content": text}})
    outcome = await rig.reply([json.dumps(body).encode()])
    assert outcome.kind == "exhausted"
    choices = rig.said[0]["choices"]
    assert choices[0] == first
    assert [(each["message"]["content"], each["finish_reason"]) for each in choices[1:]] == [
        ("far ", LENGTH),
        ("", LENGTH),
    ]
    assert rig.bill.spent == 10


async def test_whole_reply_that_is_covered():
    """Nothing is asked for beyond it: there is nothing to come."""
    rig = Rig(stream=False, instalment=20)
    outcome = await rig.reply([frames.body("as long as may be")])
    assert (outcome.kind, rig.purse.calls) == ("completed", [])


async def test_whole_reply_is_extended():
    rig = Rig(stream=False, instalment=5)
    outcome = await rig.reply([frames.body("far too long")])
    assert (outcome.kind, rig.kept.raw) == ("completed", frames.body("far too long"))


async def test_reported_usage_counts():
    """Of a whole reply in tokens the upstream's count is charged, of one that was cut ours."""
    tariff = Tariff("points", Price(input=1000, output=2000))
    rig = Rig(tariff=tariff, units=10_000, instalment=1000)
    outcome = await rig.reply(frames.stream(["Hello"], tokens=(10, 3)))
    assert rig.bill.amount(outcome, asked=True) == 10 + 2 * 3
    assert rig.bill.amount(Outcome("client_gone"), asked=True) == rig.bill.spent == 5 + 2 * 2 - 1


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        [],
        "x",
        {"prompt_tokens": 0, "completion_tokens": 0},
        {"prompt_tokens": 9, "completion_tokens": 0},
        {"prompt_tokens": 0, "completion_tokens": 9},
        {"prompt_tokens": -1, "completion_tokens": 3},
        {"prompt_tokens": 9.0, "completion_tokens": 3},
        {"prompt_tokens": "9", "completion_tokens": 3},
        {"prompt_tokens": True, "completion_tokens": 3},
        {"prompt_tokens": 10**30, "completion_tokens": 3},
        {"completion_tokens": 3},
    ],
)
async def test_usage_that_cannot_be(usage):
    """Our own count is taken in its place, which is never nothing."""
    rig = Rig(tariff=Tariff("tokens"))
    said = [frames.role(), frames.text("Hello there"), frames.finish(), frames.chunk([], extra={"usage": usage})]
    outcome = await rig.reply([*said, frames.done()])
    assert rig.bill.reported is None
    assert rig.bill.amount(outcome, asked=True) == rig.bill.spent > 5


async def test_usage_in_every_frame():
    """The last one counts."""
    rig = Rig(tariff=Tariff("tokens"))
    said = [
        frames.chunk(
            [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}],
            extra={"usage": {"prompt_tokens": 7, "completion_tokens": number}},
        )
        for number in range(1, 5)
    ]
    outcome = await rig.reply([*said, frames.finish(), frames.done()])
    assert rig.bill.amount(outcome, asked=True) == 7 + 4


@given(
    texts=st.lists(st.text("abc字é😀", min_size=1, max_size=12), max_size=30),
    units=st.integers(3, 200),
    instalment=st.integers(1, 60),
    data=st.data(),
)
async def test_never_more_than_there_is(texts, units, instalment, data):
    """Whole while there is enough, exactly the purse where there is not; whenever answers come."""
    rig = Rig(units=units, reserved=min(units, 2 + instalment), instalment=instalment)
    events = frames.stream(texts)
    pauses = data.draw(st.sets(st.integers(0, len(events))))
    outcome = await rig.reply(events, pauses=pauses)
    said = "".join(texts)
    assert rig.kept.text == said[: units - 2]
    assert rig.bill.spent == 2 + len(rig.kept.text) <= units
    if len(said) <= units - 2:
        assert rig.kept.raw + outcome.done == b"".join(events)
    else:
        assert outcome.kind == "exhausted"
        assert rig.said[-1]["relay"] == NOTICE


@given(texts=st.lists(st.text("abc字", min_size=1, max_size=40), max_size=30), units=st.integers(20, 200))
@settings(max_examples=30)
async def test_tokens_are_never_overspent(texts, units):
    rig = Rig(tariff=Tariff("tokens"), units=units, reserved=min(units, 30), instalment=20)
    await rig.reply(frames.stream(texts), pauses=range(40))
    assert "".join(texts).startswith(rig.kept.text)
    assert rig.bill.spent <= max(units, 6)
