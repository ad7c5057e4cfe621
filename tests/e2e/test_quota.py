"""The plugin `quota` in a relay that serves, on the store that comes with it: what is charged, and what is not."""

import asyncio
import json

import openai
import pytest

from relay.ledger import Ledger
from relay.testing import Gate, Hang, Head, Script, Send, frames, refused, streamed, whole

from .conftest import AUTH, FORBIDDEN, PROMPT, moderation

pytestmark = pytest.mark.parametrize("reader", ["push"], indirect=True)

ASKED = len(PROMPT)  # characters of a request of the rig's
HELLO = frames.stream(["Hello", " world"])  # 11


def interrupted(before, after, gate=None):
    """A stream that waits for the gate in between; without one for ever."""
    data = [b"".join(events) for events in (before, after)]
    return Script(Head(), Send(data[0]), Gate(gate or asyncio.Event()), Send(data[1]))


@pytest.fixture
def served(serve, tmp_path):
    """`rig = await served(script, **options of the plugin)`; the books are in `rig.ledger`."""

    async def start(*scripts, more=(), server=None, **options):
        quota = {"use": "quota", "grant": 1000, "instalment": 50, **options}
        rig = await serve(*scripts, chain=[AUTH, quota, *more], server=server, store=f"embedded:{tmp_path}/data")
        rig.ledger = Ledger(rig.relay.store, quota.get("unit", "characters"), grant=quota["grant"])
        return rig

    return start


async def books(rig):
    """Balance and reserved, after all that has ended has been settled; the entries say the same."""
    await rig.until(lambda: not rig.replies and not rig.app._tasks)
    standing = await rig.ledger.look("tester")
    entries = await rig.ledger.entries("tester", limit=1000)
    if entries:
        assert entries[0].balance == standing.balance == sum(entry.amount for entry in entries)
    return standing.balance, standing.reserved


async def test_whole(served):
    """A reply costs its prompt and its text, streamed or not, and says what is left."""
    rig = await served(lambda request: streamed(HELLO) if request.streams else whole(frames.body("Hello world")))
    assert (await rig.ask()).texts() == {0: "Hello world"}
    assert (1000 - ASKED - 11, 0) == await books(rig)
    assert (await rig.ask(stream=False)).texts() == {0: "Hello world"}
    assert (1000 - 2 * (ASKED + 11), 0) == await books(rig)
    async with rig.session.get(rig.url + "/v1/quota") as response:
        assert response.status == 200
        told = await response.json()
    used = 2 * (ASKED + 11)
    assert told == {
        "object": "quota",
        "unit": "characters",
        "balance": 1000 - used,
        "reserved": 0,
        "used": used,
        "granted": 1000,
    }


async def test_the_second_api(serve, tmp_path):
    """A new key is granted 10,000 characters, spends them to the last, gets the page's error, is topped up, goes on."""
    texts = ["字" * 40] * 30
    rig = await serve(
        streamed(frames.stream(texts)),
        chain=[AUTH, {"use": "bingcheng", "default_model": "m"}, {"use": "quota", "grant": 10_000}, moderation()],
        store=f"embedded:{tmp_path}/data",
    )
    url = rig.url + "/api/v2.Gptliu/search"
    ledger = Ledger(rig.relay.store, "characters", grant=10_000)

    async def ask():
        async with rig.session.post(url, json={"keyword": " Q: 你好! A: 好。 Q: 讲个故事", "stream": True}) as response:
            return response.status, await response.read()

    got, prompt, asked = 0, len("你好!好。讲个故事"), 0
    assert (await ledger.look("tester")).fresh
    while True:
        status, data = await ask()
        if status != 200:
            break
        asked += 1
        got += data.decode().count("字")
        await rig.until(lambda: not rig.app._tasks)
    assert got + asked * prompt == 10_000
    assert status == 403
    assert json.loads(data) == {
        "error": {
            "message": "User quota is not enough.",
            "type": "talk_api_error",
            "param": None,
            "code": "insufficient_user_quota",
        }
    }
    assert (await ledger.look("tester")).balance == 0
    await ledger.top_up("tester", 5000, key="invoice-1")
    await ledger.top_up("tester", 5000, key="invoice-1")
    status, data = await ask()
    assert (status, data.decode().count("字")) == (200, 1200)
    await rig.until(lambda: not rig.app._tasks)
    assert (await ledger.look("tester")).balance == 5000 - 1200 - prompt


async def test_ends_in_the_middle(served):
    """The official client sees a reply that was cut for its length, and can read why."""
    rig = await served(streamed(frames.stream(["Hello", " world", " and", " all"])), grant=ASKED + 8)
    client = await rig.sdk()
    said, finish, notice = "", None, None
    stream = await client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": PROMPT}], stream=True
    )
    async for chunk in stream:
        if chunk.choices:
            said += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
        else:
            notice = chunk.model_extra["relay"]
    assert (said, finish) == ("Hello wo", "length")
    assert notice["quota"]["code"] == "insufficient_user_quota"
    assert (0, 0) == await books(rig)
    assert ["exhausted"] == [line["outcome"] for line in await rig.ended()]
    with pytest.raises(openai.PermissionDeniedError) as caught:
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": PROMPT}])
    assert caught.value.code == "insufficient_user_quota"


async def test_client_leaves(served):
    """Who leaves pays for the prompt and what was released, not for what would have come."""
    rig = await served(interrupted(HELLO[:2], HELLO[2:]))
    async with rig.post() as response:
        assert b"Hello" in await response.content.readany()
    assert (1000 - ASKED - 5, 0) == await books(rig)


async def test_client_leaves_before_the_first_text(served):
    """The upstream was asked, so the prompt is paid for."""
    rig = await served(Script(Hang()))
    wire = await rig.dial()
    wire.send(rig.request())
    await rig.upstream.request()
    wire.leave()
    await rig.ended()
    assert (1000 - ASKED, 0) == await books(rig)


async def test_refused_prompt(served):
    """Nothing is charged for what no upstream was asked."""
    rig = await served(streamed(HELLO), more=[moderation()])
    assert (await rig.ask(messages=[{"role": "user", "content": FORBIDDEN[0]}])).status == 400
    assert (1000, 0) == await books(rig)


async def test_violation(served):
    """A reply that moderation stops costs the prompt and what was released of it."""
    rig = await served(streamed(frames.stream(["All well. ", FORBIDDEN[0], " and more"])), more=[moderation()])
    reply = await rig.ask()
    assert reply.finishes() == {0: "content_filter"}
    said = reply.texts().get(0, "")
    assert (1000 - ASKED - len(said), 0) == await books(rig)


@pytest.mark.parametrize("stream", [True, False])
async def test_upstream_refuses(served, stream):
    """An error in the place of an answer costs nothing."""
    rig = await served(refused(500))
    assert (await rig.ask(stream=stream)).status == 502
    assert (1000, 0) == await books(rig)


async def test_upstream_breaks_off(served):
    """What was released is paid for."""
    rig = await served(streamed(HELLO[:2]))
    assert (await rig.ask()).broken_by == "upstream_incomplete"
    assert (1000 - ASKED - 5, 0) == await books(rig)


async def test_drained(served):
    """A reply that is cut by the relay's own end costs what was released of it."""
    rig = await served(interrupted(HELLO[:2], HELLO[2:]))
    async with rig.post() as response:
        assert b"Hello" in await response.content.readany()
        assert await rig.app.drain(0) == 1
        assert b"draining" in await response.read()
    assert (1000 - ASKED - 5, 0) == await books(rig)


async def test_tokens_as_reported(served):
    """In tokens the upstream's count is charged, and the client that did not ask for it does not see it."""
    rig = await served(streamed(frames.stream(["Hello"], tokens=(12, 3))), unit="tokens")
    reply = await rig.ask()
    assert not any("usage" in frame and frame["usage"] for frame in reply.frames)
    assert (1000 - 15, 0) == await books(rig)
    counted = await rig.metrics()
    assert counted['relay_quota_tokens_total{counted_by="upstream",direction="reply"}'] == 3
    assert counted['relay_quota_charged_total{unit="tokens"}'] == 15


async def test_points(served):
    """Each model has its price."""
    prices = {"*": {"input": 1000, "output": 2000}, "dear": {"input": 10_000, "output": 0}}
    rig = await served(streamed(frames.stream(["Hello"], tokens=(12, 3))), unit="points", prices=prices)
    await rig.ask()
    assert (1000 - 18, 0) == await books(rig)
    await rig.ask(model="dear")
    assert (1000 - 18 - 120, 0) == await books(rig)


async def test_at_once(served):
    """Of many at once exactly those are admitted whom the balance covers, and every one of them is whole."""
    gate = asyncio.Event()
    rig = await served(interrupted(HELLO[:1], HELLO[1:], gate), grant=20 * (ASKED + 50))
    asking = [asyncio.create_task(rig.ask()) for _ in range(50)]
    await rig.until(lambda: len(rig.replies) == 20 and sum(task.done() for task in asking) == 30)
    standing = await rig.ledger.look("tester")
    assert standing.balance - standing.reserved == 0
    gate.set()
    replies = await asyncio.gather(*asking)
    assert sorted(reply.status for reply in replies) == [200] * 20 + [403] * 30
    assert (20 * (ASKED + 50) - 20 * (ASKED + 11), 0) == await books(rig)


async def test_many_leave(served):
    """However clients leave, nothing stays reserved, and what is charged is what was released."""
    rig = await served(interrupted(HELLO[:2], HELLO[2:]), grant=10**6)

    async def leave(number):
        wire = await rig.dial()
        wire.send(rig.request())
        for _ in range(number % 40):
            await asyncio.sleep(0)
        if number % 3 == 0:
            await wire.through(b"Hello")
        wire.leave("reset" if number % 2 else "close")

    await asyncio.gather(*(leave(number) for number in range(200)))
    await rig.until(lambda: not rig.replies and not rig.app._tasks)
    balance, reserved = await books(rig)
    assert reserved == 0
    for entry in await rig.ledger.entries("tester", limit=1000):
        assert entry.kind == "grant" or -entry.amount in (ASKED, ASKED + 5)
    assert balance < 10**6
