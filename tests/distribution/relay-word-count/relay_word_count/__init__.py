"""Counts the words of each reply, a plugin for moderelay."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import field
from typing import Any

from relay import CALLER, Chunk, Exchange, Key, Outcome, Plugin, Reject, Reply, Services, Sink

__all__ = ["WORDS", "WordCount"]


class Count:
    """Of the words of one reply. A word may be cut, and choices come in turns, so for each is known what it ended with."""

    def __init__(self) -> None:
        self.words = 0
        self._in_word: dict[int, bool] = {}

    def add(self, choice: int, text: str) -> None:
        if text:
            goes_on = self._in_word.get(choice, False) and not text[0].isspace()
            self.words += len(text.split()) - goes_on
            self._in_word[choice] = not text[-1].isspace()


WORDS = Key("word_count.words", Count)


class WordCount(Plugin):
    """Logs how many words each reply has, and refuses prompts of too many.

    max_prompt_words: how many the messages of a request may have.
    """

    gives = (WORDS,)

    max_prompt_words: int = 1000

    _log: Any = field(init=False)

    def __post_init__(self) -> None:
        if self.max_prompt_words < 1:
            raise ValueError("max_prompt_words is below 1, so nobody could ask; give a larger one")

    @asynccontextmanager
    async def lifespan(self, services: Services) -> AsyncIterator[None]:
        self._log = services.log
        yield

    async def on_request(self, ex: Exchange) -> Reply | None:
        contents = (message.get("content") for message in ex.request.messages)
        words = sum(len(content.split()) for content in contents if isinstance(content, str))
        if words > self.max_prompt_words:
            raise Reject(f"Send at most {self.max_prompt_words} words.", code="too_many_words", param="messages")
        ex.reply_headers["x-prompt-words"] = str(words)
        ex[WORDS] = Count()
        return None

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        return Counting(ex[WORDS], sink)

    async def on_end(self, ex: Exchange) -> None:
        self._log.info(
            "words",
            request_id=ex.id,
            caller=ex.get(CALLER, ""),
            words=ex[WORDS].words,
            outcome=ex.outcome.kind if ex.outcome else "",
        )


class Counting:
    """A sink that counts what passes. A reply that is not streamed is one chunk, with messages for deltas."""

    def __init__(self, count: Count, sink: Sink) -> None:
        self._count = count
        self._sink = sink

    def feed(self, chunk: Chunk) -> None:
        for choice in (chunk.json or {}).get("choices", ()):
            said = choice.get("delta") or choice.get("message") or {}
            content = said.get("content")
            if isinstance(content, str):
                self._count.add(choice.get("index", 0), content)
        self._sink.feed(chunk)

    def end(self, outcome: Outcome) -> None:
        self._sink.end(outcome)
