"""The plugin `cache` in a relay that serves: who is asked, what the client gets, and what it is charged."""

import asyncio

import pytest

from relay.ledger import Ledger
from relay.testing import Gate, Head, Script, Send, answers, frames, refused, streamed, whole

from .conftest import AUTH, FORBIDDEN, PROMPT, moderation

pytestmark = pytest.mark.parametrize("reader", ["push"], indirect=True)

CHAIN = [AUTH, moderation(), {"use": "cache"}]
ANSWERED = 'relay_plugin_requests_total{outcome="answered",plugin="cache"}'


async def settled(rig):
    """A reply is kept when all about it is settled."""
    await rig.until(lambda: not rig.replies and not rig.app._tasks)


async def asked_twice(rig, **asked):
    """Two answers to one request."""
    replies = []
    for _ in range(2):
        replies.append(await rig.ask(**asked))
        await settled(rig)
    return replies


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_the_official_client(serve, stream):
    """Asks three times, gets the same three times, and the upstream is asked once."""
    rig = await serve(answers(["Hel", "lo"]), chain=CHAIN)
    client = await rig.sdk()
    said = []
    for _ in range(3):
        asked = client.chat.completions.with_raw_response if not stream else client.chat.completions
        answer = await asked.create(model="m", messages=[{"role": "user", "content": PROMPT}], stream=stream)
        if stream:
            said.append([chunk.to_json() async for chunk in answer])
        else:
            said.append(answer.parse().to_json())
            assert ("hit" in answer.headers["cache-status"]) is ("age" in answer.headers) is (len(said) > 1)
        await settled(rig)
    assert said[0] == said[1] == said[2]
    assert 1 == rig.upstream.received
    assert 2 == (await rig.metrics())[ANSWERED]


@pytest.mark.parametrize("done", [frames.done(), b"data:[DONE]\r\n\r\n"])
async def test_to_the_last_byte(serve, done):
    """The events, what stands between them, and the one that ends them."""
    events = [frames.comment("ping"), *frames.stream(["Hel", "lo"] * 200)[:-1], done]
    rig = await serve(streamed(events), chain=CHAIN)
    first, second = await asked_twice(rig)
    assert b"".join(events) == first.data == second.data
    assert ("relay; fwd=miss", True) == (
        first.headers["Cache-Status"],
        second.headers["Cache-Status"].startswith("relay; hit; ttl=3"),
    )
    assert 1 == rig.upstream.received


@pytest.mark.parametrize("wanted", [False, True], ids=["hidden", "wanted"])
async def test_a_hit_is_charged(serve, tmp_path, wanted):
    """By the usage that the upstream told then, which a client sees if it asks for it."""
    data = frames.stream(["Hel", "lo"], tokens=(30, 12))
    quota = {"use": "quota", "unit": "tokens", "grant": 1000, "instalment": 50}
    rig = await serve(streamed(data), chain=[AUTH, quota, *CHAIN[1:]], store=f"embedded:{tmp_path}/data")
    first, second = await asked_twice(rig, **({"stream_options": {"include_usage": True}} if wanted else {}))
    assert b"".join(data if wanted else data[:-2] + data[-1:]) == first.data == second.data
    assert 1 == rig.upstream.received
    standing = await Ledger(rig.relay.store, "tokens", grant=1000).look("tester")
    assert (1000 - 2 * 42, 0) == (standing.balance, standing.reserved)


async def test_in_front_of_quota_a_hit_is_free(serve, tmp_path):
    data = frames.stream(["Hel", "lo"], tokens=(30, 12))
    quota = {"use": "quota", "unit": "tokens", "grant": 1000, "instalment": 50}
    rig = await serve(streamed(data), chain=[*CHAIN, quota], store=f"embedded:{tmp_path}/data")
    first, second = await asked_twice(rig)
    assert b"".join(data[:-2] + data[-1:]) == first.data == second.data
    assert 1000 - 42 == (await Ledger(rig.relay.store, "tokens", grant=1000).look("tester")).balance


async def test_a_client_that_leaves(serve):
    """Nothing is kept of what it had been told; who comes next is answered by an upstream, and then kept."""
    gate = asyncio.Event()
    events = frames.stream(["Hel", "lo"])
    hangs = Script(Head(), Send(b"".join(events[:2])), Gate(gate), Send(b"".join(events[2:])))
    scripts = iter([hangs, streamed(events)])
    rig = await serve(lambda request: next(scripts), chain=CHAIN)
    wire = await rig.dial()
    wire.send(rig.request())
    await wire.through(b'"role"')
    wire.leave("reset")
    await rig.ended()
    gate.set()
    first, second = await asked_twice(rig)
    assert b"".join(events) == first.data == second.data
    assert 2 == rig.upstream.received
    assert ["client_gone", "completed", "completed"] == [line["outcome"] for line in rig.requests]


async def test_what_was_stopped_is_asked_again(serve):
    """Cut in the stream, or refused as a whole."""
    text = f"Take the {FORBIDDEN[0]} now."
    rig = await serve(
        lambda request: streamed(frames.stream([*text])) if request.streams else whole(frames.body(text)), chain=CHAIN
    )
    for stream in (True, False):
        first, second = await asked_twice(rig, stream=stream)
        assert {0: "content_filter"} == first.finishes() == second.finishes()
        assert FORBIDDEN[0] not in str(second.texts())
    assert 4 == rig.upstream.received


async def test_a_refusal_is_asked_again(serve):
    """Of an upstream, whatever its status."""
    scripts = iter([refused(500), refused(400)])
    rig = await serve(lambda request: next(scripts), chain=CHAIN)
    first, second = await asked_twice(rig)
    assert (502, 400) == (first.status, second.status)
    assert "hit" not in second.headers["Cache-Status"]


async def test_a_reload_begins_with_an_empty_cache(serve, tmp_path):
    rig = await serve(answers(["Hel", "lo"]), chain=CHAIN, folder=tmp_path)
    await asked_twice(rig)
    rig.document["plugins"][1] = moderation(holdback_chars=20)
    await rig.reload()
    await asked_twice(rig)
    assert 2 == rig.upstream.received


async def test_many_at_once_are_all_sent_on(serve):
    """Who comes while the first is not answered does not wait for it."""
    gate, events = asyncio.Event(), frames.stream(["Hel", "lo"])
    rig = await serve(Script(Head(), Gate(gate), Send(b"".join(events))), chain=CHAIN)
    asked = [asyncio.ensure_future(rig.ask()) for _ in range(3)]
    await rig.until(lambda: rig.upstream.received == 3)
    gate.set()
    assert {b"".join(events)} == {reply.data for reply in await asyncio.gather(*asked)}
