"""The plugins that docs/plugins.md shows do what it says."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from ask_first import AskFirst
from called import TOOLS, Called
from hours import Hours
from hypothesis import given
from hypothesis import strategies as st
from shouting import Shouting
from signs import Signs
from simple import Simple
from swap import Swap
from whole_word import WholeWord

from relay import JsonObject, Reject, Secret
from relay.testing import frames
from relay.testing.run import run
from relay_plugins.moderation import Moderation


# The page shows the next one.
async def test_swap():
    ran = await run(Swap(word="cat", by="dog"), answer=["A c", "at, two ca", "ts."], cuts=None)
    assert ran.reply.text == "A dog, two dogs."


@given(pieces=st.lists(st.text("cat ", max_size=4)), stream=st.booleans())
def test_swap_however_it_comes(pieces, stream):
    ran = asyncio.run(run(Swap(word="cat", by="dog"), answer=pieces, stream=stream))
    assert ran.reply.text == "".join(pieces).replace("cat", "dog")


@pytest.mark.parametrize("cuts", [(), None], ids=["whole", "byte by byte"])
async def test_a_whole_word(cuts):
    ran = await run(WholeWord(word="cat", by="dog"), answer=["Cat, conc", "at cat", "alog 猫cat。", "CAT"], cuts=cuts)
    assert ran.reply.text == "dog, concat catalog 猫dog。dog"


@pytest.mark.parametrize("cuts", [(), None], ids=["whole", "byte by byte"])
async def test_called(cuts):
    said = (
        frames.tool(name="weather"),
        frames.tool("{}"),
        frames.tool(name="clock", call=1),
        frames.finish("tool_calls"),
    )
    ran = await run(Called(), answer=b"".join([frames.text("Let me see."), *said, frames.done()]), cuts=cuts)
    assert ran.exchange[TOOLS] == ["weather", "clock"]
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    whole = json.dumps({"choices": [{"index": 0, "message": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]})
    assert (await run(Called(), answer=whole.encode(), stream=False)).exchange[TOOLS] == ["weather"]


@asynccontextmanager
async def service(answer):
    """An HTTP service, and what it was asked."""
    asked = []

    async def handle(request):
        asked.append((request.headers["Authorization"], await request.json()))
        return await answer()

    app = web.Application()
    app.router.add_post("/", handle)
    async with TestServer(app) as server:
        yield str(server.make_url("/")), asked


@pytest.mark.parametrize(("status", "code"), [(204, None), (403, "not_allowed"), (500, "not_allowed")])
async def test_ask_first(status, code):
    async def answer():
        return web.Response(status=status)

    async with service(answer) as (url, asked):
        ran = await run(AskFirst(url=url, token=Secret("t0ken")), stream=False)
    assert asked == [
        ("Bearer t0ken", {"caller": "tester", "model": "gpt-4", "messages": [{"role": "user", "content": "Hi"}]})
    ]
    assert (ran.reply.status, ran.sent is None) == ((403, True) if code else (200, False))
    assert code is None or ran.reply.json["error"]["code"] == code


async def test_ask_first_of_one_that_is_silent():
    released = asyncio.Event()

    async def answer():
        await released.wait()
        return web.Response()

    async with service(answer) as (url, _):
        ran = await run(AskFirst(url=url, token=Secret("t0ken"), timeout_s=0.05))
        released.set()
    assert (ran.reply.status, ran.reply.json["error"]["code"]) == (503, "ask_first_away")


@pytest.mark.parametrize("stream", [True, False])
async def test_hours(stream):
    messages = [{"role": "user", "content": "When are you open?"}]
    ran = await run(Hours(), stream=stream, messages=messages)
    assert (ran.reply.text, ran.sent) == ("From nine to five.", None)
    assert (await run(Hours(), stream=stream)).reply.text == "Hello"


async def test_signs(capsys):
    ran = await run(Signs(header="x-by"))
    assert ran.reply.headers["x-by"] == ran.sent["user"] == "tester"
    assert "completed" in capsys.readouterr().out


def test_simple():
    body = Simple(model="m").translate("/ask", JsonObject(b'{"question":"Why?","stream":true}'))
    assert body.fields == {"stream": True, "model": "m", "messages": [{"role": "user", "content": "Why?"}]}
    with pytest.raises(Reject):
        Simple().translate("/ask", JsonObject(b"{}"))


# And this one.
async def test_shouting():
    moderation = Moderation(moderators=(Shouting(),))
    assert (await run(moderation, answer=["all ", "is well."])).reply.text == "all is well."
    ran = await run(moderation, answer=["ALL IS ", "LOST."])
    assert ran.reply.events[-1]["choices"][0]["finish_reason"] == "content_filter"
    assert ran.reply.text == ""
