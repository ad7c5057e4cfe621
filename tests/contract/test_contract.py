"""Every promise of the plugin interface, kept with every plugin.

The plugin in question (`subjects.py`) stands between two witnesses (`relay.testing.conversation`).
"""

import asyncio
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from subjects import (
    EVERY,
    INSTALLED,
    Answers,
    NeverEnds,
    RejectsInStream,
    SwallowsTheEnd,
    configured,
    every_case,
    every_good_plugin,
    every_plugin,
    talk,
)

from relay.errors import Reject
from relay.exchange import Outcome
from relay.plugin import Plugin
from relay.testing import frames
from relay.testing.conversation import CASES, REPLY, Case, Conversation, cached, completes, completes_cut

# The promises


@every_case
@every_plugin
async def test_on_end(make: Callable[[], Plugin], case: Case) -> None:
    """`on_end` runs once for each plugin whose `on_request` returned, the last one first, and knows the outcome."""
    held = await talk(make(), **case.request).hold(case.ending)
    assert held.order("settled") == held.order("on_request")[::-1]
    assert held.outer.outcome is not None
    if held.error is not None:
        assert held.outer.outcome.error is held.error


@every_case
@every_plugin
async def test_end(make: Callable[[], Plugin], case: Case) -> None:
    """Every sink that was made ends once, from the upstream's side on; and nothing is fed after the end."""
    held = await talk(make(), **case.request).hold(case.ending)
    await asyncio.sleep(0)
    assert sorted(held.order("end")) == sorted(held.order("on_stream"))
    assert held.order("end") in ([], ["outer"], ["inner"], ["inner", "outer"], ["outer", "inner"])
    assert len(held.kept.ends) <= 1
    assert held.kept.late == []
    last = {who: index for index, (what, who) in enumerate(held.seen) if what == "end"}
    assert not [who for who, index in last.items() if ("feed", who) in held.seen[index:]]
    assert not held.body.reentered


@every_case
@every_good_plugin
async def test_nothing_is_changed(make: Callable[[], Plugin], case: Case) -> None:
    """Order is kept both ways, the outcome is the one that happened, and clean chunks come out as the bytes they were."""
    held = await talk(make(), **case.request).hold(case.ending)
    assert held.errors == []
    if not case.kind:
        assert isinstance(held.error, Reject)
        assert held.error.code == "not_you"
        return
    assert held.order("on_request") == ["outer", "inner"]
    assert held.order("on_stream") == ["outer", "inner"]  # folded: the last one is asked last and fed first
    assert held.order("end") == ["inner", "outer"]
    assert held.order("on_end") == ["inner", "outer"]
    [outcome] = held.kept.ends
    assert outcome.kind == case.kind
    sent = b"".join(held.sent).removesuffix(frames.done())
    assert sent.startswith(held.kept.raw)
    if case.kind == "completed":
        assert held.kept.raw == sent


@every_good_plugin
@pytest.mark.parametrize("cuts", [None, (), range(0, 4000, 7)], ids=["bytes", "whole", "sevens"])
async def test_cut(make: Callable[[], Plugin], cuts: Iterable[int] | None) -> None:
    """However the upstream cuts its bytes, the same chunks come out."""
    held = await talk(make()).hold(completes_cut(cuts))
    assert held.kept.raw == b"".join(REPLY[:-1])


@pytest.mark.parametrize("name", [entry.name for entry in INSTALLED.plugins.names()])
@given(cuts=st.lists(st.integers(1, 900)))
def test_cut_at_random(name: str, cuts: list[int]) -> None:
    """The same for every registered plugin, at random."""

    async def hold() -> Conversation:
        return await talk(configured(name)).hold(completes_cut(cuts))

    assert asyncio.run(hold()).kept.raw == b"".join(REPLY[:-1])


@every_good_plugin
async def test_whole_is_one_chunk(make: Callable[[], Plugin]) -> None:
    """A reply that is not streamed passes every sink as one chunk."""
    held = await talk(make(), stream=False).hold(CASES["whole"].ending)
    assert held.order("feed") == ["inner", "outer"]
    assert held.kept.raw == frames.body("Hello")


@pytest.mark.parametrize("stream", [True, False])
async def test_early_answer(stream: bool) -> None:
    """An early answer is seen by the plugins before it, and by none after it; its giver has its `on_end`."""
    held = await talk(Answers(), stream=stream).hold(completes)
    assert held.kept.text == "cached"
    assert set(held.order("feed")) == set(held.order("end")) == {"outer"}
    assert [link.name for link in held.entered] == ["caller", "outer", "subject"]
    assert not held.body.drained


@every_good_plugin
@pytest.mark.parametrize("stream", [True, False])
async def test_early_answer_from_within(make: Callable[[], Plugin], stream: bool) -> None:
    """Every plugin sees the answer of one behind it, as it would see an upstream's."""
    held = await talk(make(), inner_answers=cached(stream), stream=stream).hold(completes)
    assert held.kept.text == "cached"
    assert held.kept.ends == [Outcome("completed")]
    assert held.times("end", "outer") == 1
    assert held.probe is None or not held.probe.made or held.probe.ends_in == 1
    assert held.errors == []


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
    held = await talk(EVERY[name]()).hold(completes)
    assert [(error.plugin, error.hook) for error in held.errors] == [("subject", hook)]
    if hook in ("on_request", "on_stream"):
        assert held.error is held.errors[0]
    elif hook in ("feed", "end") and name != "raises after end":
        assert held.kept.ends == [Outcome("internal_error", held.errors[0])]
    else:
        assert held.kept.ends == [Outcome("completed")]


@pytest.mark.parametrize("name", ["raises in feed", "raises in end", "raises after end", "raises in on_end"])
@pytest.mark.parametrize("case", [CASES["upstream died"], CASES["drained"], CASES["client gone"]])
async def test_first_error(name: str, case: Case) -> None:
    """A plugin that fails after something else went wrong does not hide what that was."""

    held = await talk(EVERY[name]()).hold(case.ending)
    expected = "internal_error" if name == "raises in feed" else case.kind
    assert held.kept.ends[0].kind == expected


async def test_rejected_in_stream() -> None:
    """A refusal by `on_stream` is the answer, and the sinks that were there already end with it."""
    held = await talk(RejectsInStream()).hold(completes)
    assert isinstance(held.error, Reject)
    assert held.errors == []
    assert held.order("end") == ["outer"]
    assert held.kept.ends == [Outcome("refused", held.error)]


async def test_swallowed_end() -> None:
    """A plugin that keeps the end keeps it from the plugins before it, and from nobody else: each has its `on_end`."""
    held = talk(SwallowsTheEnd(), patience_s=0.01)
    await held.hold(completes)
    assert held.hung
    assert held.order("end") == ["inner"]
    assert held.order("settled") == ["inner", "outer"]


async def test_on_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An `on_end` that does not return is left behind and named; the next one has its turn."""
    monkeypatch.setattr("relay.chain.END_TIMEOUT_S", 0.01)
    held = await talk(NeverEnds()).hold(completes)
    assert [(error.plugin, error.hook) for error in held.errors] == [("subject", "on_end")]
    assert held.order("settled") == ["inner", "outer"]


def test_registered_moderators() -> None:
    """A moderator is known in logs and metrics as it is registered."""
    for entry in INSTALLED.moderators.names():
        assert INSTALLED.moderators.find(entry.name).known_as == entry.name
