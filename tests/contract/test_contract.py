"""Every promise of the plugin interface, kept with every plugin.

The plugin in question (`subjects.py`) stands between two witnesses (`witnesses.py`).
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from subjects import (
    EVERY,
    HEADERS,
    INSTALLED,
    Answers,
    NeverEnds,
    RejectsInStream,
    SwallowsTheEnd,
    configured,
    every_good_plugin,
    every_plugin,
    lent,
)
from witnesses import CASES, REPLY, Case, Talk, Witness, completes, completes_cut, completes_whole, every_case, told

from relay.chain import Chain
from relay.delivery import Replay
from relay.errors import PluginError, Reject
from relay.exchange import Outcome
from relay.plugin import Plugin
from relay.testing import frames
from relay.testing.reply import Kept, exchange

# The promises


@every_case
@every_plugin
async def test_on_end(make: Callable[[], Plugin], case: Case) -> None:
    """`on_end` runs once for each plugin whose `on_request` returned, the last one first, and knows the outcome."""
    talk = await Talk(make(), **case.request).hold(case.ending)
    assert talk.order("settled") == talk.order("on_request")[::-1]
    assert talk.outer.outcome is not None
    if talk.error is not None:
        assert talk.outer.outcome.error is talk.error


@every_case
@every_plugin
async def test_end(make: Callable[[], Plugin], case: Case) -> None:
    """Every sink that was made ends once, from the upstream's side on; and nothing is fed after the end."""
    talk = await Talk(make(), **case.request).hold(case.ending)
    await asyncio.sleep(0)
    assert sorted(talk.order("end")) == sorted(talk.order("on_stream"))
    assert talk.order("end") in ([], ["outer"], ["inner"], ["inner", "outer"], ["outer", "inner"])
    assert len(talk.kept.ends) <= 1
    assert talk.kept.late == []
    last = {who: index for index, (what, who) in enumerate(talk.seen) if what == "end"}
    assert not [who for who, index in last.items() if ("feed", who) in talk.seen[index:]]
    assert not talk.body.reentered


@every_case
@every_good_plugin
async def test_nothing_is_changed(make: Callable[[], Plugin], case: Case) -> None:
    """Order is kept both ways, the outcome is the one that happened, and clean chunks come out as the bytes they were."""
    talk = await Talk(make(), **case.request).hold(case.ending)
    assert talk.errors == []
    if not case.kind:
        assert isinstance(talk.error, Reject)
        assert talk.error.code == "not_you"
        return
    assert talk.order("on_request") == ["outer", "inner"]
    assert talk.order("on_stream") == ["outer", "inner"]  # folded: the last one is asked last and fed first
    assert talk.order("end") == ["inner", "outer"]
    assert talk.order("on_end") == ["inner", "outer"]
    [outcome] = talk.kept.ends
    assert outcome.kind == case.kind
    sent = b"".join(talk.sent).removesuffix(frames.done())
    assert sent.startswith(talk.kept.raw)
    if case.kind == "completed":
        assert talk.kept.raw == sent


@every_good_plugin
@pytest.mark.parametrize("cuts", [None, (), range(0, 4000, 7)], ids=["bytes", "whole", "sevens"])
async def test_cut(make: Callable[[], Plugin], cuts: Iterable[int] | None) -> None:
    """However the upstream cuts its bytes, the same chunks come out."""
    talk = await Talk(make()).hold(completes_cut(cuts))
    assert talk.kept.raw == b"".join(REPLY[:-1])


@pytest.mark.parametrize("name", [entry.name for entry in INSTALLED.plugins.names()])
@given(cuts=st.lists(st.integers(1, 900)))
def test_cut_at_random(name: str, cuts: list[int]) -> None:
    """The same for every registered plugin, at random."""

    async def hold() -> Talk:
        return await Talk(configured(name)).hold(completes_cut(cuts))

    assert asyncio.run(hold()).kept.raw == b"".join(REPLY[:-1])


@every_good_plugin
async def test_whole_is_one_chunk(make: Callable[[], Plugin]) -> None:
    """A reply that is not streamed passes every sink as one chunk."""
    talk = await Talk(make(), stream=False).hold(completes_whole)
    assert talk.order("feed") == ["inner", "outer"]
    assert talk.kept.raw == frames.body("Hello")


@pytest.mark.parametrize("stream", [True, False])
async def test_early_answer(stream: bool) -> None:
    """An early answer is seen by the plugins before it, and by none after it; its giver has its `on_end`."""
    talk = await Talk(Answers(), stream=stream).hold(completes)
    assert talk.kept.text == "cached"
    assert set(talk.order("feed")) == set(talk.order("end")) == {"outer"}
    assert [link.name for link in talk.entered] == ["outer", "subject"]
    assert not talk.body.drained


@every_good_plugin
async def test_early_answer_from_within(make: Callable[[], Plugin]) -> None:
    """Every plugin sees the answer of one behind it, as it would see an upstream's."""
    seen: list[tuple[str, str]] = []
    errors: list[PluginError] = []
    chain = Chain(
        [
            ("outer", Witness(name="outer", seen=[])),
            ("subject", make()),
            ("witness", Witness(name="witness", seen=seen)),
            ("cache", Answers()),
        ],
        lambda error, _: errors.append(error),
    )
    ex, entered, kept = exchange(headers=HEADERS), [], Kept()
    async with AsyncExitStack() as stack:
        for link in chain.links:
            await stack.enter_async_context(link.plugin.lifespan(lent(link.plugin).services))
        answered = await chain.enter(ex, entered)
        assert answered is not None
        Replay(ex, chain.wrap(ex, entered[:-1], kept), answered).start()
        assert (await kept.ended()).kind == "completed"
        ex.outcome = kept.outcome
        await ex.close()
        ex.tells(told)
        await chain.leave(ex, entered)
    assert kept.text == "cached"
    assert ("end", "witness") in seen
    assert errors == []


FAILURES = {
    "raises in on_request": "on_request",
    "is cancelled by itself": "on_request",
    "answers nonsense": "on_request",
    "raises in on_stream": "on_stream",
    "forgets its sink": "on_stream",
    "raises in feed": "feed",
    "raises in end": "end",
    "raises after end": "end",
    "raises in on_end": "on_end",
    "is cancelled in on_end": "on_end",
}


@pytest.mark.parametrize(("name", "hook"), FAILURES.items())
async def test_foreign_exceptions(name: str, hook: str) -> None:
    """What a plugin raises that is not ours is named with plugin and hook: a 500, or an error in the stream."""
    talk = await Talk(EVERY[name]()).hold(completes)
    assert [(error.plugin, error.hook) for error in talk.errors] == [("subject", hook)]
    if hook in ("on_request", "on_stream"):
        assert talk.error is talk.errors[0]
    elif hook in ("feed", "end") and name != "raises after end":
        assert talk.kept.ends == [Outcome("internal_error", talk.errors[0])]
    else:
        assert talk.kept.ends == [Outcome("completed")]


@pytest.mark.parametrize("name", ["raises in feed", "raises in end", "raises after end", "raises in on_end"])
@pytest.mark.parametrize("case", [CASES["upstream died"], CASES["drained"], CASES["client gone"]])
async def test_first_error(name: str, case: Case) -> None:
    """A plugin that fails after something else went wrong does not hide what that was."""

    talk = await Talk(EVERY[name]()).hold(case.ending)
    expected = "internal_error" if name == "raises in feed" else case.kind
    assert talk.kept.ends[0].kind == expected


async def test_rejected_in_stream() -> None:
    """A refusal by `on_stream` is the answer, and the sinks that were there already end with it."""
    talk = await Talk(RejectsInStream()).hold(completes)
    assert isinstance(talk.error, Reject)
    assert talk.errors == []
    assert talk.order("end") == ["outer"]
    assert talk.kept.ends == [Outcome("refused", talk.error)]


async def test_swallowed_end() -> None:
    """A plugin that keeps the end keeps it from the plugins before it, and from nobody else: each has its `on_end`."""
    talk = Talk(SwallowsTheEnd())
    talk.kept.ended = lambda timeout_s=0: asyncio.sleep(0)  # type: ignore[assignment]
    await talk.hold(completes)
    assert talk.order("end") == ["inner"]
    assert talk.order("settled") == ["inner", "outer"]


async def test_on_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An `on_end` that does not return is left behind and named; the next one has its turn."""
    monkeypatch.setattr("relay.chain.END_TIMEOUT_S", 0.01)
    talk = await Talk(NeverEnds()).hold(completes)
    assert [(error.plugin, error.hook) for error in talk.errors] == [("subject", "on_end")]
    assert talk.order("settled") == ["inner", "outer"]


def test_registered_moderators() -> None:
    """A moderator is known in logs and metrics as it is registered."""
    for entry in INSTALLED.moderators.names():
        assert INSTALLED.moderators.find(entry.name).known_as == entry.name
