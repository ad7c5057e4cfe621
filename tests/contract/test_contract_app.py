"""The promises of the plugin interface that are the app's to keep: when a client leaves, and when the relay does."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
from aiohttp.test_utils import make_mocked_request
from subjects import HEADERS, WELL_BEHAVED, SwallowsTheEnd, every_plugin, lent

from relay.app import App
from relay.chain import Chain
from relay.config import Upstream, parse
from relay.errors import PluginError, RelayError
from relay.exchange import Exchange
from relay.generation import Generation
from relay.plugin import Plugin
from relay.request import Request
from relay.serve import running
from relay.testing import Hang, Script, ScriptedUpstream, frames, streamed
from relay.testing.conversation import REPLY, after
from relay.testing.reply import CHAT, HandBody, Lent
from relay.testing.witness import Called, Witness
from relay.upstream import Answer

# The app's part, without sockets: cancelled at every turn of the loop


class SlowBody:
    """The body of a request, which takes a turn of the loop to come."""

    def __init__(self, data: bytes) -> None:
        self._parts = [data, b""]

    def is_eof(self) -> bool:
        return not self._parts

    async def readany(self) -> bytes:
        await asyncio.sleep(0)
        return self._parts.pop(0)


class OneUpstream:
    """Upstreams of which one answers, part by part, a turn of the loop each."""

    models = ("gpt-4",)

    def __init__(self) -> None:
        self.bodies: list[HandBody] = []

    def serving(self, model: str) -> Sequence[Upstream]:
        return ()

    def served(self, answer: Answer) -> None:
        pass

    async def ask(self, ex: Exchange) -> Answer:
        await asyncio.sleep(0)
        body = HandBody()
        self.bodies.append(body)
        parts = [*frames.cut(frames.body("Hello"), [40, 80]), b""]
        for turns, part in enumerate(parts, 1):
            after(turns + 1, lambda part=part: body.say(part))
        return Answer(Upstream(name="main", base_url="http://127.0.0.1:1/v1", models=["gpt-4"]), body, ex.loop.time())

    def failed(self, answer: Answer, error: RelayError) -> None:
        pass


class Handled:
    """An app with one plugin between two witnesses, and one request in it."""

    def __init__(self, plugin: Plugin) -> None:
        self.seen: list[tuple[str, str]] = []
        witnesses = [Witness(name=name, seen=self.seen, patience=2) for name in ("outer", "inner")]
        self.chain = Chain(
            [("caller", Called()), ("outer", witnesses[0]), ("subject", plugin), ("inner", witnesses[1])]
        )
        self.upstreams = OneUpstream()
        loan = lent(plugin)
        config = parse(CONFIG.format(base_url="http://127.0.0.1:1/v1"), Path("relay.toml"), {})
        generation = Generation(config, self.chain, self.upstreams)  # type: ignore[arg-type]
        self.app = App(generation, loan.metrics, loan.services.log)
        self.services = loan.services

    async def cancelled_after(self, turns: int) -> int | None:
        """Handle a request and cancel it after so many turns; the status if it was answered by then."""
        async with AsyncExitStack() as stack:
            for link in self.chain.links:
                await stack.enter_async_context(link.plugin.lifespan(self.services))
            chat: Any = SlowBody(b'{"model":"gpt-4","messages":[{"role":"user","content":"Hi"}]}')
            client = Mock(spec=asyncio.Transport)
            client.is_closing.return_value = False
            client.get_write_buffer_size.return_value = 0
            path = "/v1/chat/completions"
            mocked = make_mocked_request("POST", path, headers=HEADERS, transport=client)
            request = Request(mocked._message, chat, mocked.protocol, None, True)
            handling = asyncio.create_task(self.app.handle(request))
            request.task = handling
            for _ in range(turns):
                await asyncio.sleep(0)
            status = request.status if handling.done() else None
            handling.cancel()
            await asyncio.wait([handling])
            await self.app.drain(10)
        return status


@every_plugin
async def test_cancelled_anywhere(make: Callable[[], Plugin]) -> None:
    """A client that leaves at any await leaves nothing behind: each promise holds, and the upstream is let go."""
    turns, status = 0, None
    while status is None:
        handled = Handled(make())
        status = await handled.cancelled_after(turns)
        turns += 1
        seen = handled.seen
        returned = [who for what, who in seen if what == "on_request"]
        assert [who for what, who in seen if what == "settled"] == returned[::-1]
        made = sorted(who for what, who in seen if what == "on_stream")
        assert sorted(who for what, who in seen if what == "end") == made
        assert all(body.closed or body.drained for body in handled.upstreams.bodies)
    assert turns > 3
    if make in WELL_BEHAVED.values():
        assert status == 200


async def test_who_keeps_the_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the client has left at last: until then nobody knows that the end will not come."""
    monkeypatch.setattr("relay.app.END_S", 0.01)
    handled, named = Handled(SwallowsTheEnd()), list[PluginError]()
    handled.chain.tell(lambda error, _: named.append(error))
    assert await handled.cancelled_after(50) is None
    assert [(error.plugin, error.hook) for error in named] == [("subject", "end")]


# The whole relay, where only that will do

CONFIG = """
[server]
port = 0
[admin]
port = 0
[[upstreams]]
name = "main"
base_url = "{base_url}"
models = ["gpt-4"]
"""
OPEN = Script(streamed(REPLY[:2]), Hang())
SETTLES = """
import asyncio
from relay.plugin import Plugin

class Settles(Plugin):
    async def on_request(self, ex):
        self.begun, self.may_end, self.outcomes = asyncio.Event(), asyncio.Event(), []

    async def on_end(self, ex):
        self.begun.set()
        await self.may_end.wait()
        self.outcomes.append(ex.outcome)
"""


@asynccontextmanager
async def streaming(folder: Path) -> AsyncIterator[tuple[App, Any, aiohttp.ClientResponse]]:
    """A relay with a plugin that settles only when it is told to, and a reply that has begun and does not end."""
    (folder / "settling.py").write_text(SETTLES)
    async with ScriptedUpstream(OPEN) as upstream:
        config = parse(
            CONFIG.format(base_url=upstream.base_url) + '[[plugins]]\nuse = "settling:Settles"\n',
            folder / "relay.toml",
            {},
        )
        async with running(config, Lent().services.log) as relay, aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{relay.public_port}/v1/chat/completions"
            async with session.post(url, json=CHAT) as response:
                await response.content.readuntil(b"\n\n")
                [link] = relay.app.generation.chain.links
                yield relay.app, link.plugin, response


async def test_client_leaves_while_settling(tmp_path: Path) -> None:
    """A client that leaves cancels no `on_end`."""
    async with streaming(tmp_path) as (app, plugin, response):
        response.close()
        await plugin.begun.wait()
        plugin.may_end.set()
        assert await app.drain(10) == 0
    assert [outcome.kind for outcome in plugin.outcomes] == ["client_gone"]


async def test_drained(tmp_path: Path) -> None:
    """A stream that is open when the relay stops ends with an error in it, and its plugins have their `on_end`."""
    async with streaming(tmp_path) as (app, plugin, response):
        plugin.may_end.set()
        assert await app.drain(0) == 1
        rest = await response.content.read()
    assert b'"code":"draining"' in rest
    assert rest.endswith(frames.done())
    assert [outcome.kind for outcome in plugin.outcomes] == ["drained"]
