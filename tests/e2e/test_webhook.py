"""Replies that are moderated by an HTTP endpoint of the operator's own."""

import json

import pytest
from aiohttp import web

from relay.testing import frames, streamed

BEFORE, PHRASE, AFTER = "It begins harmlessly, ", "forbidden fruit", " and there is more of it behind."
# So small that a short reply has many windows.
WINDOW = {"first_chars": 8, "sentence_chars": 8, "max_chars": 24, "max_wait_ms": 50}


@pytest.fixture
def reader():
    """How upstream bodies are read is tested elsewhere."""
    return "push"


class Endpoint:
    """Blocks the phrase."""

    def __init__(self):
        self.shown = []
        self.status = 200

    async def __call__(self, request):
        text = json.loads(await request.read())["text"]
        self.shown.append(text)
        found = {"action": "block", "label": "fruit", "score": 93, "reference": "case-1"}
        return web.json_response(found if PHRASE in text else {"action": "pass"}, status=self.status)


@pytest.fixture
async def endpoint():
    fake = Endpoint()
    runner = web.ServerRunner(web.Server(fake, access_log=None), handle_signals=False)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}/check"
    yield fake
    await runner.cleanup()


@pytest.fixture
def moderated(endpoint, open_chain):
    moderators = [{"use": "webhook", "url": endpoint.url, "token": "tok"}]
    return [*open_chain, {"use": "moderation", "moderators": moderators, "request": "off", "window": WINDOW}]


def says(text, length):
    pieces = [text[start : start + length] for start in range(0, len(text), length)]
    return streamed(frames.stream(pieces))


@pytest.mark.parametrize("length", [1, 4, 200])
async def test_a_block_stops_a_stream(serve, moderated, endpoint, length):
    """Nothing of the phrase leaves, however it was cut, and all that leaves was shown."""
    rig = await serve(says(BEFORE + PHRASE + AFTER, length), chain=moderated)
    reply = await rig.ask()
    assert BEFORE.startswith(reply.texts()[0])
    assert {0: "content_filter"} == reply.finishes()
    assert any(PHRASE in text for text in endpoint.shown)
    [line] = [line for line in rig.log if line["event"] == "violation"]
    assert ("webhook", "fruit", 93, "case-1") == tuple(
        line[name] for name in ("moderator", "label", "score", "reference")
    )
    assert "fruit" not in str(rig.log).replace("'label': 'fruit'", "")
    assert ["filtered"] == [line["outcome"] for line in await rig.ended()]


async def test_a_clean_stream_passes(serve, moderated, endpoint):
    data = frames.stream(["A harmless ", "story. "] * 9)
    rig = await serve(streamed(data), chain=moderated)
    assert b"".join(data) == (await rig.ask()).data
    assert all(PHRASE not in text for text in endpoint.shown)


async def test_nothing_leaves_without_a_verdict(serve, moderated, endpoint):
    """An endpoint that fails lets nothing through."""
    endpoint.status = 404
    rig = await serve(says(BEFORE, 4), chain=moderated)
    rig.loudest = "warning"
    reply = await rig.ask()
    assert BEFORE[:8] not in reply.data.decode()
    [line] = [line for line in rig.log if line["event"] == "moderator cannot judge a text"]
    assert "check `url`" in line["reason"]
