"""`history`: drops the oldest turns of a conversation that has grown too long.

What stays is decided by `relay.pure.trim`: system and developer messages and the newest turn always, the others from
the newest back as long as they fit; a tool call never without its results. A newest turn that does not fit is sent all
the same: the upstream says what is wrong with it better than we could. Messages that stay go on byte for byte.

Tokens are those of the messages; definitions of tools and whatever else stands beside the messages come on top. They are
estimated, and what upstreams report as usage corrects the estimate, model by model; or they are counted, by a tokenizer
that is installed with the extra `tokens`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any, Final, Literal, NamedTuple

from msgspec import Meta

from relay.exchange import Exchange, Key, Outcome
from relay.metrics import Metrics
from relay.plugin import Plugin, Reply, Services, Sink
from relay.pure.cost import MEDIA_TOKENS, MESSAGE_TOKENS, said
from relay.pure.openai import Chunk
from relay.pure.request import ChatRequest
from relay.pure.tokens import LEAST_TOKENS, MOST_A_BYTE, Calibration, estimate
from relay.pure.trim import Cost, Message, Trimmed, trim
from relay_plugins.history.tokenizer import Encoding, Tokenizer, check_installed

HEADER: Final = "x-relay-trimmed-messages"

# Larger bodies are looked through in a thread, and other streams get their turn: a hostile body takes 0.1 µs a byte to
# look through, and 0.2 µs to count.
INLINE_BYTES: Final = 65_536
INLINE_BYTES_EXACT: Final = 16_384
# A smaller body teaches nothing about a tokenizer.
_TELLING_BYTES: Final = math.floor(LEAST_TOKENS / MOST_A_BYTE)

Count = Annotated[int, Meta(ge=1)]


class _Measured(NamedTuple):
    """A prompt as it was when it was measured; tokens is uncorrected."""

    messages: list[dict[str, Any]]
    tokens: float


_PROMPT: Final = Key("history.prompt", _Measured)


class History(Plugin):
    """Keeps of each conversation what fits; all limits that are set hold, and one has to be.

    System and developer messages and the newest turn stay whatever they cost; of the others the oldest turns go first.

    max_tokens, max_chars: of all messages together; an image, a sound or a file is taken for 765 tokens and no
    characters, and each message costs 4 tokens beside its text. max_turns: how many turns may stay; a turn is a user
    message with what follows it.

    count: "exact" needs `pip install "moderelay[tokens]"`, and counts with `encoding` whatever the model.

    What was dropped is in the reply's header x-relay-trimmed-messages, a number of messages.
    """

    max_tokens: Count | None = None
    max_chars: Count | None = None
    max_turns: Count | None = None
    count: Literal["estimate", "exact"] = "estimate"
    encoding: Encoding = "o200k_base"

    _metrics: Metrics = dataclasses.field(init=False)
    _calibration: Calibration = dataclasses.field(init=False)
    _tokenizer: Tokenizer = dataclasses.field(init=False)  # if tokens are counted exactly

    def __post_init__(self) -> None:
        if self.max_tokens is None and self.max_chars is None and self.max_turns is None:
            raise ValueError(
                "there is nothing to keep to; set max_tokens, max_chars or max_turns, as in max_turns = 20"
            )
        if self.count == "exact":
            if self.max_tokens is None:
                raise ValueError('count = "exact" counts tokens; set max_tokens, or leave count out')
            try:
                check_installed()
            except ImportError:
                raise ValueError(
                    'count = "exact" needs a tokenizer that is not installed; run pip install "moderelay[tokens]", '
                    'or set count = "estimate"'
                ) from None
        self._calibration = Calibration()

    @asynccontextmanager
    async def lifespan(self, services: Services) -> AsyncIterator[None]:
        self._metrics = services.metrics
        if self.count == "exact":
            self._tokenizer = await asyncio.to_thread(Tokenizer, self.encoding)
        yield

    # Requests

    async def on_request(self, ex: Exchange) -> Reply | None:
        request = ex.request
        size = len(request.encode())
        teaches = (
            size >= _TELLING_BYTES
            and self._estimates
            and not request.speaks_beside_messages
            and self._calibration.should_ask(request.model, size * MOST_A_BYTE)
        )
        messages, factor = request.messages, self._calibration.factor(request.model)
        if not teaches and self._surely_fits(size, request, factor):
            return None
        if size > (INLINE_BYTES_EXACT if self.count == "exact" else INLINE_BYTES):
            trimmed = await asyncio.to_thread(self._trim, messages, factor)
        else:
            trimmed = self._fitting(request, factor) or self._trim(messages, factor)
        dropped = len(messages) - len(trimmed.kept)
        if dropped:
            request.keep_messages(trimmed.kept)
            ex.reply_headers[HEADER] = str(dropped)
            self._metrics.history_trimmed(dropped)
        if teaches:
            tokens, _, media = trimmed.cost
            if not media:
                ex[_PROMPT] = _Measured(request.messages, tokens)
                ex.needs_usage = True
        return None

    def _surely_fits(self, size: int, request: ChatRequest, factor: float) -> bool:
        """Whether a body of so many bytes need not be looked through: nothing but text stands in it, and little of that."""
        if self.max_turns is not None or (self.max_chars is not None and size > self.max_chars):
            return False
        if self.max_tokens is not None:
            tokens = (size * MOST_A_BYTE * factor) if self.count == "estimate" else size
            overhead = MESSAGE_TOKENS * len(request.messages)
            if tokens + (overhead * factor if factor > 1.0 else overhead) > self.max_tokens:
                return False
        return request.contents is not None

    def _fitting(self, request: ChatRequest, factor: float) -> Trimmed | None:
        """All messages, if they are nothing but texts, estimated, and fit: then it is all one which turns there are."""
        contents = request.contents
        if contents is None or self.max_turns is not None or self.count == "exact":
            return None
        characters = sum(map(len, contents))
        tokens = MESSAGE_TOKENS * len(contents) + sum(map(estimate, contents))
        if self.max_tokens is not None and tokens > self.max_tokens / factor:
            return None
        if self.max_chars is not None and characters > self.max_chars:
            return None
        return Trimmed([*range(len(contents))], (tokens, characters, 0))

    def _trim(self, messages: Sequence[Message], factor: float) -> Trimmed:
        """`factor` is what the model's tokenizer makes of an estimated token; 1 where tokens are counted."""
        if self.max_tokens is None and self.max_chars is None:
            return trim(messages, _free, (), self.max_turns)
        count: Callable[[str], float] = estimate
        if self.count == "exact":
            count = self._tokenizer.counter(self.max_tokens or 0)
        budget = (
            math.inf if self.max_tokens is None else self.max_tokens / factor,
            math.inf if self.max_chars is None else self.max_chars,
            math.inf,
        )
        return trim(messages, partial(_cost, count), budget, self.max_turns)

    @property
    def _estimates(self) -> bool:
        return self.count == "estimate" and self.max_tokens is not None

    # Replies

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        if _PROMPT not in ex:
            return sink  # most teach nothing, and looking for a usage costs something for every chunk
        prompt, request = ex[_PROMPT], ex.request
        if request.messages is not prompt.messages:  # a later plugin has changed them
            return sink
        return _UsageReader(sink, partial(self._calibration.learn, request.model, prompt.tokens))


def _cost(count: Callable[[str], float], message: Message) -> Cost:
    """Tokens, characters, and how many things are no text."""
    text = message.get("content")
    if len(message) == 2 and type(text) is str and "role" in message:
        return MESSAGE_TOKENS + count(text), len(text), 0  # as most are
    texts, media = said(message)
    return MESSAGE_TOKENS + MEDIA_TOKENS * media + sum(map(count, texts)), sum(map(len, texts)), media


def _free(message: Message) -> Cost:
    return ()


# No null: some servers say that in every frame.
_USAGE: Final = re.compile(rb'"usage"\s*:\s*\{')


class _UsageReader:
    """Tells at the end of a reply how many tokens the upstream says its prompt had."""

    __slots__ = ("_learn", "_sink", "_told")

    def __init__(self, sink: Sink, learn: Callable[[object], None]) -> None:
        self._sink = sink
        self._learn = learn
        self._told: Chunk | None = None

    def feed(self, chunk: Chunk) -> None:
        # What is known to say text says no usage. Of what may, only the last is read, and that when all is over.
        if chunk.said is None and b'"usage"' in chunk.data and _USAGE.search(chunk.data):
            self._told = chunk
        self._sink.feed(chunk)

    def end(self, outcome: Outcome) -> None:
        frame = self._told.json if self._told is not None else None
        usage = frame.get("usage") if frame is not None else None
        if isinstance(usage, dict):
            self._learn(usage.get("prompt_tokens"))
        self._sink.end(outcome)
