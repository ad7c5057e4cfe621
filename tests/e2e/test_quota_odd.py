"""The plugin `quota` beside others that do as they like: replies of plugins, verdicts that come late, odd keys and chains."""

import pytest

from relay.ledger import Ledger
from relay.testing import frames, streamed

from .conftest import AUTH, KEY, PROMPT

pytestmark = pytest.mark.parametrize("reader", ["push"], indirect=True)

ASKED = len(PROMPT)
HELLO = frames.stream(["Hello", " world"])  # 11
QUOTA = {"use": "quota", "grant": 1000, "instalment": 50}


@pytest.fixture
def served(serve, tmp_path):
    """`rig = await served(script, chain)`; the books are in `rig.ledgers`, by unit."""

    async def start(script, chain, **options):
        rig = await serve(script, chain=chain, store=f"embedded:{tmp_path}/data", **options)
        rig.ledgers = {
            (unit := table.get("unit", "characters")): Ledger(rig.relay.store, unit, grant=table.get("grant", 0))
            for table in chain
            if table["use"] == "quota"
        }
        return rig

    return start


async def books(rig, unit="characters", account="tester"):
    """Balance and reserved, after all that has ended has been settled."""
    await rig.until(lambda: not rig.replies and not rig.app._tasks)
    standing = await rig.ledgers[unit].look(account)
    return standing.balance, standing.reserved


@pytest.mark.parametrize("stream", [True, False])
async def test_reply_of_a_plugin(served, stream):
    """What a later plugin answers is paid for as an upstream's reply is, to the last unit."""
    rig = await served(
        streamed(HELLO), [AUTH, {**QUOTA, "grant": 2 * ASKED + 8}, {"use": "fakes:Answering", "text": "Hello"}]
    )
    reply = await rig.ask(stream=stream)
    assert (reply.texts(), reply.finishes()) == ({0: "Hello"}, {0: "stop"})
    assert (ASKED + 3, 0) == await books(rig)
    reply = await rig.ask(stream=stream)
    assert (reply.texts(), reply.finishes()) == ({0: "Hel"}, {0: "length"})
    assert (0, 0) == await books(rig)


async def test_reply_of_a_plugin_that_says_nothing(served):
    """No upstream was asked and nothing said: that costs nothing."""
    rig = await served(streamed(HELLO), [AUTH, QUOTA, {"use": "fakes:Answering"}])
    assert (await rig.ask()).status == 200
    assert (1000, 0) == await books(rig)


async def test_reply_of_an_earlier_plugin(served):
    """Who answers before the quota is not counted."""
    rig = await served(streamed(HELLO), [AUTH, {"use": "fakes:Answering", "text": "Hello"}, QUOTA])
    assert (await rig.ask()).texts() == {0: "Hello"}
    assert (1000, 0) == await books(rig)


async def test_a_reply_that_never_begins(served):
    """A plugin that fails when the answer begins: nothing is charged, and nothing stays reserved."""
    rig = await served(streamed(HELLO), [AUTH, QUOTA, {"use": "fakes:Failing"}])
    rig.loudest = "error"
    assert (await rig.ask()).status == 500
    assert (1000, 0) == await books(rig)


async def test_prompt_refused_before_an_upstream_is_asked(served):
    """Judged beside the request, and refused while another plugin still has it: no upstream had it, so it is free."""
    parallel = {
        "use": "moderation",
        "moderators": [{"use": "fakes:Blocking"}],
        "request": "parallel",
        "response": "off",
    }
    rig = await served(streamed(HELLO), [AUTH, QUOTA, parallel, {"use": "fakes:Stopped"}])
    reply = await rig.ask(messages=[{"role": "user", "content": "ponder"}])
    assert (reply.status, reply.error["code"]) == (400, "content_filter")
    assert (1000, 0) == await books(rig)
    assert not rig.upstream.requests


@pytest.mark.parametrize("response", ["trailing", "shadow"])
async def test_ends_ahead_of_a_verdict(served, response):
    """The quota ends while a verdict is due on what has left: in trailing mode the client is told to take it back."""
    moderation = {
        "use": "moderation",
        "moderators": [{"use": "fakes:Waiting"}],
        "request": "off",
        "response": response,
        "window": {"first_chars": 6, "sentence_chars": 6, "max_chars": 24, "max_wait_ms": 10},
        "deadline_ms": 60_000,
    }
    rig = await served(
        streamed(frames.stream(["ponder", " this", " and that"])), [AUTH, {**QUOTA, "grant": ASKED + 8}, moderation]
    )
    reply = await rig.ask()
    assert (reply.texts(), reply.finishes()) == ({0: "ponder t"}, {0: "length"})
    told = [frame["relay"] for frame in reply.frames if "relay" in frame]
    assert told[0]["quota"]["code"] == "insufficient_user_quota"
    assert told[1:] == (
        [{"withdraw": [{"index": 0, "surface": "content", "from": 0}]}] if response == "trailing" else []
    )
    assert (0, 0) == await books(rig)
    assert ["exhausted"] == [line["outcome"] for line in await rig.ended()]


async def test_ends_behind_a_gate(served):
    """The upstream has ended and verdicts are due when the quota ends: one end, and the balance to the last unit."""
    text = "Well then. " * 10
    moderation = {
        "use": "moderation",
        "moderators": [{"use": "fakes:Blocking"}],
        "request": "off",
        "window": {"first_chars": 6, "sentence_chars": 6, "max_chars": 24, "max_wait_ms": 10},
    }
    rig = await served(
        streamed(frames.stream([text]), per_write=1 << 16), [AUTH, {**QUOTA, "grant": ASKED + 75}, moderation]
    )
    reply = await rig.ask()
    assert (reply.texts(), reply.finishes()) == ({0: text[:75]}, {0: "length"})
    assert (0, 0) == await books(rig)


async def test_stream_without_done(served):
    """Complete is what says so: every choice has finished."""
    rig = await served(streamed(HELLO[:-1]), [AUTH, QUOTA])
    assert (await rig.ask()).texts() == {0: "Hello world"}
    assert (1000 - ASKED - 11, 0) == await books(rig)


async def test_token_dearer_than_an_instalment(served):
    """A price may be so high that one token costs more than is reserved at a time."""
    dear = {**QUOTA, "unit": "points", "grant": 10**6, "prices": {"*": {"input": 0, "output": 10**7}}}
    rig = await served(streamed(frames.stream(["Hello"], tokens=(12, 3))), [AUTH, dear])
    assert (await rig.ask()).texts() == {0: "Hello"}
    assert (10**6 - 3 * 10**4, 0) == await books(rig, "points")


async def test_free_model(served):
    """Whoever has nothing may ask what costs nothing."""
    free = {**QUOTA, "unit": "points", "grant": 0, "prices": {"*": {"input": 0, "output": 0}}}
    rig = await served(streamed(HELLO), [AUTH, free])
    assert (await rig.ask()).texts() == {0: "Hello world"}
    assert (0, 0) == await books(rig, "points")


async def test_free_reply(served):
    """Where only prompts cost something, a balance for the prompt is enough."""
    prompts = {"*": {"input": 1000, "output": 0}}
    rig = await served(streamed(HELLO), [AUTH, {**QUOTA, "unit": "points", "grant": 10, "prices": prompts}])
    assert (await rig.ask()).texts() == {0: "Hello world"}
    assert 0 <= (await books(rig, "points"))[0] < 10


async def test_two_quotas(served):
    """Each charges in its own unit; the one that ends first ends the reply for both."""
    tokens = {**QUOTA, "unit": "tokens"}
    rig = await served(streamed(HELLO), [AUTH, {**QUOTA, "grant": ASKED + 8}, tokens])
    reply = await rig.ask()
    assert (reply.texts(), reply.finishes()) == ({0: "Hello wo"}, {0: "length"})
    assert (0, 0) == await books(rig)
    balance, reserved = await books(rig, "tokens")
    assert reserved == 0
    assert 900 < balance < 1000


class TestLooking:
    """GET /v1/quota"""

    async def test_head(self, served):
        rig = await served(streamed(HELLO), [AUTH, QUOTA])
        async with rig.session.head(rig.url + "/v1/quota") as response:
            assert response.status == 200
            assert int(response.headers["Content-Length"]) > 0
            assert await response.read() == b""
        assert (await rig.ledgers["characters"].look("tester")).fresh

    async def test_without_a_quota(self, served):
        rig = await served(streamed(HELLO), [AUTH])
        async with rig.session.get(rig.url + "/v1/quota") as response:
            assert response.status == 404
            assert (await response.json())["error"]["code"] == "not_found"

    async def test_without_a_key(self, served):
        rig = await served(streamed(HELLO), [AUTH, QUOTA])
        async with rig.session.get(rig.url + "/v1/quota", headers={"Authorization": "Bearer nobody"}) as response:
            assert response.status == 401


@pytest.mark.parametrize("name", ["a}{b", "100%", "a/b:c", "钥匙 😀", "x" * 64, "'quoted\" \\"])
async def test_odd_names(served, name):
    """A name is a name: in the ledger, in the log, in what the admin API answers."""
    auth = {"use": "auth", "keys": [{"name": name, "key": KEY}]}
    rig = await served(streamed(HELLO), [auth, QUOTA])
    assert (await rig.ask()).texts() == {0: "Hello world"}
    assert (1000 - ASKED - 11, 0) == await books(rig, account=name)
    assert [line["caller"] for line in await rig.ended()] == [name]
