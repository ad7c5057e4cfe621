"""One request through one plugin, without a socket: what its client would get, and what was told.

    ran = await run(Office(max_messages=1), stream=True, answer=["Hel", "lo"])
    assert ran.reply.text == "Hello"

The request takes the way that it takes in a relay: the chain, the plugin's sink over a reply that comes in pieces, the end,
`on_end`. What the relay promises is kept here too, as it is the same code.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from time import monotonic
from typing import Any, NamedTuple

from relay.chain import Chain
from relay.delivery import Replay, StreamDelivery, WholeDelivery
from relay.errors import InternalError, PluginError, RelayError
from relay.exchange import Exchange, Outcome
from relay.head import unsendable
from relay.open_reply import called
from relay.plugin import Plugin, Reply, Sink
from relay.section import Link
from relay.testing import frames
from relay.testing.reply import CHAT, UPSTREAM, HandBody, Kept, Lent, exchange
from relay.testing.witness import Called
from relay.told import Told


@dataclass(frozen=True, slots=True)
class Replied:
    """What the client got.

    status: 200, or the refusal's. headers: those that plugins have set. data: all bytes of the body, without `[DONE]`.
    """

    status: int
    headers: Mapping[str, str]
    data: bytes

    @property
    def json(self) -> Any:
        """The body of a reply that is not streamed, or of a refusal."""
        return json.loads(self.data)

    @property
    def events(self) -> list[Any]:
        """What each event of a stream says."""
        return [json.loads(line[6:]) for line in self.data.splitlines() if line.startswith(b"data: ")]

    @property
    def text(self) -> str:
        """The content of all choices, as it came."""
        said = self.events if self.data.startswith(b"data: ") or not self.data else [self.json]
        return "".join(
            choice.get("delta", choice.get("message", {})).get("content") or ""
            for event in said
            for choice in event.get("choices", ())
        )


class Ran(NamedTuple):
    """What became of a request.

    events: what the plugin has published, by kind. exchange: as it was at the end, with its `outcome`. sent: the body as it
    went to the upstream, with `exchange.upstream_headers`; None: nobody was asked. raised: what the relay would log and
    count, each with its cause in `__cause__`: the plugin raised what is no refusal.
    """

    reply: Replied
    events: Sequence[tuple[str, Mapping[str, object]]]
    exchange: Exchange
    sent: Any | None
    raised: Sequence[PluginError]


async def run(
    plugin: Plugin,
    request: Mapping[str, object] = CHAT,
    *,
    answer: Iterable[str] | bytes = ("Hello",),
    cuts: Iterable[int] | None = (),
    headers: Mapping[str, str] | None = None,
    before: Iterable[Plugin] = (),
    lent: Lent | None = None,
    patience_s: float = 10.0,
    **changed: object,
) -> Ran:
    """Ask once. `request` is the body of a chat completion, with the fields in `changed` changed.

    answer: what the upstream says: pieces of text, or all its bytes. cuts: where those are cut, as `frames.cut` takes it:
    whole, at these places, or (None) byte by byte. headers: the request's. before: plugins that the request meets first.
    lent: what the plugin is lent; a store too, if it is given one. patience_s: how long the end of the reply may take;
    afterwards the client leaves, and `raised` names the plugin that has kept it.

    Raises ConfigError where the plugins do not fit together, ValueError for a reply header that cannot be sent, and whatever
    opening one raises.
    """
    lent = lent or Lent()
    raised: list[PluginError] = []
    name = type(plugin).__name__
    plugins = [("caller", Called()), *((type(each).__name__, each) for each in before), (name, plugin)]

    def on_error(error: PluginError, cause: BaseException) -> None:
        error.__cause__ = cause
        raised.append(error)

    chain = Chain(plugins, on_error)
    ex = exchange({**request, **changed}, headers=headers)
    kept, entered = Kept(), list[Link]()
    sent: Any | None = None
    error: RelayError | None = None
    answered: Reply | None = None
    delivery: StreamDelivery | WholeDelivery | None = None
    asked_at = 0.0
    async with AsyncExitStack() as stack:
        for link in chain.links:
            await stack.enter_async_context(link.plugin.lifespan(lent.services))
        try:
            answered = await chain.enter(ex, entered)
            ex.asked = answered is None and ex.stopped is None
            sink = chain.wrap(ex, entered[:-1] if answered is not None else entered, kept)
            if answered is not None:
                Replay(ex, sink, answered).start()
            else:
                if ex.stopped is not None:
                    raise ex.stopped.error or InternalError()
                sent = json.loads(ex.request.encode())
                ex.asked, ex.upstream, asked_at = True, UPSTREAM, monotonic()
                delivery = (StreamDelivery if ex.request.stream else WholeDelivery)(ex, sink, body := HandBody())
                delivery.start()
                _say(body, answer, cuts, stream=ex.request.stream)
            if ex.stopped is not None:
                await asyncio.sleep(0)
            ex.outcome = await _ended(ex, chain, sink, kept, patience_s)
        except RelayError as refusal:
            error = refusal
            ex.outcome = Outcome.of(refusal)
        await ex.close()
        reply = _replied(ex, kept, answered, error)
        call = called(ex, asked_at, delivery is not None, delivery) if ex.asked else None
        told = Told("POST", reply.status, monotonic(), call)
        ex.tells(lambda: told)
        await chain.leave(ex, entered)
    return Ran(reply, lent.told.events, ex, sent, raised)


async def _ended(ex: Exchange, chain: Chain, sink: Sink, kept: Kept, patience_s: float) -> Outcome:
    """How it ended, as `relay.app` finds it out."""
    try:
        return await kept.ended(patience_s)
    except TimeoutError:
        ex.stop(Outcome("client_gone"))
        await ex.close()
        await asyncio.sleep(0)
        if kept.outcome is None:
            chain.blame(sink)
        return kept.outcome or Outcome("client_gone")


def _say(body: HandBody, answer: Iterable[str] | bytes, cuts: Iterable[int] | None, *, stream: bool) -> None:
    """Have the upstream say it."""
    if not isinstance(answer, bytes):
        answer = b"".join(frames.stream(answer)) if stream else frames.body("".join(answer))
    body.say(*frames.cut(answer, cuts))
    body.eof()


def _replied(ex: Exchange, kept: Kept, answered: Reply | None, error: RelayError | None) -> Replied:
    """As the writer would have it: an error before the first byte is the answer, one after it stands in the stream."""
    error = error or (kept.outcome.error if kept.outcome is not None else None)
    headers: dict[str, str] = {**ex.reply_headers, **(answered.headers if answered is not None else {})}
    if (bad := unsendable(headers)) is not None:
        raise ValueError(f"the reply header {bad!r} cannot be sent: its value has to be a string without a line end")
    if error is not None and not kept.chunks:
        return Replied(error.status, {**headers, **error.headers}, error.body)
    tail = b"" if error is None else frames.data(error.body)
    if answered is not None:
        return Replied(answered.status, headers, kept.raw + tail)
    return Replied(200, headers, kept.raw + tail)
